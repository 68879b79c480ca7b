"""`holdfast publish` to Google Cloud Storage and Azure Blob Storage, as the program people run; and what a write does
where a request breaks, arrives twice, or another program was first. The stand-ins are written from the documentation of
the services."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cached.conformance.cases import digest_of
from cached.contract.errors import Permanent, Transient
from cached.contract.manifest import PUBLISHING_NAME, FileEntry
from cached.contract.snapshot.verify import hash_file
from cached.publish import requests
from cached.publish.azure.destination import AzureDestination
from cached.publish.destination import PART_BYTES, Destination, Upload
from cached.publish.gcs.destination import GcsDestination
from cached.publish.mark import Mark
from tests.support.object_stores import ENVIRONMENT, FakeAzureStore, FakeGcsStore
from tests.support.publishing import published, tensors

ODD = {
    "config.json": b"{}",
    "model.safetensors": tensors(300_000),
    "sub dir/ñ + % # ?.txt": b"x",
    "nested/folder/empty.txt": b"",
}


@pytest.fixture(params=["gcs", "azure", "gcs_emulator", "azurite"])
def anywhere(request: pytest.FixtureRequest) -> FakeGcsStore | FakeAzureStore:
    """Every store, the emulators where they are installed."""
    store: FakeGcsStore | FakeAzureStore = request.getfixturevalue(f"{request.param}_store")
    return store


@pytest.fixture(params=["gcs", "azure"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeGcsStore | FakeAzureStore:
    """A stand-in, which this process uses without patience."""
    found: FakeGcsStore | FakeAzureStore = request.getfixturevalue(f"{request.param}_store")
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(requests, "_WAIT_S", 0.01)
    monkeypatch.setattr(found.server, "fail", lambda _method, _path: None)
    return found


def opened(store: FakeGcsStore | FakeAzureStore) -> Destination:
    return (GcsDestination if isinstance(store, FakeGcsStore) else AzureDestination)(store.uri, 2)


def folder(base: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_bytes(data)
    return base


def upload_of(path: Path, data: bytes) -> Upload:
    path.write_bytes(data)
    return Upload(FileEntry(path.name, hash_file(path), len(data)), path)


def test_a_folder_has_one_digest_wherever_it_is_published(
    anywhere: FakeGcsStore | FakeAzureStore, tmp_path: Path
) -> None:
    """The manifest is that of the contents, the bytes are there under their own names, a second publish uploads
    nothing, and a damaged file is mended by `--force`."""
    model, env = folder(tmp_path / "model", ODD), anywhere.environment
    facts = published(model, anywhere.uri, env=env)
    assert facts["digest"] == str(digest_of(ODD))
    stored = anywhere.files()
    manifest = stored.pop("holdfast.json")
    assert stored == ODD
    assert f"sha256:{hashlib.sha256(manifest).hexdigest()}" == facts["digest"]
    assert [file["path"] for file in json.loads(manifest)["files"]] == sorted(ODD)
    assert published(model, anywhere.uri, env=env)["uploaded_files"] == 0
    anywhere.put("config.json", b"[]")
    assert published(model, anywhere.uri, "--force", env=env)["uploaded_files"] == 1
    assert anywhere.files()["config.json"] == ODD["config.json"]


def test_a_mark_beside_a_whole_version_is_removed(anywhere: FakeGcsStore | FakeAzureStore, tmp_path: Path) -> None:
    """The mark of a publisher that was killed after the manifest does not stay: the next publish removes it."""
    model, env = folder(tmp_path / "model", ODD), anywhere.environment
    published(model, anywhere.uri, env=env)
    anywhere.put(PUBLISHING_NAME, replace(Mark.new(digest_of(ODD)), ended=True).encode())
    assert published(model, anywhere.uri, env=env)["uploaded_files"] == 0
    assert PUBLISHING_NAME not in anywhere.files()


def fail_once(path_part: str, method: str, status: int = 503) -> Callable[[str, str], tuple[int, bytes] | None]:
    """An answer with this status to the first such request."""
    seen: list[str] = []

    def fail(asked: str, path: str) -> tuple[int, bytes] | None:
        if asked != method or path_part not in path or seen:
            return None
        seen.append(path)
        return status, b"busy"

    return fail


LARGE = PART_BYTES * 2 + 5


@pytest.mark.parametrize("status", [503, 429, 500])
async def test_a_part_that_breaks_is_sent_again(
    store: FakeGcsStore | FakeAzureStore, tmp_path: Path, status: int
) -> None:
    """A large file arrives whole though the service is busy in the middle, and every byte is counted once."""
    part = "upload_id=" if isinstance(store, FakeGcsStore) else "comp=block&"
    store.server.fail = fail_once(part, "PUT", status)
    upload, counted = upload_of(tmp_path / "w.bin", bytes(range(256)) * (LARGE // 256) + b"12345"), list[int]()
    destination = opened(store)
    stored = await destination.put(upload, counted.append)
    await destination.aclose()
    assert stored.size == upload.entry.size == sum(counted)
    assert hashlib.sha256(store.files()["w.bin"]).hexdigest() == upload.entry.sha256


@pytest.mark.parametrize("store", ["gcs"], indirect=True)
async def test_a_part_goes_on_where_the_service_has_it(store: FakeGcsStore, tmp_path: Path) -> None:
    """Of a part that broke in the middle only what the service lacks is sent again; a session that is gone ends the
    publish, which may be tried again."""
    data, breaks, kept = random.Random(5).randbytes(LARGE), 3, PART_BYTES // 2

    def fail(method: str, path: str) -> tuple[int, bytes] | None:
        nonlocal breaks
        session = store.server.sessions.get(path.partition("upload_id=")[2])
        if method != "PUT" or session is None or len(session["data"]) >= kept or breaks == 0:
            return None
        breaks -= 1
        session["data"] += data[: kept if breaks == 0 else 0]
        return 503, b"busy"

    store.server.fail = fail
    upload, destination = upload_of(tmp_path / "w.bin", data), opened(store)
    await destination.put(upload, lambda _size: None)
    assert hashlib.sha256(store.files()["w.bin"]).hexdigest() == upload.entry.sha256
    store.server.fail = lambda method, _path: (410, b"gone") if method == "PUT" else None
    await destination.list_files([upload.entry])
    with pytest.raises(Transient) as caught:
        await destination.put(upload, lambda _size: None)
    await destination.aclose()
    assert caught.value.code == "upload_ended"


@pytest.mark.parametrize("store", ["azure"], indirect=True)  # a session of Google's belongs to its publisher
async def test_blocks_of_an_interrupted_publish_are_not_sent_again(store: FakeAzureStore, tmp_path: Path) -> None:
    """Another publish of the same bytes sends only what the first one did not."""
    upload = upload_of(tmp_path / "w.bin", random.Random(5).randbytes(LARGE))
    store.server.fail = lambda _method, path: (403, b"no") if "comp=blocklist&sp" in path else None
    first = opened(store)
    with pytest.raises(Permanent):
        await first.put(upload, lambda _size: None)
    await first.aclose()
    store.server.fail = lambda _method, _path: None
    store.server.requests.clear()
    counted: list[int] = []
    second = opened(store)
    await second.put(upload, counted.append)
    await second.aclose()
    assert sum(counted) == LARGE and not any("comp=block&" in path for _, path in store.server.requests)
    assert hashlib.sha256(store.files()["w.bin"]).hexdigest() == upload.entry.sha256


async def test_a_request_that_arrived_twice_is_one_write(store: FakeGcsStore | FakeAzureStore, tmp_path: Path) -> None:
    """A write whose answer was lost is sent again, and what is there by then is known as its own."""
    upload = upload_of(tmp_path / "w.bin", b"weights")
    store.put("w.bin", b"weights")
    destination = opened(store)
    stored = await destination.put(upload, lambda _size: None)
    assert (await destination.list_files([upload.entry]))["w.bin"] == stored
    await destination.aclose()


@pytest.mark.parametrize("size", [100, LARGE])
async def test_what_another_program_wrote_is_not_replaced(
    store: FakeGcsStore | FakeAzureStore, tmp_path: Path, size: int
) -> None:
    """A file that appeared, or changed, after the listing stays as it is, and the publish stops."""
    upload = upload_of(tmp_path / "w.bin", bytes(size))
    destination = opened(store)
    for already in (None, b"listed"):
        if already is not None:
            store.put("w.bin", already)
        await destination.list_files([upload.entry])
        store.put("w.bin", b"another program's")
        with pytest.raises(Permanent) as caught:
            await destination.put(upload, lambda _size: None)
        assert caught.value.code == "another_publisher" and "w.bin" in caught.value.message
        assert store.files()["w.bin"] == b"another program's"
    with pytest.raises(Permanent) as caught:
        store.put("holdfast.json", b"{}")
        await destination.seal(b'{"other": 1}')
    assert caught.value.code == "another_publisher"
    await destination.aclose()


async def test_a_service_that_stays_busy_ends_the_publish(store: FakeGcsStore | FakeAzureStore, tmp_path: Path) -> None:
    """After some tries the error is told, and nothing appeared."""
    store.server.fail = lambda method, _path: None if method in ("GET", "HEAD") else (503, b"busy")
    destination = opened(store)
    for size in (100, LARGE):
        with pytest.raises(Transient) as caught:
            await destination.put(upload_of(tmp_path / "w.bin", bytes(size)), lambda _size: None)
        assert caught.value.code == "http_503"
    await destination.aclose()
    assert store.files() == {}


async def test_a_denied_write_names_the_right_to_grant(store: FakeGcsStore | FakeAzureStore, tmp_path: Path) -> None:
    """403 to a write says what to grant, and shows no secret."""
    store.server.fail = lambda method, _path: None if method in ("GET", "HEAD") else (403, b"denied")
    destination = opened(store)
    with pytest.raises(Permanent) as caught:
        await destination.put(upload_of(tmp_path / "w.bin", b"x"), lambda _size: None)
    await destination.aclose()
    assert caught.value.code == "forbidden"
    assert "roles/storage.objectUser" in caught.value.remedy or "Blob Data Contributor" in caught.value.remedy
    assert "sig=" not in str(caught.value)
