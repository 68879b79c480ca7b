"""What every `Source` of ours promises beyond the conformance suite (manifests, error codes, tags), asked of a folder,
of nginx's index, of two S3 servers, of Google Cloud Storage and Azure Blob Storage (stand-ins, and the emulators where
they are installed) and of a Hub."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import CHAINS_NAME
from cached.core.listing import Listing, RemoteFile
from cached.fetch.bodies.local_file import LocalBody
from cached.sources.base import Describing, Revalidating, Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget, LocalTarget
from tests.support.choosing import chosen
from tests.support.clients import lone_client
from tests.support.fake_hub import FakeHub
from tests.support.filling import manifest_of
from tests.support.hub_cases import NAME, write
from tests.support.nginx import nginx
from tests.support.object_stores import ENVIRONMENT, Store
from tests.support.registry import RunningRegistry
from tests.support.s3 import SECRET_KEY, S3Server

FILES = {
    "config.json": b'{"hidden_size": 8}\n',
    "model.safetensors": bytes(range(256)) * 5000,
    "sub dir/deep/späß #1%+.txt": b"x",
    "w.bin": b"weights",
}


@dataclass(frozen=True)
class Place:
    """Where a version lies, and how a test puts files there. `at`: the place as errors show it; `gone`: the location
    of nothing, of the same kind; `no_names`: names that are others there."""

    kind: str
    uri: str
    gone: str
    at: str
    put: Callable[[Mapping[str, bytes]], None]
    no_names: tuple[str, ...] = ()


def putting(folder: Path) -> Callable[[Mapping[str, bytes]], None]:
    def put(files: Mapping[str, bytes]) -> None:
        write(folder, dict(files))

    return put


def in_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    gone = (tmp_path / "models" / "gone").as_uri()
    yield Place("file", folder.as_uri(), gone, str(folder), putting(folder))


def at_nginx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    puts = itertools.count()

    def put(files: Mapping[str, bytes]) -> None:
        write(folder, dict(files))
        written = time.time() - 3600 + next(puts)  # nginx's ETag is the mtime in seconds, and the size
        for path in files:
            os.utime(folder / path, (written, written))

    with nginx(tmp_path / "nginx", tmp_path / "models", "autoindex on;") as base:
        yield Place("http", f"{base}/m", f"{base}/gone", f"{base}/m", put)


def in_bucket(request: pytest.FixtureRequest, server: S3Server) -> Iterator[Place]:
    monkeypatch = request.getfixturevalue("monkeypatch")
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    client, bucket = server.client(), f"models-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)

    def put(files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            client.put_object(Bucket=bucket, Key=f"m/{path}", Body=data)

    yield Place("s3", f"s3://{bucket}/m/", f"s3://{bucket}/gone/", f"s3://{bucket}/m", put)


def at_moto(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    return in_bucket(request, request.getfixturevalue("moto"))


def at_rclone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    return in_bucket(request, request.getfixturevalue("rclone"))


def in_store(request: pytest.FixtureRequest, store: Store) -> Iterator[Place]:
    monkeypatch = request.getfixturevalue("monkeypatch")
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)

    def put(files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            store.put(path, data)

    kind = store.uri.partition(":")[0]
    base = store.uri.removesuffix("m/")
    no_names = ("a\\b",) if kind == "az" else ()  # Azure stores a backslash as a slash
    yield Place(kind, store.uri, f"{base}gone/", f"{base}m", put, no_names)


def stored_in(fixture: str) -> Callable[[pytest.FixtureRequest, Path], Iterator[Place]]:
    return lambda request, _tmp_path: in_store(request, request.getfixturevalue(fixture))


def at_a_hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    hub: FakeHub = request.getfixturevalue("hub")
    (tmp_path / "commits" / "0").mkdir(parents=True)
    hub.add(NAME, tmp_path / "commits" / "0")
    files: dict[str, bytes] = {}

    def put(more: Mapping[str, bytes]) -> None:
        files.update(more)  # each commit's folder stays as it is
        hub.commit(NAME, write(tmp_path / "commits" / uuid4().hex, files))

    yield Place("hf", f"hf://{NAME}@main", f"hf://{NAME}@gone", NAME, put)


def in_registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    registry: RunningRegistry = request.getfixturevalue("registry")
    request.getfixturevalue("monkeypatch").setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    repository, files = f"team/{uuid4().hex[:12]}", dict[str, bytes]()

    def put(more: Mapping[str, bytes]) -> None:
        files.update(more)
        registry.put_raw(repository, "v1", files)

    uri = f"oci://{registry.host}/{repository}"
    yield Place("oci", f"{uri}:v1", f"{uri}:gone", f"{uri}:v1", put)


EVERYWHERE = {
    "folder": in_folder,
    "nginx": at_nginx,
    "moto": at_moto,
    "rclone": at_rclone,
    "hub": at_a_hub,
    "gcs": stored_in("gcs_store"),
    "fake-gcs-server": stored_in("gcs_emulator_store"),
    "azure": stored_in("azure_store"),
    "azurite": stored_in("azurite_store"),
    "oci": in_registry,
}


@pytest.fixture(params=EVERYWHERE)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    yield from EVERYWHERE[request.param](request, tmp_path)


@pytest.fixture(params=["folder", "nginx", "moto", "rclone", "gcs", "fake-gcs-server", "azure", "azurite"])
def published_to(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """The places that `holdfast publish` writes to, and a web server over one."""
    yield from EVERYWHERE[request.param](request, tmp_path)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HttpClient]:
    with lone_client(monkeypatch, tmp_path) as client:
        yield client


@asynccontextmanager
async def opened(uri: str, client: HttpClient) -> AsyncIterator[Source]:
    source = open_source(uri, client)
    try:
        yield source
    finally:
        await source.aclose()


async def resolve(place: Place, client: HttpClient) -> Listing:
    async with opened(place.uri, client) as source:
        return await source.resolve()


async def refusal(uri: str, client: HttpClient) -> HoldfastError:
    """Why a version cannot be had there: with a remedy, and without a secret."""
    with pytest.raises(HoldfastError) as caught:
        async with opened(uri, client) as source:
            await chosen(source)
    assert caught.value.remedy
    assert SECRET_KEY not in repr(caught.value) + str(caught.value)
    return caught.value


async def read(source: Source, file: RemoteFile, client: HttpClient) -> bytes:
    """A file's bytes, from where the source says that they are."""
    target = await source.locate(file)
    if isinstance(target, HttpTarget):
        return (await asyncio.to_thread(client.fetch, target, 1 << 24, Cancellation())).body
    assert isinstance(target, LocalTarget)
    found, body = bytearray(os.stat(target.path).st_size), LocalBody(target, 0, None)
    try:
        assert body.readinto(memoryview(found)) == len(found)
    finally:
        body.close()
    return bytes(found)


def by_path(listing: Listing) -> dict[str, RemoteFile]:
    return {file.path: file for file in listing.files}


async def test_published_chaining_values_lie_beside_the_manifest(place: Place, client: HttpClient) -> None:
    """A source of versions that `publish` wrote says where their chaining values are, which are no file of the version;
    the address leads to them where they are there, and to `not_found` elsewhere, unless the listing tells that."""
    manifest = {"holdfast.json": manifest_of(FILES).canonical()}
    place.put(FILES | manifest)
    async with opened(place.uri, client) as source:
        chains = (await source.resolve()).chains
        if chains is None:
            assert place.kind in ("hf", "oci", "file")
        else:
            with pytest.raises(Permanent) as caught:
                await read(source, chains, client)
            assert caught.value.code == "not_found"
        place.put({CHAINS_NAME: b"chains"} | manifest)
        listing = await source.resolve()
        assert set(by_path(listing)) == set(FILES)
        if listing.chains is not None:
            assert await read(source, listing.chains, client) == b"chains"
        else:
            assert place.kind == "oci"


async def test_named_files_are_found_without_a_listing(place: Place, client: HttpClient) -> None:
    """A source that finds named files says of each what a listing says, in their order; of a missing one, and of a
    name that leads out of the location, what is wrong."""
    place.put(FILES)
    async with opened(place.uri, client) as source:
        if not isinstance(source, Describing):
            return
        names = ["w.bin", "gone.bin", "sub dir/deep/späß #1%+.txt", "../m/w.bin"]
        found = await source.find(names)
        listed = by_path(await source.resolve())
        assert [file.path for file in found.files] == names
        for file in found.files[0], found.files[2]:
            assert file.problem is None and replace(file, weak_validators=None) == replace(
                listed[file.path], weak_validators=None
            )
            assert await read(source, file, client) == FILES[file.path]
        problems = [file.problem for file in (found.files[1], found.files[3])]
        assert [problem is not None and problem.code for problem in problems] == ["not_found", "bad_name"]
    assert found.identity == (await resolve(place, client)).identity


async def test_a_manifest_decides_what_the_version_is(place: Place, client: HttpClient) -> None:
    """With a `holdfast.json` the listing is the manifest's, sha256 included, whatever else lies there."""
    manifest = manifest_of({path: FILES[path] for path in ("w.bin", "sub dir/deep/späß #1%+.txt")})
    place.put({**FILES, "holdfast.json": manifest.canonical()})
    async with opened(place.uri, client) as source:
        listing = await source.resolve()
        assert listing.manifest == manifest
        assert [(file.path, file.sha256, file.size) for file in listing.files] == [
            (entry.path, entry.sha256, entry.size) for entry in manifest.files
        ]
        for file in listing.files:
            assert await read(source, file, client) == FILES[file.path]


async def test_a_manifest_that_is_none_is_refused(place: Place, client: HttpClient) -> None:
    """A broken `holdfast.json` is an error that says where it lies, not a reason to list the folder instead."""
    place.put({"w.bin": b"x", "holdfast.json": b"{}"})
    error = await refusal(place.uri, client)
    assert (error.code, error.permanent) == ("invalid_manifest", True)
    assert place.at in error.message and "holdfast.json" in error.message


async def test_holdfasts_own_records_are_no_content(place: Place, client: HttpClient) -> None:
    """What lies in `.holdfast/` is no file of a version."""
    place.put({"w.bin": b"x", ".holdfast/verified.json": b"{}"})
    async with opened(place.uri, client) as source:
        assert list(await chosen(source)) == ["w.bin"]


async def test_an_unfinished_publish_is_no_version(published_to: Place, client: HttpClient) -> None:
    """While the mark of a publish is there and no manifest, the files are not taken for a version."""
    published_to.put({"w.bin": b"abc", ".holdfast/publishing": b""})
    error = await refusal(published_to.uri, client)
    assert isinstance(error, Transient) and error.code == "publishing"


async def test_what_is_nowhere_is_not_found(place: Place, client: HttpClient) -> None:
    """A location without a version is permanent: no time brings it."""
    place.put({"w.bin": b"x"})
    error = await refusal(place.gone, client)
    assert isinstance(error, Permanent) and error.code == "not_found"


@pytest.mark.parametrize("other", ["W.BIN", "a\\b"])
async def test_a_name_that_no_version_may_have_is_refused_where_it_is_chosen(
    place: Place, client: HttpClient, other: str
) -> None:
    """A bad name, or one that differs only in case, is `bad_name`; left out by the filters it harms no other."""
    if other in place.no_names:
        pytest.skip(f"{other!r} is another name there")
    place.put({"w.bin": b"abc", other: b"x"})
    error = await refusal(place.uri, client)
    assert isinstance(error, Permanent) and error.code == "bad_name"
    async with opened(place.uri, client) as source:
        (file,) = (await chosen(source, ["w.bin"])).values()
        assert await read(source, file, client) == b"abc"


async def test_the_same_is_named_the_same(place: Place, client: HttpClient) -> None:
    """Two listings of one place have one identity, 64 hex digits, and the same keys; another place has neither."""
    place.put(FILES)
    first, again = await resolve(place, client), await resolve(place, client)
    assert first.identity == again.identity
    assert len(first.identity) == 64 and not set(first.identity) - set("0123456789abcdef")
    assert {path: file.key for path, file in by_path(first).items()} == {
        path: file.key for path, file in by_path(again).items()
    }
    assert len({(first.identity, file.key) for file in first.files}) == len(FILES)


async def test_a_replaced_file_is_of_another_version(place: Place, client: HttpClient) -> None:
    """A file with other bytes never goes by what named the old ones."""
    place.put(FILES)
    before = await resolve(place, client)
    place.put({"w.bin": b"other weights"})
    after = await resolve(place, client)
    old, new = by_path(before)["w.bin"], by_path(after)["w.bin"]
    assert (before.identity, old.key, old.version) != (after.identity, new.key, new.version)
    async with opened(place.uri, client) as source:
        assert await read(source, new, client) == b"other weights"


async def test_a_tag_is_current_until_the_version_changes(place: Place, client: HttpClient) -> None:
    """A source confirms the tag of a listing while the listing is the same, and never after another publish."""
    first, second = ({"w.bin": b"x"}, {"w.bin": b"other"})
    place.put({**first, "holdfast.json": manifest_of(first).canonical()})
    async with opened(place.uri, client) as source:
        tag = (await source.resolve()).tag
        if not isinstance(source, Revalidating):
            assert tag is None
            return
        assert tag is not None
        assert await source.is_current(tag)
        place.put({**second, "holdfast.json": manifest_of(second).canonical()})
        assert not await source.is_current(tag)
        assert (await source.resolve()).tag != tag


async def test_a_source_says_what_it_is_and_ends_twice(place: Place, client: HttpClient) -> None:
    """Its kind is the metric label, what it shows leads there without a secret, and closing it again does nothing."""
    source = open_source(place.uri, client)
    assert source.kind == place.kind
    assert source.display.rstrip("/") == place.uri.rstrip("/")
    assert SECRET_KEY not in source.display + repr(source)
    place.put({"w.bin": b"x"})
    await source.resolve()
    await source.aclose()
    await source.aclose()
