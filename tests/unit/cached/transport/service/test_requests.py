"""Small requests to services: what is sent, and what is made of bad answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs

import pytest

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.service.requests import Service
from cached.transport.service.tokens import FixedHeaders
from cached.transport.target import HttpTarget, Part
from tests.support.http_server import serve_http
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Content, Headers, IgnoreRange, Redirect, Status, Truncate
from tests.support.reading import MakeClient, read_all

SUBJECT = "az://account/models/m/"
SECRET = "s3cret"


class Posts:
    """What came by POST, and how each path answers it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}


@contextmanager
def posting() -> Iterator[tuple[str, Posts]]:
    posts = Posts()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            status, headers, answer = posts.answers.get(self.path, (200, {}, b"{}"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with serve_http(Handler) as address:
        yield f"http://{address}", posts


def service(client: HttpClient, credentials: FixedHeaders | None = None) -> Service:
    return Service(client, Cancellation(), SUBJECT, credentials)


def error_of(client: HttpClient, url: str, limit_bytes: int = 1000) -> HoldfastError:
    with pytest.raises(HoldfastError) as caught:
        service(client).get_json(url, limit_bytes=limit_bytes)
    assert caught.value.message.startswith(f"{SUBJECT}: ")
    assert caught.value.remedy
    return caught.value


def test_a_document_and_a_form_are_posted(client: HttpClient) -> None:
    """A JSON document and a form arrive with their type and length, on one connection; the answers are JSON."""
    with posting() as (url, posts):
        posts.answers["/batch"] = 200, {"Content-Type": "application/vnd.git-lfs+json"}, b'{"objects": []}'
        lfs = (("Accept", "application/vnd.git-lfs+json"), ("Content-Type", "application/vnd.git-lfs+json"))
        asked = {"operation": "download", "objects": [{"oid": "é", "size": 1}]}
        assert service(client).post_json(f"{url}/batch", asked, lfs) == {"objects": []}
        assert service(client).post_form(f"{url}/token", {"grant_type": "a b", "scope": "x&y=é"}) == {}
        (path, headers, body), (_, form_headers, form) = posts.seen
        assert (path, headers["accept"], headers["content-type"]) == ("/batch", lfs[0][1], lfs[1][1])
        assert json.loads(body) == asked
        assert form_headers["content-type"] == "application/x-www-form-urlencoded"
        assert parse_qs(form.decode()) == {"grant_type": ["a b"], "scope": ["x&y=é"]}


def test_a_post_stays_with_its_origin(client: HttpClient) -> None:
    """The body of a POST may be a credential: a redirect to another host is refused, one on the host is followed only
    where the method stays."""
    with posting() as (url, posts), posting() as (other, elsewhere):
        for status in (301, 302, 303, 307, 308):
            posts.answers["/away"] = status, {"Location": f"{other}/token"}, b""
            with pytest.raises(Permanent, match="another host"):
                service(client).post_form(f"{url}/away", {"assertion": SECRET})
        posts.answers["/moved"] = 307, {"Location": "/token"}, b""
        service(client).post_form(f"{url}/moved", {"assertion": SECRET})
        assert posts.seen[-1][0] == "/token" and SECRET.encode() in posts.seen[-1][2]
        posts.answers["/other"] = 302, {"Location": "/token"}, b""
        with pytest.raises(Transient, match="a redirect of a POST by 302"):
            service(client).post_form(f"{url}/other", {"assertion": SECRET})
        assert elsewhere.seen == []


def test_accept_is_replaced(client: HttpClient, origin: HostileOrigin) -> None:
    """A source's `Accept` is the only one sent, also after a redirect to another host, without its secrets."""
    with HostileOrigin(host="127.0.0.1") as other:
        other.put("/manifest", b"{}")
        origin.script("/manifest", Redirect(other.url("/manifest")))
        credentials = FixedHeaders([origin.url("/")], (("Authorization", f"Bearer {SECRET}"),))
        accept = (("Accept", "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"),)
        service(client, credentials).get(origin.url("/manifest"), accept)
        assert origin.requests[0].headers["accept"] == other.requests[0].headers["accept"] == accept[0][1]
        assert origin.requests[0].headers["authorization"] == f"Bearer {SECRET}"
        assert "authorization" not in other.requests[0].headers


def test_credentials_go_to_no_other_host(client: HttpClient, origin: HostileOrigin) -> None:
    """A next page on another host, as a listing may name it, is asked for without credentials."""
    with HostileOrigin(host="127.0.0.1") as other:
        other.put("/page2", b"[]")
        credentials = FixedHeaders([origin.url("/")], (("Authorization", f"Bearer {SECRET}"),))
        assert service(client, credentials).get_json(other.url("/page2")) == []
        assert "authorization" not in other.requests[0].headers


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_looked_at_and_not_followed(client: HttpClient, origin: HostileOrigin, status: int) -> None:
    """`peek` sends a GET, and gives where it is redirected to; nothing is asked there."""
    with HostileOrigin(host="127.0.0.1") as other:
        origin.script("/blob", Redirect(f"{other.url('/signed')}?X-Amz-Signature=1", status))
        found = service(client).peek(origin.url("/blob"))
        assert (found.status, found.redirect_url) == (status, f"{other.url('/signed')}?X-Amz-Signature=1")
        assert (origin.requests[0].method, other.requests) == ("GET", [])


def test_what_is_not_redirected_is_not_read(client: HttpClient, origin: HostileOrigin) -> None:
    """Where the server gives the bytes itself, `peek` takes one at most, also where ranges are ignored."""
    origin.put("/blob", bytes(8 << 20))
    found = service(client).peek(origin.url("/blob"))
    assert (found.status, found.redirect_url, found.body) == (206, None, b"")
    origin.script("/blob", IgnoreRange())
    assert service(client).peek(origin.url("/blob")).status == 200
    origin.script("/blob", Status(404))
    assert service(client).peek(origin.url("/blob")).status == 404


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"<!doctype html><title>Sign in</title>", "text/html", "a web page (HTML)"),
        (b"<html><body>gateway</body></html>", "application/json", "a web page (HTML)"),
        (b"<Error><Code>AccessDenied</Code></Error>", "application/xml", "AccessDenied"),
        (b'{"items": [{"name": "a', "application/json", "22 bytes that are not JSON"),
        (b"", "application/json", "an empty answer"),
        (b"[" * 900, "application/json", "900 bytes that are not JSON"),
        (b'{"size": 1' + b"0" * 900, "application/json", "not JSON"),
        (b"\xff\xfe\x00", "application/json", "not JSON"),
    ],
)
def test_what_is_no_json_is_a_bad_answer(
    client: HttpClient, origin: HostileOrigin, body: bytes, kind: str, says: str
) -> None:
    """A page, a cut or nested answer: `bad_response`, which is tried again, with the address and what was found."""
    origin.put("/list", body, content_type=kind)
    error = error_of(client, f"{origin.url('/list')}?token={SECRET}")
    assert (error.code, error.permanent) == ("bad_response", False)
    assert says in error.message and origin.url("/list") in error.message
    assert SECRET not in str(error)


def test_an_absurd_size_is_refused(client: HttpClient, origin: HostileOrigin) -> None:
    """No more than the limit is held of an answer, whatever its head says."""
    origin.put("/list", b"[" + b" " * 5000 + b"]")
    assert (error_of(client, origin.url("/list")).code) == "too_large"
    origin.put("/list", b"[]")
    origin.script("/list", Headers({"Content-Length": "999999999999999999"}))
    assert error_of(client, origin.url("/list")).code == "too_large"
    origin.script("/list", Truncate(1))
    assert error_of(client, origin.url("/list")).code == "bad_response"
    assert service(client).get_json(origin.url("/list")) == []


@pytest.mark.parametrize(
    ("status", "code", "permanent"),
    [
        (401, "unauthorized", True),
        (403, "forbidden", True),
        (404, "not_found", True),
        (429, "http_429", False),
        (503, "http_503", False),
        (204, "bad_response", False),
    ],
)
def test_a_status_is_an_error_of_the_source(
    client: HttpClient, origin: HostileOrigin, status: int, code: str, permanent: bool
) -> None:
    """A status other than 200 is the error of its kind, and begins with the source."""
    origin.put("/list", b"[]")
    origin.script("/list", Status(status, {"Retry-After": "7"}))
    error = error_of(client, origin.url("/list"))
    assert (error.code, error.permanent) == (code, permanent)
    if isinstance(error, Transient) and status in (429, 503):
        assert error.retry_after_s == 7.0


def test_a_source_explains_the_errors_of_its_service(client: HttpClient, origin: HostileOrigin) -> None:
    """What a service says of an error may decide what it is: its source reads that first."""

    def explain(response: Response) -> HoldfastError | None:
        denied = b"insufficient_scope" in response.body
        return Permanent("forbidden", "this account may not pull", "grant it pull") if denied else None

    origin.put("/x", b"{}")
    origin.script("/x", Status(401, body=b'{"errors": [{"code": "insufficient_scope"}]}'), Status(401))
    asking = Service(client, Cancellation(), SUBJECT, explain=explain)
    codes = []
    for _ in range(2):
        with pytest.raises(Permanent) as caught:
            asking.get_json(origin.url("/x"))
        codes.append(caught.value.code)
    assert codes == ["forbidden", "unauthorized"]


def test_an_unreachable_host_is_named(make_client: MakeClient) -> None:
    """A port that nothing listens at, and a name that no host has, are `connect` errors of the source."""
    client = make_client(HttpSettings(connect_timeout_s=1.0))
    for url in ("http://127.0.0.1:9/list", "http://no-such-host.invalid/list"):
        error = error_of(client, url)
        assert (error.code, error.permanent) == ("connect", False)


def test_a_part_of_an_object_is_a_file(client: HttpClient, origin: HostileOrigin) -> None:
    """A file inside a larger object is read by ranges of that object, and looks like a file of its own."""
    data = bytes(range(256)) * 40
    url = origin.put("/layer.tar", data, etag='"v1"')
    target = HttpTarget(url, if_match='"v1"', part=Part(512, 3000))
    body = client.get(target, 0, None, Cancellation())
    assert (body.start, body.length, body.total) == (0, 3000, 3000)
    assert read_all(body) == data[512:3512]
    body = client.get(target, 1000, 500, Cancellation())
    assert (body.start, body.length, body.total) == (1000, 500, 3000)
    assert read_all(body) == data[1512:2012]
    assert client.fetch(target, 3000, Cancellation()).body == data[512:3512]
    ranges = [seen.headers["range"] for seen in origin.requests]
    assert ranges == ["bytes=512-3511", "bytes=1512-2011", "bytes=512-3511"]
    origin.script("/layer.tar", IgnoreRange())
    with pytest.raises(Permanent, match="serves no ranges"):
        client.get(target, 0, 10, Cancellation())
    origin.script("/layer.tar", Content(data[:600]))
    with pytest.raises(HoldfastError):
        client.get(target, 1000, 500, Cancellation())


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "tokèn\u2019", "a\0b"])
def test_a_header_that_cannot_be_sent_is_refused(client: HttpClient, origin: HostileOrigin, value: str) -> None:
    """A token with characters that no header has is an error that does not quote it."""
    origin.put("/x", b"{}")
    with pytest.raises(Permanent, match="cannot be sent") as caught:
        service(client).get(origin.url("/x"), (("Authorization", f"Bearer {value}"),))
    assert value not in str(caught.value) and origin.requests == []
