"""Which of a Hub's two listings has a version's files: the metadata of a revision, or the tree of its commit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_hub import FakeHub, Reply, Request
from tests.support.hub_cases import NAME, URI, by_path, hub_source, refusal, write

_FILES = {f"layer-{number:02}.json": b"%d" % number for number in range(11)}


def _asked(hub: FakeHub) -> list[str]:
    """What was asked: `files` and `commit` of the revision, pages of its `tree`."""
    asked = []
    for request in hub.requests:
        metadata = "files" if "blobs" in request.query else "commit"
        asked.append("tree" if "/tree/" in request.path else metadata)
    return asked


async def test_one_request_lists_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    """Commit and files come from one answer, and are what the tree says."""
    commit = hub.add(NAME, write(tmp_path / "many", _FILES)).refs["main"]
    listing = await hub_source(URI).resolve()
    assert _asked(hub) == ["files"]
    assert (listing.revision, listing.tag) == (commit, commit)
    hub.lists_blobs = False
    assert await hub_source(URI).resolve() == listing


async def test_a_folder_is_listed_without_the_rest_of_the_repository(hub: FakeHub, model: Path) -> None:
    """A version in a folder costs what the folder has, however much lies beside it."""
    hub.add(NAME, model)
    await hub_source(f"{URI}/onnx/").resolve()
    assert set(_asked(hub)) == {"commit", "tree"}


async def test_a_version_is_confirmed_by_its_commit_alone(hub: FakeHub, model: Path) -> None:
    """Whether a listing still holds is asked without its files."""
    commit = hub.add(NAME, model).refs["main"]
    assert await hub_source(URI).is_current(commit)
    assert _asked(hub) == ["commit"]


async def test_every_page_of_the_tree_is_read(hub: FakeHub, tmp_path: Path) -> None:
    """A tree that comes in many pages is listed whole."""
    hub.lists_blobs = False
    hub.add(NAME, write(tmp_path / "many", _FILES))
    listing = await hub_source(URI).resolve()
    assert [file.path for file in listing.files] == sorted(_FILES)
    assert _asked(hub) == ["files"] + 6 * ["tree"]


class Lacking(FakeHub):
    """A Hub whose answer with all files is another one: `altered` gets the files and returns what is sent for them."""

    def answer(self, request: Request) -> Reply:
        reply = super().answer(request)
        if "blobs" not in request.query:
            return reply
        found = json.loads(reply.body)
        found["siblings"] = self.altered(found["siblings"])
        return Reply(reply.status, reply.headers, json.dumps(found).encode())

    def altered(self, siblings: list[Any]) -> Any:
        raise NotImplementedError


class NoSiblings(Lacking):
    """A Hub that leaves the files out."""

    def altered(self, siblings: list[Any]) -> Any:
        return None


class NoFiles(Lacking):
    """A Hub that says that there are none."""

    def altered(self, siblings: list[Any]) -> Any:
        return []


class OneWithoutSize(Lacking):
    """A Hub that does not know the size of one file."""

    def altered(self, siblings: list[Any]) -> Any:
        del siblings[3]["size"]
        return siblings


class OneWithoutId(Lacking):
    """A Hub that does not know the id of one file."""

    def altered(self, siblings: list[Any]) -> Any:
        del siblings[3]["blobId"]
        return siblings


class Omitting(Lacking):
    """A Hub that names as many files as one answer may have, and omits the others."""

    def altered(self, siblings: list[Any]) -> Any:
        return [{"rfilename": f"{n}", "size": 1, "blobId": f"{n:040x}"} for n in range(50_000)]


class TooLong(Lacking):
    """A Hub whose answer is longer than any that is read."""

    def altered(self, siblings: list[Any]) -> Any:
        return [sibling | {"note": " " * 2 * 1024 * 1024} for sibling in siblings]


@pytest.mark.parametrize("kind", [NoSiblings, NoFiles, OneWithoutSize, OneWithoutId, Omitting, TooLong])
async def test_the_tree_has_what_the_metadata_lacks(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Lacking]
) -> None:
    """Metadata without all files, each with id and size, lead to the tree of the same commit."""
    with kind() as lacking:
        monkeypatch.setenv("HF_ENDPOINT", lacking.endpoint)
        commit = lacking.add(NAME, write(tmp_path / "many", _FILES)).refs["main"]
        listing = await hub_source(URI).resolve()
        assert sorted(by_path(listing)) == sorted(_FILES)
        assert all(file.git_oid is not None for file in listing.files)
        trees = [request.path for request in lacking.requests if "/tree/" in request.path]
        assert len(trees) == 1 and commit in trees[0]


@pytest.mark.parametrize("status", [400, 500, 502, 504])
async def test_metadata_that_a_hub_cannot_send_are_done_without(hub: FakeHub, tmp_path: Path, status: int) -> None:
    """A Hub that refuses, or fails over, an answer with all files is asked for the commit and its tree."""
    hub.add(NAME, write(tmp_path / "many", _FILES))
    hub.fail(status, "/revision/")
    assert sorted(by_path(await hub_source(URI).resolve())) == sorted(_FILES)
    assert _asked(hub)[:3] == ["files", "commit", "tree"]


@pytest.mark.parametrize("mirror", [False, True])
async def test_more_files_than_a_version_may_have(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch, mirror: bool
) -> None:
    """A repository of more than 50,000 files is refused, with what to name in its place; also without a tree."""
    hub.page_size = 100_000
    extra = [{"type": "file", "path": f"{n}", "size": 1, "oid": f"{n:040x}"} for n in range(50_000)]
    hub.add(NAME, model).extra_entries += extra
    if mirror:
        hub.fail(404, "/tree/")
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("too_many_files", True)
    assert "name the folder" in error.remedy
