"""Statuses other than success: which are retried, which are for a person, and what is told."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from cached.contract.errors import Permanent, Transient
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import HttpTarget
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Both, Stall, Status
from tests.support.reading import error_of


@pytest.fixture
def url(origin: HostileOrigin) -> str:
    return origin.put("/model.bin", b"0123456789" * 10, etag='"v1"')


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "unauthorized"),
        (403, "forbidden"),
        (404, "not_found"),
        (410, "gone"),
        (400, "http_400"),
        (418, "http_418"),
        (407, "proxy_unauthorized"),
    ],
)
def test_statuses_for_people(client: HttpClient, origin: HostileOrigin, url: str, status: int, code: str) -> None:
    """What no retry mends is permanent, with a code of its own and a remedy."""
    origin.script("/model.bin", Status(status, {}, b"no"))
    error = error_of(client, url, 5, 10)
    assert isinstance(error, Permanent)
    assert error.code == code
    assert error.remedy


def test_a_version_that_is_gone_was_replaced(client: HttpClient, origin: HostileOrigin) -> None:
    """404 for a URL that names one version of an object is a change of the source, which another listing mends."""
    with pytest.raises(Transient) as caught:
        client.fetch(HttpTarget(origin.url("/gone?generation=1"), names_version=True), 100, Cancellation())
    assert caught.value.code == "source_changed"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_statuses_for_retries(client: HttpClient, origin: HostileOrigin, url: str, status: int) -> None:
    """What may pass is transient, with the status in its code."""
    origin.script("/model.bin", Status(status))
    error = error_of(client, url, 5, 10)
    assert isinstance(error, Transient)
    assert (error.code, error.retry_after_s) == (f"http_{status}", None)


@pytest.mark.parametrize(
    ("value", "lowest", "highest"),
    [
        ("7", 7, 7),
        ("86400", 3600, 3600),
        ("Fri, 31 Dec 2100 23:59:59 GMT", 3600, 3600),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0),
    ],
)
def test_retry_after(
    client: HttpClient, origin: HostileOrigin, url: str, value: str, lowest: float, highest: float
) -> None:
    """Retry-After is read as seconds or a date, is never negative, and counts for an hour at most."""
    origin.script("/model.bin", Status(503, {"Retry-After": value}))
    error = error_of(client, url)
    assert isinstance(error, Transient)
    assert error.retry_after_s is not None
    assert lowest <= error.retry_after_s <= highest


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"),
        (400, b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"),
    ],
)
def test_an_expired_signature_is_signed_again(
    client: HttpClient, origin: HostileOrigin, url: str, status: int, body: bytes
) -> None:
    """A signature or session that ran out is transient: the engine locates the object again."""
    origin.script("/model.bin", Status(status, {"Content-Type": "application/xml"}, body))
    error = error_of(client, url)
    assert isinstance(error, Transient)
    assert error.code == "expired_signature"


def test_an_error_page_is_not_swallowed(hasty_client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """Of an error's body a few KiB are read, and a body that never ends changes nothing."""
    origin.script("/model.bin", Both(Status(403, {}, b"x" * 100_000), Stall(50_000)))
    assert error_of(hasty_client, url).code == "forbidden"


def test_an_error_page_with_validators_is_no_changed_object(
    client: HttpClient, origin: HostileOrigin, url: str
) -> None:
    """The ETag and the date of an error page say nothing about the object."""
    page = {"ETag": '"page"', "Last-Modified": "Fri, 20 Nov 2020 10:00:00 GMT"}
    origin.script("/model.bin", Status(503, page), Status(404, page))
    target = HttpTarget(url, if_match='"v1"')
    assert [error_of(client, target).code for _ in range(2)] == ["http_503", "not_found"]


def test_the_name_of_an_s3_error_is_told(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """What S3 calls its refusal is in the message; the rest of its body is not."""
    origin.script("/model.bin", Status(403, {}, b"<Code>InvalidAccessKeyId</Code><Message>AKIA123</Message>"))
    error = error_of(client, url)
    assert error.code == "forbidden"
    assert "403 InvalidAccessKeyId" in error.message
    assert "AKIA123" not in str(error)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@pytest.mark.parametrize("fields", [b"", b"Content-Length: 300000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_status_without_a_body_ends_with_its_head(status: str, fields: bytes) -> None:
    """After 204 and 304 no body is awaited, whatever the fields say, and the next request uses the same connection."""
    heads = [f"HTTP/1.1 {status}\r\n".encode() + fields + b"\r\n"] * 2
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        served = pool.submit(answer_on_one_connection, listener, heads)
        client = HttpClient(HttpSettings(stall_window_s=1))
        try:
            target = HttpTarget(f"http://127.0.0.1:{listener.getsockname()[1]}/x")
            found = client.fetch_any_status(target, 100, Cancellation())
            assert (found.status, found.body) == (int(status[:3]), b"")
            assert error_of(client, target).code == "bad_response"
        finally:
            client.close()
        served.result()


def answer_on_one_connection(listener: socket.socket, heads: list[bytes]) -> None:
    """Answer one request with each head, all on the first connection, and close it only then."""
    listener.settimeout(100)
    with listener.accept()[0] as connection:
        connection.settimeout(100)
        for head in heads:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                if not (part := connection.recv(65536)):
                    raise ConnectionError(f"the client closed after {request!r}")
                request += part
            connection.sendall(head)
        connection.recv(1)
