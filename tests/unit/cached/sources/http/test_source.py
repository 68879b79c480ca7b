"""The http(s) source: what a version at a web server looks like, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cached.contract.errors import HoldfastError, InvalidManifest, Permanent, Transient
from cached.contract.manifest import FileEntry, Manifest
from cached.core.listing import Listing, WeakValidators
from cached.sources.base import Source
from cached.sources.http.index import IndexEntry, read_index
from cached.sources.http.source import WebSource
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.credentials import basic
from cached.transport.target import HttpTarget
from tests.support.choosing import chosen
from tests.support.nginx import nginx
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Redirect, Stall, Status

FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "sub dir/späß #1%.txt": b"x", ".hidden": b"h"}
MODIFIED = "Fri, 20 Nov 2026 10:00:00 GMT"


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def client() -> Iterator[HttpClient]:
    client = HttpClient(HttpSettings())
    yield client
    client.close()


@pytest.fixture
def origin() -> Iterator[HostileOrigin]:
    with HostileOrigin() as origin:
        yield origin


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for path, data in FILES.items():
        file = root / "v1" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return root


async def _contents(source: WebSource, client: HttpClient, listing: Listing) -> dict[str, bytes]:
    """Every file's bytes, read from where `locate` says."""
    found = {}
    for file in listing.files:
        target = await source.locate(file)
        response = await asyncio.to_thread(client.fetch, target, 1_000_000, Cancellation())
        assert file.size == len(response.body)
        found[file.path] = response.body
    return found


async def _error(uri: str, client: HttpClient) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        await chosen(WebSource(uri, client))
    return caught.value


def _manifest() -> Manifest:
    return Manifest.build(FileEntry(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in FILES.items())


# --- a manifest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_manifest_is_the_listing(client: HttpClient, tree: Path, tmp_path: Path, slash: str) -> None:
    """A folder with `holdfast.json` has exactly the files that it lists, with their sha256 as validators."""
    manifest = _manifest()
    (tree / "v1" / "holdfast.json").write_bytes(manifest.canonical())
    with nginx(tmp_path / "nginx", tree) as base:
        source = WebSource(f"{base}/v1{slash}", client)
        listing = await source.resolve()
        assert listing.manifest == manifest
        assert [(file.path, file.sha256, file.size) for file in listing.files] == [
            (entry.path, entry.sha256, entry.size) for entry in manifest.files
        ]
        assert all(file.validator == file.sha256 for file in listing.files)
        assert await _contents(source, client, listing) == FILES
        target = await source.locate(listing.files[0])
        assert (target.if_match, target.weak_validators) == (None, None)


async def test_a_page_is_no_manifest(client: HttpClient, origin: HostileOrigin) -> None:
    """A server that answers something else for `holdfast.json` is refused by what it is, not guessed about."""
    origin.put("/v1/holdfast.json", b"<html>Welcome</html>", content_type="text/html")
    error = await _error(origin.url("/v1?sig=s3cret"), client)
    assert (error.code, error.permanent) == ("bad_response", False)
    assert f"{origin.url('/v1/holdfast.json')}: expected holdfast.json, found a web page (HTML)" == error.message
    assert "netrc" in error.remedy and "NO_PROXY" in error.remedy
    origin.put("/v1/holdfast.json", b'{"files": 7}', content_type="application/json")
    error = await _error(origin.url("/v1"), client)
    assert isinstance(error, InvalidManifest)
    assert origin.url("/v1/holdfast.json") in error.message


async def test_a_login_that_a_redirect_leads_to_is_named(client: HttpClient, origin: HostileOrigin) -> None:
    """A login page in place of the manifest is told with both addresses, without the query that a redirect adds."""
    origin.script("/v1/holdfast.json", Redirect("/login?next=s3cret"))
    origin.put("/login", b"\n<!-- portal -->\n<!DOCTYPE html><title>Sign in</title>", content_type="text/html")
    error = await _error(origin.url("/v1/"), client)
    assert error.code == "bad_response"
    assert f"redirected to {origin.url('/login')}:" in error.message
    assert "s3cret" not in str(error)


async def test_errors_of_the_manifest_are_told(client: HttpClient, origin: HostileOrigin) -> None:
    """A manifest that cannot be read just now is an error, not a reason to look for something else."""
    origin.put("/v1", b"a file")
    origin.script("/v1/holdfast.json", Status(503), Status(401))
    assert (await _error(origin.url("/v1"), client)).code == "http_503"
    assert (await _error(origin.url("/v1"), client)).code == "unauthorized"


# --- one file ------------------------------------------------------------------------------------------------------


async def test_a_single_file(client: HttpClient, origin: HostileOrigin) -> None:
    """A URI of a file is a version of one file, named by its last segment, decoded and in NFC."""
    url = origin.put("/models/spa%CC%88t%20a.gguf", b"12345", etag='"e1"', last_modified=MODIFIED)
    source = WebSource(url, client)
    listing = await source.resolve()
    (file,) = listing.files
    assert (file.path, file.size, file.validator, file.sha256) == ("sp\u00e4t a.gguf", 5, '"e1"', None)
    target = await source.locate(file)
    assert target == HttpTarget(url, if_match='"e1"')
    assert await _contents(source, client, listing) == {"sp\u00e4t a.gguf": b"12345"}


async def test_a_weak_etag_and_a_date_are_no_validators(client: HttpClient, origin: HostileOrigin) -> None:
    """A weak ETag and a date only show a change, where the same server gives others."""
    source = WebSource(origin.put("/a.bin", b"12345", etag='W/"e1"', last_modified=MODIFIED), client)
    (file,) = (await source.resolve()).files
    assert file.validator == ""
    assert (
        file.weak_validators
        == (await source.locate(file)).weak_validators
        == WeakValidators('W/"e1"', MODIFIED, origin.url(""))
    )


async def test_no_validator_at_all(client: HttpClient, origin: HostileOrigin) -> None:
    """Without ETag and date the validator is empty and no condition is sent; each listing is of its own version."""
    source = WebSource(origin.put("/a.bin", b"12345"), client)
    (file,) = (await source.resolve()).files
    assert file.validator == ""
    assert (await source.locate(file)).if_match is None
    (again,) = (await source.resolve()).files
    assert again == file and again.version != file.version


async def test_a_query_goes_along_and_is_never_shown(client: HttpClient, origin: HostileOrigin) -> None:
    """A signed URL keeps its signature in requests, and out of keys and of what is displayed."""
    origin.put("/a.bin", b"12345")
    source = WebSource(origin.url("/a.bin?sig=s3cret"), client)
    listing = await source.resolve()
    assert await _contents(source, client, listing) == {"a.bin": b"12345"}
    assert {seen.path for seen in origin.requests} == {"/a.bin/holdfast.json?sig=s3cret", "/a.bin?sig=s3cret"}
    assert source.display == origin.url("/a.bin")
    assert "s3cret" not in repr(listing)


async def test_credentials_in_the_uri(client: HttpClient, origin: HostileOrigin) -> None:
    """User information is sent as Basic authentication with every request, and never shown."""
    origin.put("/a.bin", b"12345")
    source = WebSource(origin.url("/a.bin").replace("//", "//me:s3cret@"), client)
    listing = await source.resolve()
    assert await _contents(source, client, listing) == {"a.bin": b"12345"}
    assert {seen.headers.get("authorization") for seen in origin.requests} == {basic("me", "s3cret")}
    assert source.display == origin.url("/a.bin")
    assert "s3cret" not in repr(listing) + repr(await source.locate(listing.files[0]))
    origin.script("/a.bin/holdfast.json", Status(401))
    with pytest.raises(Permanent) as caught:
        await source.resolve()
    assert "s3cret" not in str(caught.value)


async def test_what_is_not_shown_is_part_of_the_identity(client: HttpClient, origin: HostileOrigin) -> None:
    """Sources that are shown alike are told apart by query, user, password, parameters and encoding; nothing of these
    can be read from the identity, and the same address is the same."""
    origin.put("/a.bin", b"12345")
    origin.put("/a.bin;v=1", b"12345")
    plain = origin.url("/a.bin")
    host = plain.removeprefix("http://")
    uris = [plain, f"{plain}?v=1", f"{plain}?v=2", f"{plain};v=1"]
    uris += [f"http://{user}@{host}" for user in ("me:s3cret", "me:other", "you:s3cret")]
    identities = [(await WebSource(uri, client).resolve()).identity for uri in uris]
    assert len(set(identities)) == len(uris)
    assert (await WebSource(uris[-1], client).resolve()).identity == identities[-1]
    assert all(len(identity) == 64 for identity in identities)


async def test_a_netrc_files_user_is_part_of_the_identity(
    origin: HostileOrigin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom a netrc file makes us may decide what is there."""
    url, found = origin.put("/a.bin", b"12345"), set()
    for number, user in enumerate(("ann", "bob")):
        (tmp_path / user).write_text(f"machine localhost login {user} password s3cret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / user))
        client = HttpClient(HttpSettings())
        found.add((await WebSource(url, client).resolve()).identity)
        client.close()
        assert len(found) == number + 1


async def test_a_query_reaches_all_that_is_asked(client: HttpClient, origin: HostileOrigin) -> None:
    """Manifest, index, folders and files are asked for with the query of the source, which is in no file's name."""
    page = '<title>Index of /v1/</title><a href="a.bin">a</a><a href="sub/">s</a>'
    origin.put("/v1/", page.encode(), content_type="text/html")
    origin.put("/v1/sub/", b'<title>Index of /</title><a href="b%20c.bin">b</a>', content_type="text/html")
    origin.put("/v1/a.bin", b"a")
    origin.put("/v1/sub/b%20c.bin", b"b")
    source = WebSource(origin.url("/v1/?model=acme/m&rev=1"), client)
    listing = await source.resolve()
    assert await _contents(source, client, listing) == {"a.bin": b"a", "sub/b c.bin": b"b"}
    assert {seen.path.partition("?")[2] for seen in origin.requests} == {"model=acme/m&rev=1"}


@pytest.mark.parametrize("uri", ["http://host/m.bin#v1", "http://host/#", "http://host/m.bin?x=1#y"])
def test_a_fragment_is_refused(client: HttpClient, uri: str) -> None:
    """What no server is told cannot select a version."""
    with pytest.raises(Permanent) as caught:
        WebSource(uri, client)
    assert caught.value.code == "bad_url" and "v1" not in caught.value.message and "%23" in caught.value.remedy


@pytest.mark.parametrize(
    ("uri", "instead"),
    [
        ("https://huggingface.co/acme/tiny", "hf://acme/tiny"),
        ("https://huggingface.co/acme/tiny/", "hf://acme/tiny"),
        ("https://www.huggingface.co/acme/tiny?library=transformers", "hf://acme/tiny"),
        ("https://hf.co/acme/tiny/tree/main", "hf://acme/tiny@main"),
        ("https://huggingface.co/acme/tiny/tree/v1/sub/deep", "hf://acme/tiny@v1/sub/deep"),
        ("https://huggingface.co/acme/tiny/blob/main/m.safetensors", "/acme/tiny/resolve/main/m.safetensors"),
        ("https://huggingface.co/gpt2", "hf://gpt2"),
        ("https://github.com/acme/tiny", "git+https://github.com/acme/tiny"),
        ("https://github.com/acme/tiny.git?x=y", "git+https://github.com/acme/tiny.git"),
        ("https://github.com/acme/tiny/tree/v1/sub/deep", "git+https://github.com/acme/tiny@v1#sub/deep"),
        ("https://www.modelscope.cn/models/acme/tiny/files", "ms://acme/tiny"),
    ],
)
def test_a_page_of_the_hub_is_refused_with_what_to_write(client: HttpClient, uri: str, instead: str) -> None:
    """The address of a repository as a browser shows it is a web page, and the Hub lists no folders over HTTP: the
    refusal names the source that means it. The address of a file is taken."""
    with pytest.raises(Permanent) as caught:
        WebSource(uri, client)
    assert caught.value.code == "bad_url"
    assert f"{instead}`" in caught.value.remedy
    WebSource("https://huggingface.co/acme/tiny/resolve/main/m.safetensors", client)
    WebSource("https://github.com/acme/tiny/releases/download/v1/m.safetensors", client)
    WebSource("https://www.modelscope.cn/models/acme/tiny/resolve/master/m.safetensors", client)


# --- a folder that the server lists --------------------------------------------------------------------------------


@pytest.mark.parametrize("directives", ["autoindex on;", "autoindex on; autoindex_format json;"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_nginx_indexes(client: HttpClient, tree: Path, tmp_path: Path, directives: str, slash: str) -> None:
    """A folder is listed from nginx's index, in HTML and JSON, with all below it, sizes and validators."""
    (tree / "v1" / "odd:name?.bin").write_bytes(b"odd")
    with nginx(tmp_path / "nginx", tree, directives) as base:
        source = WebSource(f"{base}/v1{slash}", client)
        listing = await source.resolve()
        assert listing.manifest is None
        assert all(file.validator.startswith('"') for file in listing.files)
        expected = {path: data for path, data in FILES.items() if path != ".hidden"} | {"odd:name?.bin": b"odd"}
        assert await _contents(source, client, listing) == expected
        assert [file.path for file in listing.files] == sorted(expected)


async def test_pythons_index(client: HttpClient, tree: Path) -> None:
    """A folder is listed from `python -m http.server`, which also gives no ETag and knows no ranges."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tree)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            base = process.stdout.readline().split("(")[1].split("/)")[0]
            source = WebSource(f"{base}/v1", client)
            listing = await source.resolve()
            assert all(
                file.weak_validators is not None and file.weak_validators.last_modified is not None
                for file in listing.files
            )
            assert await _contents(source, client, listing) == FILES
        finally:
            process.terminate()


APACHE = """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN"><html><head><title>Index of /v1</title></head><body>
<h1>Index of /v1</h1><pre><a href="?C=N;O=D">Name</a> <a href="?C=M;O=A">Last modified</a><hr>
<a href="/">Parent Directory</a> <a href="../">up</a> <a href="a.bin">a.bin</a> <a href="/v1/b%26c.bin">b&amp;c.bin</a>
<a href="a.bin">again</a> <a href="//elsewhere.example/v1/x">x</a> <a href="http://elsewhere.example/v1/y">y</a>
<a href="/v10/z">z</a> <a href="#top">top</a> <a href="./">here</a> <a href="mailto:me@example.com">me</a>
<a href=".holdfast/">records</a> <a href="http://[broken/">broken</a>
</pre></body></html>"""


async def test_only_what_lies_below_counts(client: HttpClient, origin: HostileOrigin) -> None:
    """Links that sort, lead up, elsewhere or to other hosts are ignored; each file counts once."""
    origin.put("/v1/", APACHE.encode(), content_type="text/html;charset=UTF-8")
    origin.put("/v1/a.bin", b"a")
    origin.put("/v1/b%26c.bin", b"bc")
    listing = await WebSource(origin.url("/v1/"), client).resolve()
    assert [(file.path, file.size) for file in listing.files] == [("a.bin", 1), ("b&c.bin", 2)]


@pytest.mark.parametrize("name", ["%2e%2e/x", "a%2Fb", "a%00b", "%FF", "a%5Cb", "%2e%2e%2f%2e%2e%2fx"])
async def test_bad_names_are_refused(client: HttpClient, origin: HostileOrigin, name: str) -> None:
    """A name that no version may have ends it with the place and the name."""
    page = f'<title>Index of /v1/</title><a href="good">good</a><a href="{name}">bad</a>'
    origin.put("/v1/", page.encode(), content_type="text/html")
    error = await _error(origin.url("/v1/"), client)
    assert isinstance(error, Permanent)
    assert error.code == "bad_name"
    assert origin.url("/v1/") in error.message
    own = {"/v1/holdfast.json", "/v1/.holdfast/publishing"}
    assert {seen.path for seen in origin.requests} <= {"/v1/", "/v1/good", *own}


async def test_a_json_index_with_a_name_that_is_no_text(client: HttpClient, origin: HostileOrigin) -> None:
    """A name that JSON can escape and no file system has is refused by name, and left out with the rest."""
    page = (
        b'[{"name":"\\ud800.txt","type":"file"},{"name":"\\udcff","type":"directory"},{"name":"a.bin","type":"file"}]'
    )
    origin.put("/v1/", page, content_type="application/json")
    origin.put("/v1/a.bin", b"a")
    assert (await _error(origin.url("/v1/"), client)).code == "bad_name"
    assert list(await chosen(WebSource(origin.url("/v1/"), client), ["a.bin"])) == ["a.bin"]


async def test_names_that_collide_are_refused(client: HttpClient, origin: HostileOrigin) -> None:
    """Two files that are one name in NFC, or without case, are refused where both are chosen."""
    for one, two in (("%C3%A4", "a%CC%88"), ("Model.bin", "model.bin")):
        page = f'<title>Index of /v1/</title><a href="{one}">1</a><a href="{two}">2</a>'
        origin.put("/v1/", page.encode(), content_type="text/html")
        assert (await _error(origin.url("/v1/"), client)).code == "bad_name"


async def test_an_endless_tree_ends(client: HttpClient, origin: HostileOrigin) -> None:
    """A tree deeper than any version is refused instead of walked for ever."""
    path = "/v1/"
    for _ in range(40):
        origin.put(path, b'<title>Index of /</title><a href="d/">d</a>', content_type="text/html")
        path += "d/"
    error = await _error(origin.url("/v1/"), client)
    assert error.code == "too_large"
    assert len(origin.requests) < 30


async def test_a_listed_file_that_is_missing(client: HttpClient, origin: HostileOrigin) -> None:
    """A file that the index names and the server does not have is an error that names it."""
    origin.put("/v1/", b'<title>Index of /</title><a href="gone.bin">d</a>', content_type="text/html")
    error = await _error(origin.url("/v1/"), client)
    assert error.code == "not_found"
    assert "gone.bin" in error.message


async def test_an_index_elsewhere_gets_no_credentials(client: HttpClient, origin: HostileOrigin) -> None:
    """Where an index was redirected to another origin, its files are asked for without the URI's credentials."""
    with HostileOrigin(host="127.0.0.1") as other:
        other.put("/pub/", b'<title>Index of /</title><a href="a.bin">d</a>', content_type="text/html")
        other.put("/pub/a.bin", b"12345")
        origin.script("/v1/", Redirect(other.url("/pub/")))
        source = WebSource(origin.url("/v1/?sig=s3cret").replace("//", "//me:s3cret@", 1), client)
        listing = await source.resolve()
        assert await _contents(source, client, listing) == {"a.bin": b"12345"}
        assert [seen.path for seen in other.requests] == ["/pub/", "/pub/a.bin", "/pub/a.bin"]
        assert not any("authorization" in seen.headers for seen in other.requests)


# --- nothing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("appears", [".holdfast/publishing", "holdfast.json"])
async def test_a_publish_while_the_index_is_read_is_no_version(
    client: HttpClient, origin: HostileOrigin, monkeypatch: pytest.MonkeyPatch, appears: str
) -> None:
    """An index that was read while a publish began or ended is not taken for a version: it may have files of two."""
    page = '<title>Index of /v1/</title><a href="a.bin">a.bin</a>'
    origin.put("/v1/", page.encode(), content_type="text/html")
    origin.put("/v1/a.bin", b"a")
    monkeypatch.setattr("cached.sources.http.source.read_index", partial(_read_late, origin, f"/v1/{appears}"))
    error = await _error(origin.url("/v1/"), client)
    assert isinstance(error, Transient)
    assert error.code == "publishing"
    assert appears in error.message


def _read_late(origin: HostileOrigin, path: str, *arguments: Any) -> list[IndexEntry] | None:
    """Read an index while a publisher writes `path`."""
    origin.put(path, b"{}")
    return read_index(*arguments)


async def test_a_page_for_every_path_is_no_mark(client: HttpClient, origin: HostileOrigin) -> None:
    """A server that has a page in place of what is missing has an index all the same."""
    origin.put("/v1/", b'<title>Index of /v1/</title><a href="a.bin">a.bin</a>', content_type="text/html")
    origin.put("/v1/a.bin", b"a")
    origin.put("/v1/.holdfast/publishing", b"<!doctype html><title>Home</title>", content_type="text/html")
    assert [file.path for file in (await WebSource(origin.url("/v1/"), client).resolve()).files] == ["a.bin"]


async def test_nothing_there(client: HttpClient, origin: HostileOrigin) -> None:
    """An address with nothing behind it is permanent and says what was looked for."""
    error = await _error(origin.url("/v1?sig=s3cret"), client)
    assert isinstance(error, Permanent)
    assert error.code == "not_found"
    assert "holdfast.json" in error.message
    assert "s3cret" not in str(error)


async def test_a_home_page_is_no_index(client: HttpClient, origin: HostileOrigin) -> None:
    """An ordinary page with links is not taken for a list of weights."""
    origin.put("/", b'<title>Welcome</title><a href="about.html">about</a>', content_type="text/html")
    error = await _error(origin.url("/"), client)
    assert error.code == "not_found"
    assert f"a web page that lists no folder, at {origin.url('/')}" in error.message


async def test_forbidden_is_told(client: HttpClient, origin: HostileOrigin) -> None:
    """Where all is forbidden the error says so, rather than that nothing is there."""
    for path, times in (("/v1/holdfast.json", 1), ("/v1", 2), ("/v1/", 1)):
        origin.script(path, *[Status(403)] * times)
    assert (await _error(origin.url("/v1"), client)).code == "forbidden"


async def test_cancelling_a_resolve(client: HttpClient, origin: HostileOrigin) -> None:
    """A resolve that is cancelled leaves no thread behind that waits for the server."""
    origin.script("/v1/holdfast.json", Stall(None))
    resolving = asyncio.ensure_future(WebSource(origin.url("/v1"), client).resolve())
    deadline = time.monotonic() + 100
    while not origin.requests and time.monotonic() < deadline:
        await asyncio.sleep(0.005)
    resolving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resolving
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 120)


def test_it_is_a_source(client: HttpClient) -> None:
    """`WebSource` has all that a `Source` has, and refuses what is not a URL."""
    source: Source = WebSource("https://example.com/models/", client)
    assert (source.kind, source.display) == ("http", "https://example.com/models/")
    with pytest.raises(Permanent):
        WebSource("https://", client)
