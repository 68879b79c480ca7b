"""What every destination promises, asked of a folder, of S3, of Google Cloud Storage and Azure Blob Storage (stand-ins,
and the emulators where installed)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from cached.conformance.front import ProxiedRequest, front_of
from cached.contract.digest import Digest
from cached.contract.errors import Permanent, Transient
from cached.contract.manifest import FileEntry
from cached.contract.snapshot.verify import hash_file
from cached.publish.azure.destination import AzureDestination
from cached.publish.destination import PART_BYTES, Destination, Upload
from cached.publish.folder import FolderDestination
from cached.publish.gcs.destination import GcsDestination
from cached.publish.mark import Mark
from cached.publish.s3.destination import S3Destination
from tests.support.object_stores import ENVIRONMENT, FakeAzureStore, FakeGcsStore, Store
from tests.support.s3 import S3Server
from tests.support.s3_policy import everything, guarded

MARK = Mark.new(Digest.of(b""))


@dataclass
class Place:
    """A destination, and what lies there, by path; `litter` is what a failed upload left unseen."""

    destination: Destination
    stored: Callable[[], dict[str, int]]
    litter: Callable[[], list[str]]


STORES = {
    "gcs": "gcs_store",
    "fake-gcs-server": "gcs_emulator_store",
    "azure": "azure_store",
    "azurite": "azurite_store",
}


@pytest.fixture(params=["folder", "s3", *STORES])
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Place]:
    if request.param == "folder":
        found = in_folder(tmp_path / "out")
    elif request.param in STORES:
        found = in_store(request.getfixturevalue(STORES[request.param]), monkeypatch)
    else:
        server: S3Server = request.getfixturevalue("moto")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        found = in_bucket(server)
    yield found
    await found.destination.aclose()


def in_folder(base: Path) -> Place:
    def stored() -> dict[str, int]:
        return {str(p.relative_to(base)): p.stat().st_size for p in base.rglob("*") if p.is_file()}

    return Place(FolderDestination(base), stored, lambda: [path for path in stored() if "/.tmp-" in path])


def in_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Place:
    use(store, monkeypatch)

    def stored() -> dict[str, int]:
        return {path: len(data) for path, data in store.files().items()}

    def litter() -> list[str]:
        return list(store.server.sessions) if isinstance(store, FakeGcsStore) else []

    return Place(opened(store), stored, litter)


def opened(store: Store) -> Destination:
    return (GcsDestination if store.uri.startswith("gs:") else AzureDestination)(store.uri, 3)


def use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)


def in_bucket(server: S3Server) -> Place:
    client, bucket = server.client(), f"models-{uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket)

    def stored() -> dict[str, int]:
        listed = client.list_objects_v2(Bucket=bucket, Prefix="m/").get("Contents", [])
        return {item["Key"][2:]: item["Size"] for item in listed}

    def litter() -> list[str]:
        return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]

    return Place(S3Destination(f"s3://{bucket}/m", 3), stored, litter)


def upload_of(path: Path, size: int) -> Upload:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)
    return Upload(FileEntry(path.name, hash_file(path), size), path)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES, PART_BYTES + 1])
async def test_a_file_arrives_whole_and_vouched_for(place: Place, tmp_path: Path, size: int) -> None:
    """What was put is there with its size and sha256, and every byte was counted once."""
    upload = upload_of(tmp_path / "in" / "w", size)
    counted: list[int] = []
    await place.destination.claim(MARK, print)
    stored = await place.destination.put(upload, counted.append)
    assert sum(counted) == size and stored.size == size
    assert await place.destination.list_files([upload.entry]) == {"w": stored}
    assert await place.destination.vouches_for(upload, stored)
    assert await place.destination.get_sha256("w") == upload.entry.sha256
    assert await place.destination.get_sha256("gone") is None


@pytest.mark.parametrize("size", [100, PART_BYTES + 100])
@pytest.mark.parametrize("change", ["shorter", "longer", "other", "pipe"])
async def test_a_file_that_changed_after_hashing_never_appears(
    place: Place, tmp_path: Path, size: int, change: str
) -> None:
    """Bytes other than those the manifest lists are refused by name, and leave nothing behind, seen or unseen."""
    upload = upload_of(tmp_path / "in" / "w", size)
    if change == "other":
        with upload.real.open("r+b") as file:
            file.write(b"x")
    elif change == "pipe":
        upload.real.unlink()
        os.mkfifo(upload.real)
    else:
        os.truncate(upload.real, size + (1 if change == "longer" else -1))
    await place.destination.claim(MARK, print)
    with pytest.raises(Permanent) as caught:
        await place.destination.put(upload, lambda _size: None)
    assert caught.value.code == "changed_while_publishing" and str(upload.real) in caught.value.message
    assert set(place.stored()) == {".holdfast/publishing"}
    assert place.litter() == []


@pytest.mark.parametrize("size", [100, PART_BYTES + 100])
async def test_a_file_that_changed_into_what_is_stored_is_not_vouched_for(
    place: Place, tmp_path: Path, size: int
) -> None:
    """A stored file with the bytes that the local one has by now, and not with those that were hashed, counts for no
    manifest of the hashed ones."""
    hashed = upload_of(tmp_path / "in" / "w", size)
    with hashed.real.open("r+b") as file:
        file.write(b"x")
    now = Upload(FileEntry("w", hash_file(hashed.real), size), hashed.real)
    await place.destination.claim(MARK, print)
    stored = await place.destination.put(now, lambda _size: None)
    await place.destination.list_files([hashed.entry])
    try:
        vouched = await place.destination.vouches_for(hashed, stored)
    except Permanent as error:
        vouched = False
        assert error.code == "changed_while_publishing"
    assert not vouched


@pytest.mark.parametrize("answer", ["lost", "never"])
async def test_an_upload_that_s3_has_no_more(
    moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """Where S3 made the object of the parts and its answer was lost, the request sent again finds no upload: the object
    with the ETag of these parts is the file. Without it the upload is told as gone, and not as one that stays."""
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"models-{uuid4().hex[:12]}"
    moto.client().create_bucket(Bucket=bucket)
    upload = upload_of(tmp_path / "in" / "w", PART_BYTES + 1)

    def ends(asked: ProxiedRequest) -> bool:
        return asked.method in ("POST", "DELETE") and "uploadId=" in asked.path

    gone = b"<Error><Code>NoSuchUpload</Code><Message>completed or aborted</Message></Error>"
    with front_of(moto.url) as front:
        if answer == "lost":
            front.cut(0, choose=ends)
        front.answer(404, gone, {"Content-Type": "application/xml"}, times=None, choose=ends)
        destination = S3Destination(f"s3://{bucket}/m?endpoint_url={front.url}&addressing_style=path", 3)
        if answer == "lost":
            stored = await destination.put(upload, lambda _size: None)
            assert await destination.list_files([upload.entry]) == {"w": stored}
            assert await destination.vouches_for(upload, stored)
        else:
            with pytest.raises(Transient) as caught:
                await destination.put(upload, lambda _size: None)
            assert caught.value.code == "upload_ended" and caught.value.remedy
            assert not getattr(caught.value, "__notes__", ())
        await destination.aclose()


async def test_marks_manifest_and_files_come_and_go(place: Place) -> None:
    """Each step shows at the destination, and every removal may be repeated."""
    destination = place.destination
    assert await destination.read_manifest() is None
    await destination.claim(MARK, print)
    await destination.seal(b"{}")
    assert await destination.read_manifest() == b"{}"
    assert set(place.stored()) == {".holdfast/publishing", "holdfast.json"}
    await destination.keep_claim()
    again: list[Callable[[], Awaitable[None]]] = [destination.withdraw, destination.withdraw, destination.unmark]
    for step in again:
        await step()
    await destination.delete("never/was")
    assert place.stored() == {}


async def test_chaining_values_are_no_file_of_the_version(place: Place) -> None:
    """The file of chaining values is written, replaced and deleted under a reserved name, also under a manifest."""
    destination = place.destination
    assert destination.keeps_chains
    assert await destination.read_chains() is None
    await destination.claim(MARK, print)
    for data in (b"chains", b"others"):
        assert await destination.list_files([]) == {}
        await destination.write_chains(data)
        assert await destination.read_chains() == data
        await destination.seal(b"{}") if data == b"chains" else None
    await destination.unmark()
    assert set(place.stored()) == {".holdfast/chains", "holdfast.json"}
    await destination.delete(".holdfast/chains")
    assert await destination.read_chains() is None


@pytest.mark.parametrize("size", [100, PART_BYTES + 100])
@pytest.mark.parametrize("kind", ["folder", "s3", "gcs", "azure"])
async def test_a_destination_that_stores_other_bytes_is_found_out(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    """Bytes that change on their way to the disk, or to the store, are read back or known by the store's checksum."""
    upload = upload_of(tmp_path / "in" / "w", size)
    with spoiling(kind, request, tmp_path, monkeypatch) as destination:
        with pytest.raises(Permanent) as caught:
            await destination.put(upload, lambda _size: None)
        await destination.aclose()
    assert caught.value.code == "stored_wrong" and "w" in caught.value.message and caught.value.remedy


@contextmanager
def spoiling(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Destination]:
    """A destination that flips a bit of every file, behind every check of what is sent."""
    if kind == "folder":
        write = os.write
        monkeypatch.setattr("cached.publish.folder.os.write", lambda descriptor, data: write(descriptor, flipped(data)))
        (tmp_path / "out" / ".holdfast").mkdir(parents=True)
        yield FolderDestination(tmp_path / "out")
        return
    if kind in STORES:
        store: FakeGcsStore | FakeAzureStore = request.getfixturevalue(STORES[kind])
        use(store, monkeypatch)
        monkeypatch.setattr(store.server, "alter", lambda data: flipped(data) if data else data)
        yield opened(store)
        return
    server: S3Server = request.getfixturevalue("moto")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"models-{uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=bucket)
    with guarded(server.url, everything, lambda method, _path, body: flipped(body) if method == "PUT" else body) as url:
        yield S3Destination(f"s3://{bucket}/m?endpoint_url={url}&addressing_style=path", 3)


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + bytes(data[1:])
