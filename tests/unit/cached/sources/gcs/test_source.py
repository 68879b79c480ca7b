"""Google Cloud Storage: what is listed, what is read, and what is said of bad answers. The stand-in is written from the
service's documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cached.contract.errors import Permanent, Transient
from cached.contract.trust import Trust
from cached.core.listing import Algorithm, Listing, RemoteFile
from cached.sources.gcs.source import GcsSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.choosing import chosen
from tests.support.fake_gcs import FakeGcs, fake_gcs

BUCKET = "acme-models"


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch, client: HttpClient) -> Iterator[FakeGcs]:
    with fake_gcs() as server:
        server.buckets[BUCKET] = {}
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.host)
        yield server


def by_path(listing: Listing) -> dict[str, RemoteFile]:
    return {file.path: file for file in listing.files}


async def test_every_object_is_checked(gcs: FakeGcs, client: HttpClient) -> None:
    """The service's own crc32c is promised for each file, also for a composed object, which has no md5."""
    gcs.put(BUCKET, "m/w.bin", b"123456789")
    gcs.put(BUCKET, "m/composed.bin", b"x", has_md5=False)
    found = by_path(await GcsSource(f"gs://{BUCKET}/m/", client).resolve())
    checksum = found["w.bin"].checksum
    assert checksum is not None and (checksum.algorithm, checksum.hex) == (Algorithm.CRC32C, "e3069283")
    assert {file.trust for file in found.values()} == {Trust.CHECKED}
    assert [each.algorithm for each in found["composed.bin"].sums] == [Algorithm.CRC32C]


async def test_markers_of_folders_are_no_files_and_empty_files_are(gcs: FakeGcs, client: HttpClient) -> None:
    """The empty `…/` objects that consoles create are left out, an empty file is not."""
    for name in ("m/", "m/sub/", "m/sub/empty.txt", "m/w.bin"):
        gcs.put(BUCKET, name, b"x" if name == "m/w.bin" else b"")
    listing = await GcsSource(f"gs://{BUCKET}/m", client).resolve()
    assert {file.path: file.size for file in listing.files} == {"sub/empty.txt": 0, "w.bin": 1}


async def test_one_object_is_a_version(gcs: FakeGcs, client: HttpClient) -> None:
    """A location that names one object has that one file, without its folder."""
    gcs.put(BUCKET, "m/a/w.gguf", b"weights")
    source = GcsSource(f"gs://{BUCKET}/m/a/w.gguf", client)
    (file,) = (await source.resolve()).files
    assert (file.path, file.size) == ("w.gguf", 7)


async def test_a_replaced_object_is_a_changed_source(gcs: FakeGcs, client: HttpClient) -> None:
    """Every read names the generation that was listed: after an overwrite, or a deletion, nothing else comes."""
    gcs.put(BUCKET, "m/w.bin", b"old weights")
    source = GcsSource(f"gs://{BUCKET}/m/", client)
    (file,) = (await source.resolve()).files
    target = await source.locate(file)
    assert client.fetch(target, 100, Cancellation()).body == b"old weights"
    gcs.put(BUCKET, "m/w.bin", b"new weights")
    for _ in range(2):
        with pytest.raises(Transient) as caught:
            client.fetch(target, 100, Cancellation())
        assert caught.value.code == "source_changed"
        gcs.buckets[BUCKET].pop("m/w.bin", None)


async def test_an_object_stored_compressed_is_refused_where_it_is_chosen(gcs: FakeGcs, client: HttpClient) -> None:
    """The service unpacks `Content-Encoding: gzip` on the way, without a length: refused when listed, by name."""
    gcs.put(BUCKET, "m/w.bin", b"weights")
    gcs.put(BUCKET, "m/vocab.json", b"{}", encoding="gzip")
    source = GcsSource(f"gs://{BUCKET}/m/", client)
    with pytest.raises(Permanent) as caught:
        await chosen(source)
    assert caught.value.code == "encoded" and "vocab.json" in caught.value.message
    assert list(await chosen(source, ["*.bin"])) == ["w.bin"]


async def test_a_requester_pays_bucket_names_its_payer(gcs: FakeGcs, client: HttpClient) -> None:
    """Without a project the error says which parameter to add; with it every request names the project."""
    gcs.payer = "acme-billing"
    gcs.put(BUCKET, "m/w.bin", b"weights")
    with pytest.raises(Permanent) as caught:
        await GcsSource(f"gs://{BUCKET}/m/", client).resolve()
    assert "user_project" in caught.value.remedy
    source = GcsSource(f"gs://{BUCKET}/m/?user_project=acme-billing", client)
    (file,) = (await source.resolve()).files
    assert client.fetch(await source.locate(file), 100, Cancellation()).body == b"weights"


async def test_a_thousand_objects_come_in_pages(gcs: FakeGcs, client: HttpClient) -> None:
    """A listing has every page's objects, each once."""
    gcs.page_size = 7
    names = [f"{number:02d} ñ+%#?&.bin" for number in range(50)]
    for name in names:
        gcs.put(BUCKET, f"m/{name}", b"x")
    listing = await GcsSource(f"gs://{BUCKET}/m/", client).resolve()
    assert [file.path for file in listing.files] == names


def _page(**item: object) -> bytes:
    found = {"name": "m/w.bin", "size": "1", "generation": "5", "crc32c": "AAAAAA==", **item}
    return json.dumps({"items": [found]}).encode()


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><html><title>Sign in</title></html>",
        b'{"items": [{"name": "m/w.b',
        b"[" * 100_000,
        b"[]",
        b'{"items": {}}',
        b'{"items": ["m/w.bin"]}',
        b'{"items": [], "nextPageToken": 5}',
        b'{"items": [], "nextPageToken": "again"}',
        _page(name="other/w.bin"),
        _page(name=5),
        _page(size="-1"),
        _page(size="9" * 400),
        _page(size=None),
        _page(generation="x"),
        _page(crc32c="AAAA"),
        _page(crc32c=7),
        json.dumps({"items": [json.loads(_page())["items"][0]] * 2}).encode(),
    ],
)
async def test_a_bad_listing_is_a_bad_response(gcs: FakeGcs, client: HttpClient, page: bytes) -> None:
    """Whatever is no listing of the prefix is told as such, with the location, and may be tried again."""
    gcs.fail = lambda _method, path: (200, page) if "prefix=" in path else (404, b"No such object")
    with pytest.raises(Transient) as caught:
        await GcsSource(f"gs://{BUCKET}/m/", client).resolve()
    assert caught.value.code == "bad_response" and BUCKET in caught.value.message and caught.value.remedy


async def test_a_missing_bucket_is_not_found(gcs: FakeGcs, client: HttpClient) -> None:
    """A bucket that is not there is told by name."""
    with pytest.raises(Permanent) as caught:
        await GcsSource("gs://no-such-bucket/m/", client).resolve()
    assert caught.value.code == "not_found" and "no bucket no-such-bucket" in caught.value.message


@pytest.mark.parametrize(("status", "code"), [(429, "http_429"), (503, "http_503"), (500, "http_500")])
async def test_a_busy_service_is_asked_again(gcs: FakeGcs, client: HttpClient, status: int, code: str) -> None:
    """What may pass is transient."""
    gcs.fail = lambda _method, _path: (status, b'{"error": {"code": 503, "message": "Backend Error"}}')
    with pytest.raises(Transient) as caught:
        await GcsSource(f"gs://{BUCKET}/m/", client).resolve()
    assert caught.value.code == code


@pytest.mark.parametrize(
    "uri",
    [
        "gs://",
        "gs:///m/",
        "gs://UPPER/m",
        "gs://user:s3cret@bucket/m",
        "gs://bucket/m?token=s3cret",
        "gs://bucket/m?anonymous=maybe",
        "gs://bucket/m?anonymous=true&anonymous=true",
        "gs://bucket/m?s3cret",
        "gs://bucket/m?endpoint_url=ftp://h",
        "gs://bucket/m?endpoint_url=https://user:s3cret@h",
        "gs://bucket/m?endpoint_url=https://h:99999",
    ],
)
def test_what_is_no_location_is_refused(client: HttpClient, uri: str) -> None:
    """A malformed location is refused when it is opened, without a secret of it."""
    with pytest.raises(Permanent) as caught:
        GcsSource(uri, client)
    assert caught.value.code == "bad_source" and caught.value.remedy
    assert "s3cret" not in str(caught.value)
