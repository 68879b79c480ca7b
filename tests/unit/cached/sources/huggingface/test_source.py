"""`HuggingFaceSource` against the fake Hub: real sockets, real huggingface_hub, bytes read with http.client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from cached.contract.errors import InvalidManifest
from cached.contract.manifest import CHAINS_NAME
from cached.transport.git_blob import git_blob_hasher
from tests.support.fake_hub import FakeHub
from tests.support.fake_hub_repos import Access
from tests.support.filling import manifest_of
from tests.support.hub_cases import CONFIG, NAME, TOKEN, URI, WEIGHTS, by_path, hub_source, read, refusal, write

# What is listed


async def test_the_listing_has_what_the_hub_vouches_for(hub: FakeHub, model: Path) -> None:
    """Git LFS files carry their sha256, small ones their Git blob id and no sha256; the validator is that id."""
    repository = hub.add(NAME, model)
    listing = await hub_source(URI).resolve()
    files = by_path(listing)
    assert sorted(files) == sorted(
        ["config.json", "empty.txt", "model.safetensors", "onnx/model.bin", "onnx/ä b#c?.json"]
    )
    weights, config = files["model.safetensors"], files["config.json"]
    assert weights.sha256 == hashlib.sha256(WEIGHTS).hexdigest() == weights.validator
    assert (weights.size, weights.git_oid) == (len(WEIGHTS), None)
    hasher = git_blob_hasher(len(CONFIG))
    hasher.update(CONFIG)
    assert config.git_oid == hasher.hexdigest() == config.validator
    assert (config.size, config.sha256) == (len(CONFIG), None)
    assert listing.revision == repository.refs["main"]
    assert listing.manifest is None


async def test_a_moving_revision_is_asked_for_once(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """One resolution asks once what the branch is; everything else names the commit, also after the branch moved."""
    first = hub.add(NAME, model).refs["main"]
    source = hub_source(URI)
    listing = await source.resolve()
    hub.commit(NAME, write(tmp_path / "other", {"model.safetensors": b"other"}))
    target = await source.locate(by_path(listing)["model.safetensors"])
    assert read(target) == (200, WEIGHTS)
    assert hub.count("/revision/") == 1
    others = [request.path for request in hub.requests if request.server == "hub" and "/revision/" not in request.path]
    assert others and all(first in path for path in others)


async def test_validators_do_not_depend_on_the_commit(hub: FakeHub, model: Path, tmp_path: Path) -> None:
    """A commit that leaves a file as it is leaves its validator as it is."""
    hub.add(NAME, model)
    before = by_path(await hub_source(URI).resolve())
    write(model, {"README.md": b"# new\n"})
    hub.commit(NAME, model)
    after = by_path(await hub_source(URI).resolve())
    assert {path: after[path].validator for path in before} == {path: file.validator for path, file in before.items()}
    assert before["config.json"].key != after["config.json"].key


@pytest.mark.parametrize("short", [40, 12])
async def test_a_commit_or_its_prefix_is_a_revision(hub: FakeHub, model: Path, tmp_path: Path, short: int) -> None:
    """A pinned commit is listed as it was, whatever the branch holds now."""
    first = hub.add(NAME, model).refs["main"]
    hub.commit(NAME, write(tmp_path / "other", {"other.txt": b"x"}))
    listing = await hub_source(f"hf://{NAME}@{first[:short]}").resolve()
    assert listing.revision == first
    assert "config.json" in by_path(listing)


async def test_tags_and_branches_with_a_slash_are_revisions(hub: FakeHub, model: Path) -> None:
    """A name with a `/` in it reaches the Hub as one name."""
    repository = hub.add(NAME, model)
    for name, written in (("v1.0", "v1.0"), ("feature/x", "feature%2Fx"), ("refs/pr/3", "refs/pr/3")):
        repository.refs[name] = repository.refs["main"]
        source = hub_source(f"hf://{NAME}@{written}")
        assert (await source.resolve()).revision == repository.refs["main"]
        assert source.display == f"hf://{NAME}@{written}"


async def test_a_folder_is_a_version_of_its_own(hub: FakeHub, model: Path) -> None:
    """A folder's files are listed with paths relative to it, and are read from inside it."""
    hub.add(NAME, model)
    source = hub_source(f"{URI}/onnx/")
    files = by_path(await source.resolve())
    assert sorted(files) == ["model.bin", "ä b#c?.json"]
    assert read(await source.locate(files["ä b#c?.json"])) == (200, b"[]")
    assert read(await source.locate(files["model.bin"])) == (200, WEIGHTS[:1000])


async def test_a_repository_without_an_owner_is_served(hub: FakeHub, model: Path) -> None:
    """The Hub's oldest repositories have one name only."""
    hub.add("gpt2", model)
    assert "config.json" in by_path(await hub_source("hf://gpt2").resolve())


# Manifests


@pytest.mark.parametrize("folder", ["", "v1/"])
@pytest.mark.parametrize("lfs_threshold", [1, 1024 * 1024])
async def test_a_manifest_decides_what_the_version_is(
    hub: FakeHub, tmp_path: Path, folder: str, lfs_threshold: int
) -> None:
    """With a `holdfast.json` (in Git or Git LFS) the listing is the manifest's, with its sha256, and nothing else; the
    chaining values of the version are told apart."""
    files = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
    manifest = manifest_of(files)
    stored = {f"{folder}{path}": content for path, content in files.items()}
    stored |= {f"{folder}holdfast.json": manifest.canonical(), f"{folder}README.md": b"not listed"}
    stored |= {f"{folder}{CHAINS_NAME}": b"chains", f"{folder}.holdfast/publishing": b"{}"}
    hub.lfs_threshold = lfs_threshold
    hub.add(NAME, write(tmp_path / "published", stored))
    source = hub_source(f"{URI}/{folder}" if folder else URI)
    listing = await source.resolve()
    assert listing.manifest == manifest
    assert [(file.path, file.sha256, file.size) for file in listing.files] == [
        (entry.path, entry.sha256, entry.size) for entry in manifest.files
    ]
    assert read(await source.locate(by_path(listing)["config.json"])) == (200, CONFIG)
    assert listing.chains is not None
    assert read(await source.locate(listing.chains)) == (200, b"chains")
    assert hub.violations == []


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ({"config.json": CONFIG}, "model.safetensors"),
        ({"config.json": CONFIG, "model.safetensors": WEIGHTS[::-1]}, "sha256"),
        ({"config.json": CONFIG + b" ", "model.safetensors": WEIGHTS}, "config.json"),
    ],
)
async def test_a_manifest_that_the_repository_contradicts_is_refused(
    hub: FakeHub, tmp_path: Path, stored: dict[str, bytes], named: str
) -> None:
    """A manifest that names a missing file, or another size or sha256 than the Hub's, resolves to nothing."""
    manifest = manifest_of({"config.json": CONFIG, "model.safetensors": WEIGHTS})
    hub.add(NAME, write(tmp_path / "published", stored | {"holdfast.json": manifest.canonical()}))
    error = await refusal(hub_source(URI))
    assert isinstance(error, InvalidManifest)
    assert named in error.message


async def test_manifest_bytes_that_are_not_the_listed_ones_are_retried(hub: FakeHub, tmp_path: Path) -> None:
    """A manifest whose bytes do not have the listed Git id is not believed."""
    manifest = manifest_of({"config.json": CONFIG})
    folder = write(tmp_path / "published", {"config.json": CONFIG, "holdfast.json": manifest.canonical()})
    hub.add(NAME, folder)
    content = manifest.canonical()
    (folder / "holdfast.json").write_bytes(content.replace(b"config", b"config"[::-1]))
    error = await refusal(hub_source(URI))
    assert (error.code, error.permanent) == ("source_changed", False)


# Where the bytes are


async def test_every_located_file_has_the_promised_bytes(hub: FakeHub, model: Path) -> None:
    """Bytes read from each target have the listed sha256 or Git id, whole and in ranges."""
    hub.add(NAME, model)
    source = hub_source(URI)
    for file in (await source.resolve()).files:
        target = await source.locate(file)
        status, content = read(target)
        assert (status, len(content)) == (200, file.size)
        hasher = git_blob_hasher(len(content)) if file.git_oid else hashlib.sha256()
        hasher.update(content)
        assert hasher.hexdigest() == (file.git_oid or file.sha256)
        if len(content) > 1:
            assert read(target, "bytes=1-") == (206, content[1:])
        assert (target.if_match, target.weak_validators) == (None, None)


async def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the Hub serves itself is asked for with the token, one at the CDN without, as what the Hub led to."""
    hub.tokens.add(TOKEN)
    hub.add(NAME, model, Access.PRIVATE).granted.add(TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    source = hub_source(URI)
    files = by_path(await source.resolve())
    small, large = await source.locate(files["config.json"]), await source.locate(files["model.safetensors"])
    assert dict(small.headers) == {"Authorization": f"Bearer {TOKEN}"}
    assert small.url.startswith(hub.endpoint)
    assert large.headers == ()
    assert large.url.startswith(hub.cdn)
    assert (small.chosen_by, large.chosen_by) == (None, hub.endpoint)
    assert read(small) == (200, CONFIG)
    assert read(large) == (200, WEIGHTS)
    assert hub.violations == []
    assert TOKEN not in repr((source, small, large))


async def test_a_redirect_inside_the_hub_is_followed(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub may point small files to its own cache: that is still the Hub, and gets the token."""
    hub.tokens.add(TOKEN)
    commit = hub.add(NAME, model).refs["main"]
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    source = hub_source(URI)
    files = by_path(await source.resolve())
    hub.fail(307, "/resolve/", {"Location": f"/api/resolve-cache/models/{NAME}/{commit}/config.json"})
    target = await source.locate(files["config.json"])
    assert "/api/resolve-cache/" in target.url
    assert dict(target.headers) == {"Authorization": f"Bearer {TOKEN}"}
    assert read(target) == (200, CONFIG)


async def test_locating_again_gives_a_fresh_url(hub: FakeHub, model: Path) -> None:
    """When a signed URL has ended, the next location is good again."""
    hub.add(NAME, model)
    source = hub_source(URI)
    weights = by_path(await source.resolve())["model.safetensors"]
    target = await source.locate(weights)
    hub.expire_urls()
    assert read(target)[0] == 403
    assert read(await source.locate(weights)) == (200, WEIGHTS)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-Repo-Commit": "0" * 40}, "source_changed"),
        ({"X-Linked-Size": "17"}, "source_changed"),
        ({"Location": "ftp://elsewhere/file"}, "bad_response"),
        ({"Location": "http://[broken"}, "bad_response"),
    ],
)
async def test_a_location_that_contradicts_the_listing_is_not_read(
    hub: FakeHub, model: Path, headers: dict[str, str], code: str
) -> None:
    """Another commit, another size or no HTTP URL: the location is refused, to be tried again."""
    hub.add(NAME, model)
    source = hub_source(URI)
    weights = by_path(await source.resolve())["model.safetensors"]
    hub.alter("/resolve/", headers)
    error = await refusal(source, weights)
    assert (error.code, error.permanent) == (code, False)


async def test_a_file_that_is_gone_is_not_found(hub: FakeHub, model: Path) -> None:
    """A file that the Hub no longer has is named in a permanent error."""
    repository = hub.add(NAME, model)
    source = hub_source(URI)
    config = by_path(await source.resolve())["config.json"]
    del repository.commits[repository.refs["main"]]["config.json"]
    error = await refusal(source, config)
    assert (error.code, error.permanent) == ("not_found", True)
    assert "config.json" in error.message


# The process's environment


def test_a_fresh_process_takes_endpoint_and_token_file_and_writes_nothing(
    hub: FakeHub, model: Path, tmp_path: Path
) -> None:
    """HF_ENDPOINT and HF_TOKEN_PATH count as they are at the start, and HF_HOME stays as it was."""
    hub.tokens.add(TOKEN)
    hub.add(NAME, model, Access.PRIVATE).granted.add(TOKEN)
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    program = f"""
import asyncio, json
from tests.support.hub_cases import hub_source
async def run():
    source = hub_source({URI!r})
    listing = await source.resolve()
    for file in listing.files:
        await source.locate(file)
    await source.aclose()
    print(json.dumps([file.path for file in listing.files]))
asyncio.run(run())
"""
    places = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_TOKEN_PATH": str(tmp_path / "token")}
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    } | places
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "config.json" in json.loads(done.stdout)
    assert list(home.iterdir()) == []
    assert all(NAME in request.path for request in hub.requests), "something else was asked of the Hub"
    assert TOKEN not in done.stdout + done.stderr


class Rotated(set[str]):
    """Valid tokens, of which the first ends at its third use, when the environment gets the next one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, following: str) -> None:
        super().__init__({TOKEN})
        self._monkeypatch = monkeypatch
        self._following = following
        self._uses = 0

    def __contains__(self, token: object) -> bool:
        self._uses += 1
        if self._uses == 3:
            self.clear()
            self.add("hf_next")
            self._monkeypatch.setenv("HF_TOKEN", self._following)
        return super().__contains__(token)


async def test_a_token_that_ends_in_the_middle_of_a_listing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that is replaced while a long listing runs is read again when it is refused; one that stays is final."""
    names = {f"layer-{number:02}.json": b"%d" % number for number in range(11)}
    hub.lists_blobs = False
    hub.add(NAME, write(tmp_path / "many", names))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens = Rotated(monkeypatch, "hf_next")
    assert [file.path for file in (await hub_source(URI).resolve()).files] == sorted(names)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.tokens = Rotated(monkeypatch, TOKEN)
    assert (await refusal(hub_source(URI))).code == "unauthorized"


async def test_a_token_may_be_kept_from_being_sent(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_DISABLE_IMPLICIT_TOKEN nothing carries the token."""
    hub.add(NAME, model)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    source = hub_source(URI)
    target = await source.locate(by_path(await source.resolve())["config.json"])
    assert target.headers == ()
    assert not [request for request in hub.requests if "authorization" in request.headers]


def test_the_fake_hub_runs_as_a_program(model: Path, tmp_path: Path) -> None:
    """`python -m tests.support.fake_hub DIR` serves each DIR/<org>/<name> at the address that it prints."""
    (tmp_path / "repositories" / "acme").mkdir(parents=True)
    model.rename(tmp_path / "repositories" / NAME)
    command = [sys.executable, "-m", "tests.support.fake_hub", str(tmp_path / "repositories")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            endpoint = served.stdout.readline().strip().removeprefix("HF_ENDPOINT=")
            info = huggingface_hub.HfApi(endpoint=endpoint, token=False).model_info(NAME, files_metadata=True)
        finally:
            served.terminate()
    assert {file.rfilename: file.size for file in info.siblings or ()}["model.safetensors"] == len(WEIGHTS)


async def test_what_tells_repositories_apart(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One repository's name at two Hubs, or with and without a token, is two places; a revision is in the keys."""
    hub.add(NAME, model)
    first = await hub_source(URI).resolve()
    assert (await hub_source(URI).resolve()).identity == first.identity
    assert all(file.key.startswith(f"{first.revision}:") for file in first.files)
    hub.tokens |= {"hf_one", "hf_renewed"}
    monkeypatch.setenv("HF_TOKEN", "hf_one")
    with_token = (await hub_source(URI).resolve()).identity
    monkeypatch.setenv("HF_TOKEN", "hf_renewed")
    assert (await hub_source(URI).resolve()).identity == with_token != first.identity
    with FakeHub() as other:
        other.add(NAME, model)
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setenv("HF_ENDPOINT", other.endpoint)
        assert (await hub_source(URI).resolve()).identity not in (first.identity, with_token)
