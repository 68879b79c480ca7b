"""Azure Blob Storage: what is listed, what is read, and what is said of bad answers. The stand-in is written from the
service's documentation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cached.contract.errors import Permanent, Transient
from cached.contract.trust import Trust
from cached.core.listing import Algorithm, Listing, RemoteFile
from cached.sources.azure.source import AzureSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.choosing import chosen
from tests.support.fake_azure import ACCOUNT, FakeAzure, fake_azure, md5_of

URI = f"az://{ACCOUNT}/models/m/?anonymous=true"


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, client: HttpClient) -> Iterator[FakeAzure]:
    with fake_azure() as server:
        server.containers["models"] = {}
        monkeypatch.setenv("AZURE_STORAGE_BLOB_ENDPOINT", f"{server.url}/{{account}}")
        yield server


def by_path(listing: Listing) -> dict[str, RemoteFile]:
    return {file.path: file for file in listing.files}


async def test_a_content_md5_is_checked_and_without_one_the_etag_binds(azure: FakeAzure, client: HttpClient) -> None:
    """A blob that was uploaded whole has an MD5, and is checked; one in blocks has none, and is versioned."""
    azure.put("models", "m/small.bin", b"weights", md5=md5_of(b"weights"))
    azure.put("models", "m/large.bin", b"weights")
    found = by_path(await AzureSource(URI, client).resolve())
    checksum = found["small.bin"].checksum
    assert checksum is not None and checksum.algorithm is Algorithm.MD5
    assert (found["small.bin"].trust, found["large.bin"].trust) == (Trust.CHECKED, Trust.VERSIONED)
    assert found["large.bin"].validator.startswith('"0x')


async def test_markers_of_folders_are_no_files_and_empty_files_are(azure: FakeAzure, client: HttpClient) -> None:
    """Directories of a hierarchical account, and the empty `…/` blobs of other tools, are left out; an empty file is
    not."""
    azure.put("models", "m/sub", b"", metadata={"hdi_isfolder": "true"})
    azure.put("models", "m/other", b"", metadata={"Hdi_IsFolder": "True"})
    azure.put("models", "m/marker/", b"")
    azure.put("models", "m/sub/empty.txt", b"")
    azure.put("models", "m/w.bin", b"x")
    listing = await AzureSource(URI, client).resolve()
    assert {file.path: file.size for file in listing.files} == {"sub/empty.txt": 0, "w.bin": 1}


async def test_a_name_that_xml_cannot_hold_harms_nobody(azure: FakeAzure, client: HttpClient) -> None:
    """Such names come percent-encoded: they are decoded, refused where chosen, and harmless where left out."""
    azure.put("models", "m/odd\x01name%41.bin", b"x")
    azure.put("models", "m/w.bin", b"x")
    source = AzureSource(URI, client)
    assert "odd\x01name%41.bin" in by_path(await source.resolve())
    with pytest.raises(Permanent) as caught:
        await chosen(source)
    assert caught.value.code == "bad_name"
    assert list(await chosen(source, ["w.bin"])) == ["w.bin"]


async def test_one_blob_is_a_version(azure: FakeAzure, client: HttpClient) -> None:
    """A location that names one blob has that one file, without its folder; a longer name is another blob."""
    azure.put("models", "m/a/w.gguf", b"weights")
    azure.put("models", "m/a/w.gguf.old", b"others")
    (file,) = (await AzureSource(f"az://{ACCOUNT}/models/m/a/w.gguf?anonymous=true", client).resolve()).files
    assert (file.path, file.size) == ("w.gguf", 7)
    with pytest.raises(Permanent) as caught:
        await AzureSource(f"az://{ACCOUNT}/models/m/a/w.gg?anonymous=true", client).resolve()
    assert caught.value.code == "not_found"


async def test_a_replaced_blob_is_a_changed_source(azure: FakeAzure, client: HttpClient) -> None:
    """Every read has the listed ETag as its condition: after an overwrite nothing comes."""
    azure.put("models", "m/w.bin", b"old weights")
    source = AzureSource(URI, client)
    (file,) = (await source.resolve()).files
    target = await source.locate(file)
    assert client.fetch(target, 100, Cancellation()).body == b"old weights"
    azure.put("models", "m/w.bin", b"new weights")
    with pytest.raises(Transient) as caught:
        client.fetch(target, 100, Cancellation())
    assert caught.value.code == "source_changed"


@pytest.mark.parametrize(
    ("more", "code"),
    [({"encoding": "gzip"}, "encoded"), ({"encoding": "br"}, "encoded"), ({"tier": "Archive"}, "archived")],
)
async def test_what_cannot_be_read_is_refused_where_it_is_chosen(
    azure: FakeAzure, client: HttpClient, more: dict[str, str], code: str
) -> None:
    """An encoded blob, and one in the archive tier, are refused when listed, by name, and only if chosen."""
    azure.put("models", "m/w.bin", b"weights")
    azure.put("models", "m/vocab.json", b"{}", **more)
    source = AzureSource(URI, client)
    with pytest.raises(Permanent) as caught:
        await chosen(source)
    assert caught.value.code == code and "vocab.json" in caught.value.message
    assert list(await chosen(source, ["*.bin"])) == ["w.bin"]


async def test_a_mistaken_encoding_is_none(azure: FakeAzure, client: HttpClient) -> None:
    """Some uploads write a character set there: it changes no byte."""
    azure.put("models", "m/w.bin", b"weights", encoding="utf-8")
    source = AzureSource(URI, client)
    (file,) = (await chosen(source)).values()
    assert client.fetch(await source.locate(file), 100, Cancellation()).body == b"weights"


async def test_many_blobs_come_in_pages(azure: FakeAzure, client: HttpClient) -> None:
    """A listing has every page's blobs, each once."""
    azure.page_size = 7
    names = [f"{number:02d} ñ+%#?&<>.bin" for number in range(50)]
    for name in names:
        azure.put("models", f"m/{name}", b"x")
    assert [file.path for file in (await AzureSource(URI, client).resolve()).files] == names


def _page(blob: str = "", marker: str = "") -> bytes:
    return (
        f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{blob}</Blobs>'
        f"<NextMarker>{marker}</NextMarker></EnumerationResults>"
    ).encode()


def _blob(name: str = "<Name>m/w.bin</Name>", size: str = "1", etag: str = "0x1", md5: str = "") -> str:
    return (
        f"<Blob>{name}<Properties><Etag>{etag}</Etag><Content-Length>{size}</Content-Length>"
        f"<Content-MD5>{md5}</Content-MD5></Properties></Blob>"
    )


_BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><EnumerationResults><Blobs/><NextMarker>&c;</NextMarker>'
    b"</EnumerationResults>"
)


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html><html><title>Sign in</title></html>",
        b"",
        b"{}",
        _page(_blob())[:-30],
        _BOMB,
        _BOMB.decode().encode("utf-16"),
        b"<EnumerationResults></EnumerationResults>",
        b"<ListBucketResult><Blobs/></ListBucketResult>",
        b"<?xml version='1.0' encoding='nonsense'?><EnumerationResults><Blobs/></EnumerationResults>",
        _page(marker="again"),
        _page(_blob("<Name>other/w.bin</Name>")),
        _page(_blob("<Name></Name>")),
        _page(_blob("")),
        _page("<Blob><Name>m/w.bin</Name></Blob>"),
        _page(_blob(size="-1")),
        _page(_blob(size="9" * 400)),
        _page(_blob(size="")),
        _page(_blob(etag="")),
        _page(_blob(md5="AAAA")),
        _page(_blob() * 2),
    ],
)
async def test_a_bad_listing_is_a_bad_response(azure: FakeAzure, client: HttpClient, page: bytes) -> None:
    """Whatever is no listing of the prefix is told as such, with the location; entities are never expanded."""
    absent = b"<Error><Code>BlobNotFound</Code></Error>"
    azure.fail = lambda _method, path: (200, page) if "comp=list" in path else (404, absent)
    with pytest.raises(Transient) as caught:
        await AzureSource(URI, client).resolve()
    assert caught.value.code == "bad_response" and f"{ACCOUNT}/models" in caught.value.message and caught.value.remedy


async def test_a_missing_container_is_not_found(azure: FakeAzure, client: HttpClient) -> None:
    """A container that is not there is told by name."""
    with pytest.raises(Permanent) as caught:
        await AzureSource(f"az://{ACCOUNT}/no-such-container/m/?anonymous=true", client).resolve()
    assert caught.value.code == "not_found" and "no container no-such-container" in caught.value.message


@pytest.mark.parametrize(("status", "code"), [(503, "http_503"), (500, "http_500"), (429, "http_429")])
async def test_a_busy_service_is_asked_again(azure: FakeAzure, client: HttpClient, status: int, code: str) -> None:
    """What may pass is transient."""
    azure.fail = lambda _method, _path: (status, b"<Error><Code>ServerBusy</Code></Error>")
    with pytest.raises(Transient) as caught:
        await AzureSource(URI, client).resolve()
    assert caught.value.code == code


@pytest.mark.parametrize(
    "uri",
    [
        "az://",
        f"az://{ACCOUNT}",
        f"az://{ACCOUNT}/",
        "az:///models/m",
        "az://UPPER/models/m",
        "az://container@account.dfs.core.windows.net/m",
        f"az://{ACCOUNT}/Upper/m",
        f"az://{ACCOUNT}/models/m?sv=2022&sig=s3cret",
        f"az://{ACCOUNT}/models/m?key=s3cret",
        f"az://{ACCOUNT}/models/m?anonymous=maybe",
        f"az://{ACCOUNT}/models/m?s3cret",
        f"az://{ACCOUNT}/models/m?endpoint_url=ftp://h",
        f"az://{ACCOUNT}/models/m?endpoint_url=https://user:s3cret@h",
    ],
)
def test_what_is_no_location_is_refused(client: HttpClient, uri: str) -> None:
    """A malformed location is refused when it is opened, without a secret of it."""
    with pytest.raises(Permanent) as caught:
        AzureSource(uri, client)
    assert caught.value.code == "bad_source" and caught.value.remedy
    assert "s3cret" not in str(caught.value)
