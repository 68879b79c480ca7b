"""The order of a publish, which is what makes it safe to cut anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Permanent, Transient
from cached.contract.manifest import FileEntry, Manifest
from cached.uploads.base import Progress, Upload
from cached.uploads.content import Content
from cached.uploads.publishing import Plan, plan, refuse_replacing, run


class Recorder:
    """A destination in memory that writes down what is asked of it."""

    display = "mem://v1"

    def __init__(self, files: dict[str, bytes], manifest: bytes | None = None) -> None:
        self.files = files
        self.there = manifest
        self.steps: list[str] = []
        self.failing: dict[str, Exception] = {}

    def step(self, text: str) -> None:
        self.steps.append(text)
        if text in self.failing:
            raise self.failing[text]

    async def manifest(self) -> bytes | None:
        return self.there

    async def sizes(self, files: Sequence[FileEntry]) -> dict[str, int]:
        return {f.path: len(self.files[f.path]) for f in files if f.path in self.files}

    async def sha256(self, path: str) -> str | None:
        return Digest.of(self.files[path]).hex

    async def mark(self) -> None:
        self.step("mark")

    async def withdraw(self) -> None:
        self.step("withdraw")

    async def put(self, upload: Upload, progress: Progress) -> None:
        self.step(f"put {upload.entry.path}")
        progress(upload.entry.size)

    async def seal(self, manifest: bytes) -> None:
        self.step("seal")
        self.there = manifest

    async def delete(self, path: str) -> None:
        self.step(f"delete {path}")

    async def unmark(self) -> None:
        self.step("unmark")

    async def aclose(self) -> None:
        self.step("close")


def content(**files: bytes) -> Content:
    entries = [FileEntry(path, Digest.of(data).hex, len(data)) for path, data in files.items()]
    return Content(Manifest.build(entries), tuple(Upload(entry, Path("/in") / entry.path) for entry in entries))


async def carry_out(what: Content, destination: Recorder) -> tuple[Plan, list[str]]:
    said: list[str] = []
    decided = await plan(what, destination, 2)
    await run(decided, destination, 1, lambda _size: None, said.append)
    return decided, said


async def test_a_first_publish_is_marked_until_its_manifest_is_there() -> None:
    """The mark comes before the first file, the manifest after the last, and the mark goes after the manifest."""
    destination = Recorder({})
    await carry_out(content(a=b"1", b=b"22"), destination)
    assert destination.steps == ["mark", "put b", "put a", "seal", "unmark"]


async def test_replacing_removes_the_old_manifest_before_it_could_lie() -> None:
    """Over another version: the old manifest goes before any file, old files only after the new manifest."""
    old = content(a=b"1", gone=b"x")
    destination = Recorder({"a": b"1", "gone": b"x"}, old.manifest.canonical())
    await carry_out(content(a=b"1", b=b"2"), destination)
    assert destination.steps == ["mark", "withdraw", "put b", "seal", "delete gone", "unmark"]


async def test_the_same_version_asks_for_nothing() -> None:
    """A complete version with the same manifest is left alone."""
    same = content(a=b"1")
    destination = Recorder({"a": b"1"}, same.manifest.canonical())
    decided, _ = await carry_out(same, destination)
    assert decided.is_done and destination.steps == []


async def test_a_failed_upload_writes_no_manifest() -> None:
    """One file that fails ends the publish before the manifest, as the error it is."""
    destination = Recorder({})
    destination.failing["put a"] = Transient("connect", "no connection", "later")
    with pytest.raises(Transient):
        await carry_out(content(a=b"1", b=b"22"), destination)
    assert "seal" not in destination.steps and "unmark" not in destination.steps


async def test_a_publisher_that_may_not_delete_still_publishes() -> None:
    """Tidying up that is forbidden is told, and does not fail a version that is complete."""
    destination = Recorder({})
    destination.failing["unmark"] = Permanent("forbidden", "access denied", "allow s3:DeleteObject")
    _, said = await carry_out(content(a=b"1"), destination)
    assert destination.there is not None and len(said) == 1 and "s3:DeleteObject" in said[0]


async def test_a_manifest_nobody_can_read_is_another_version() -> None:
    """What is no manifest of ours counts as another version, and names no file to delete."""
    destination = Recorder({"a": b"1"}, b"{}")
    decided = await plan(content(a=b"1"), destination, 2)
    assert decided.replaced == Digest.of(b"{}") and decided.obsolete == ()
    with pytest.raises(Permanent) as caught:
        refuse_replacing(decided, destination.display)
    assert caught.value.code == "already_published" and "--force" in caught.value.remedy
