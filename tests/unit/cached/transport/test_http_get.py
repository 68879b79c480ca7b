"""Ranged GETs: what a well-behaved server gives, and what is made of answers that are not what was asked for."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.errors import Transient
from cached.core.listing import WeakValidators
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import ServerTrust
from cached.transport.connection.stream import StallClock
from cached.transport.target import HttpTarget
from tests.support.certificates import Certificates
from tests.support.nginx import nginx
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import (
    Both,
    CloseAfterwards,
    Drip,
    Extra,
    Fault,
    FlipBit,
    Hangup,
    Headers,
    IgnoreRange,
    InChunks,
    RangeAs200,
    Raw,
    ResetAfter,
    Stall,
    Status,
    Truncate,
)
from tests.support.reading import HASTY, MakeClient, error_of, get, read_all

DATA = random.Random(2).randbytes(300_000)
PART = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 1000-1049/300000\r\n"
MODIFIED, LATER = "Fri, 20 Nov 2026 10:00:00 GMT", "Fri, 20 Nov 2026 11:00:00 GMT"


@pytest.fixture
def url(origin: HostileOrigin) -> str:
    return origin.put("/model.bin", DATA, etag='"v1"', last_modified=MODIFIED)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, None), (0, 1), (0, len(DATA)), (1, 70_001), (299_999, 1), (150_000, None)]
)
def test_a_range_is_given_as_asked(
    client: HttpClient, origin: HostileOrigin, url: str, offset: int, length: int | None
) -> None:
    """A body is exactly the bytes of its range, and says where it starts, how long it is and out of how much."""
    with client.get(HttpTarget(url), offset, length, Cancellation()) as body:
        end = len(DATA) if length is None else offset + length
        assert (body.start, body.length, body.total) == (offset, end - offset, len(DATA))
        assert (body.etag, body.last_modified) == ('"v1"', MODIFIED)
        assert read_all(body, 4096) == DATA[offset:end]
        assert body.received == end - offset
        assert body.readinto(memoryview(bytearray(10))) == 0
    assert origin.requests[0].headers["accept-encoding"] == "identity"
    assert ("range" in origin.requests[0].headers) == ((offset, length) != (0, None))


def test_a_view_is_filled(client: HttpClient, url: str, origin: HostileOrigin) -> None:
    """`readinto` gives less than the view holds only at the end of the body, however the bytes arrive."""
    origin.script("/model.bin", InChunks(777))
    for _ in range(2):
        with client.get(HttpTarget(url), 0, None, Cancellation()) as body:
            view = memoryview(bytearray(200_000))
            assert body.readinto(view) == 200_000
            assert view == DATA[:200_000]
            assert body.readinto(view) == 100_000
            assert view[:100_000] == DATA[200_000:]
            assert body.readinto(view) == 0


def test_connections_are_reused(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """Bodies that were read to their end leave their connection for the next request, a refusal's too."""
    origin.script("/model.bin", InChunks(), Headers({}), Status(404))
    for offset in (0, 10, 20, 30):
        if offset == 20:
            assert error_of(client, url).code == "not_found"
        else:
            assert get(client, url, offset, 50_000) == DATA[offset : offset + 50_000]
    assert [seen.connection for seen in origin.requests] == [1, 1, 1, 1]


def test_a_body_given_up_closes_its_connection(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """The bytes that nothing read never reach the next request."""
    with client.get(HttpTarget(url), 0, None, Cancellation()) as body:
        body.readinto(memoryview(bytearray(100)))
    assert get(client, url, 5, 100) == DATA[5:105]
    assert [seen.connection for seen in origin.requests] == [1, 2]


def test_a_connection_closed_while_idle_is_replaced(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """A kept connection that the server closed costs no failed attempt, noticed before or after the request."""
    origin.script("/model.bin", CloseAfterwards())
    assert get(client, url, 0, 100) == DATA[:100]
    assert get(client, url, 100, 100) == DATA[100:200]
    origin.script("/model.bin", Hangup())  # taken by the kept connection, after the request was sent on it
    assert get(client, url, 200, 100) == DATA[200:300]
    assert [seen.connection for seen in origin.requests] == [1, 2, 2, 3]


def test_a_fresh_connection_closed_without_an_answer_is_an_error(
    client: HttpClient, origin: HostileOrigin, url: str
) -> None:
    """Only a kept connection is replaced quietly; a server that always hangs up is reported."""
    origin.script("/model.bin", Hangup())
    assert error_of(client, url).code == "reset"
    assert len(origin.requests) == 1


def test_no_ranges_here(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """A 200 to a range is one stream from the start, whatever was asked."""
    origin.script("/model.bin", IgnoreRange())
    with client.get(HttpTarget(url), 1000, 50, Cancellation()) as body:
        assert (body.start, body.length, body.total) == (0, len(DATA), len(DATA))
        assert read_all(body) == DATA


def test_a_range_under_status_200(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """A 200 whose Content-Range and Content-Length are those asked for is the range."""
    origin.script("/model.bin", RangeAs200())
    with client.get(HttpTarget(url), 1000, 50, Cancellation()) as body:
        assert (body.start, body.length, body.total) == (1000, 50, len(DATA))
        assert read_all(body) == DATA[1000:1050]


@pytest.mark.parametrize("coding", ["aws-chunked", "AWS-Chunked, identity", "utf-8", "binary", ""])
def test_what_codes_nothing_is_no_content_encoding(
    client: HttpClient, origin: HostileOrigin, url: str, coding: str
) -> None:
    """A Content-Encoding that names no coding changes nothing, in a GET or a HEAD."""
    origin.script("/model.bin", Headers({"Content-Encoding": coding}), Headers({"Content-Encoding": coding}))
    assert client.head(HttpTarget(url), Cancellation()).size == len(DATA)
    assert get(client, url, 1000, 50) == DATA[1000:1050]


@pytest.mark.parametrize("length", [50, None])
@pytest.mark.parametrize("coding", ["gzip", "aws-chunked,gzip", "br", "x-unheard-of"])
def test_a_stored_objects_encoding_is_metadata(
    client: HttpClient, origin: HostileOrigin, url: str, coding: str, length: int | None
) -> None:
    """Where the answer is as long as what is stored, its bytes are the stored ones whatever they are said to be."""
    target = HttpTarget(url, stored_bytes=len(DATA))
    origin.script("/model.bin", Headers({"Content-Encoding": coding}))
    assert read_all(client.get(target, 0, length, Cancellation())) == DATA[:length]


@pytest.mark.parametrize(
    ("fault", "stored"),
    [
        (Headers({"Content-Encoding": "gzip"}), None),
        (Headers({"Content-Encoding": "aws-chunked, gzip"}), None),
        (Headers({"Content-Encoding": "gzip"}), len(DATA) + 1),
        (Both(InChunks(1000), Headers({"Content-Encoding": "gzip"})), len(DATA)),
    ],
)
def test_an_encoding_on_the_way_is_a_bad_response(
    client: HttpClient, origin: HostileOrigin, url: str, fault: Fault, stored: int | None
) -> None:
    """A coding of an object whose stored size is unknown, or another, is refused by its name."""
    origin.script("/model.bin", fault)
    error = error_of(client, HttpTarget(url, stored_bytes=stored))
    assert isinstance(error, Transient) and error.code == "bad_response" and "'gzip'" in error.message


@pytest.mark.parametrize(
    "fault",
    [
        Headers({"Content-Range": "bytes 1001-1050/300000"}),
        Headers({"Content-Range": "bytes 1000-1050/300000", "Content-Length": "51"}),
        Headers({"Content-Range": "bytes 1000-1049/1049"}),
        Headers({"Content-Range": "bytes 1049-1000/300000"}),
        Headers({"Content-Range": "items 1000-1049/300000"}),
        Headers({"Content-Range": None}),
        Headers({"Content-Length": "49"}),
        Headers({"Content-Length": "51"}),
        Headers({"Content-Length": "+50"}),
        Headers({"Content-Length": "-1"}),
        Headers({"Content-Length": "50, 51"}),
        Headers({"Transfer-Encoding": "chunked"}),
        Headers({"Transfer-Encoding": "gzip", "Content-Length": None}),
        Headers({"Content-Encoding": "gzip"}),
        Both(RangeAs200(), Headers({"Content-Range": "bytes 0-49/300000"})),
        Extra(b"!"),
        Truncate(49),
        Truncate(0),
        Status(206, {}, b"x"),
        Status(416),
        Status(204),
        Status(304),
        Status(302),
        Raw(PART + b"no colon here\r\n\r\n" + b"x" * 50),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        Raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"),
        Raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 20),
        Raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!!\r\n0\r\n\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
        Raw(PART + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n0\r\n\r\n"),
        Raw(PART + b"Transfer-Encoding: chunked\r\n\r\n33\r\n" + b"x" * 51 + b"\r\n0\r\n\r\n"),
    ],
    ids=str,
)
def test_an_answer_that_is_wrong_is_a_bad_response(
    client: HttpClient, origin: HostileOrigin, url: str, fault: Fault
) -> None:
    """What contradicts itself or the request is `bad_response`, worth another attempt, and never ends as a body."""
    origin.script("/model.bin", fault)
    error = error_of(client, url, 1000, 50)
    assert isinstance(error, Transient)
    assert error.code == "bad_response"
    assert error.remedy
    assert get(client, url, 1000, 50) == DATA[1000:1050]


def test_a_reset_is_told_with_what_came_before(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """A reset within a body is `reset`, and the bytes before it are in the view and counted."""
    origin.script("/model.bin", ResetAfter(1234))
    body = client.get(HttpTarget(url), 0, None, Cancellation())
    view = memoryview(bytearray(100_000))
    with pytest.raises(Transient) as caught, body:
        body.readinto(view)
    assert caught.value.code == "reset"
    assert body.received == 1234
    assert view[:1234] == DATA[:1234]


@pytest.mark.parametrize("sent", [None, 0, 5000])
def test_silence_is_a_stall(hasty_client: HttpClient, origin: HostileOrigin, url: str, sent: int | None) -> None:
    """A server that stops sending, before the head or within the body, is given up as `stalled`."""
    origin.script("/model.bin", Stall(sent))
    error = error_of(hasty_client, url)
    assert isinstance(error, Transient)
    assert error.code == "stalled"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_takes_no_request_is_a_stall(
    make_client: MakeClient, certificates: Certificates, scheme: str
) -> None:
    """A server that accepts a connection and reads nothing, as a process that was stopped, is given up as `stalled`,
    also where the request has more bytes than the kernel takes for it."""
    trust = ServerTrust(lambda: ssl.create_default_context(cafile=certificates.authority), "localhost")
    client = make_client(replace(HASTY, trust=trust, connect_timeout_s=20.0, header_timeout_s=0.5))
    ended = threading.Event()

    def accept() -> None:
        with closing(listener.accept()[0]) as accepted:
            if scheme == "http":
                ended.wait(60)
            else:
                with certificates.server_context().wrap_socket(accepted, server_side=True):
                    ended.wait(60)

    with socket.socket() as listener, ThreadPoolExecutor(1) as pool:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)  # or the client's kernel takes megabytes
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        served = pool.submit(accept)
        target = HttpTarget(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/any")
        try:
            with pytest.raises(Transient) as caught:
                client.post_any_status(target, bytes(4 * 1024 * 1024), 10, Cancellation())
        finally:
            ended.set()
        served.result(60)
    assert caught.value.code == "stalled"


def test_a_trickle_is_a_stall(hasty_client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """A server that never quite stops, but sends fewer bytes than a window must have, is `stalled`."""
    origin.script("/model.bin", Drip(5000))
    assert error_of(hasty_client, url).code == "stalled"


def test_a_stall_is_a_matter_of_windows() -> None:
    """Only waiting counts, each window begins when the last one had its bytes, and slow is not stalled."""
    clock = StallClock(10.0, 1000, "the origin")
    for _ in range(100):
        clock.record_wait(9.0, 999)
        clock.record_wait(0.5, 1)  # the thousandth: a new window
    clock.record_wait(9.9, 999)
    with pytest.raises(Transient) as caught:
        clock.record_wait(0.2, 0)
    assert caught.value.code == "stalled"
    assert "999" in caught.value.message


def test_threads_share_a_client(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """Many threads read ranges at once, each its own bytes, over no more connections than threads."""
    ranges = [(offset, 3001) for offset in range(0, len(DATA) - 3001, 3001)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: get(client, url, *part), ranges))
    assert found == [DATA[offset : offset + length] for offset, length in ranges]
    assert len({seen.connection for seen in origin.requests}) <= 8


def test_a_flipped_bit_passes(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """The transport does not notice wrong bytes: they arrive as sent, and their hash tells."""
    origin.script("/model.bin", FlipBit(1010))
    found = get(client, url, 1000, 50)
    assert [i for i in range(50) if found[i] != DATA[1000 + i]] == [10]


def test_a_body_until_the_connection_closes(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """Without a length the body lasts until the server closes, as in HTTP/1.0."""
    origin.script("/model.bin", Raw(b"HTTP/1.0 200 OK\r\n\r\n" + DATA))
    with client.get(HttpTarget(url), 0, None, Cancellation()) as body:
        assert (body.start, body.length, body.total) == (0, None, None)
        assert read_all(body) == DATA


def test_an_interim_answer_is_skipped(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """1xx heads before the answer are no answer."""
    origin.script(
        "/model.bin",
        Raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
    )
    assert get(client, url) == b"hi"


def test_an_empty_object(client: HttpClient, origin: HostileOrigin) -> None:
    """An object of no bytes ends cleanly at once."""
    assert get(client, origin.put("/empty", b"")) == b""


@pytest.mark.parametrize(
    ("etag", "signs"), [('"v1"', None), (None, WeakValidators('W/"v1"', MODIFIED)), (None, WeakValidators())]
)
def test_validators_go_with_every_range(
    client: HttpClient, origin: HostileOrigin, url: str, etag: str | None, signs: WeakValidators | None
) -> None:
    """An object that is still the one that was listed is read; only a strong validator is sent."""
    target = HttpTarget(url, if_match=etag, weak_validators=signs)
    assert read_all(client.get(target, 5, 10, Cancellation())) == DATA[5:15]
    sent = origin.requests[0].headers
    assert (sent.get("if-match"), sent.get("if-unmodified-since")) == (etag, None)


@pytest.mark.parametrize(
    ("etag", "signs", "fault"),
    [
        ('"v0"', None, Headers({})),  # 412
        ('"v1"', None, Headers({"ETag": 'W/"v2"'})),
        (None, WeakValidators('W/"v0"'), Headers({"ETag": 'W/"v1"'})),
        (None, WeakValidators('W/"v0"'), Headers({})),
        ('"v1"', None, Headers({"ETag": '"v2"'})),  # a server that does not know If-Match
        (None, WeakValidators(None, MODIFIED), Headers({"Last-Modified": LATER})),
        (None, WeakValidators(None, LATER), Headers({})),
        ('"v1"', None, Status(416, {"ETag": '"v2"'})),
    ],
)
def test_a_changed_object_is_noticed(
    client: HttpClient, origin: HostileOrigin, url: str, etag: str | None, signs: WeakValidators | None, fault: Fault
) -> None:
    """An object that is not the one that was listed gives `source_changed` and no byte."""
    origin.script("/model.bin", fault)
    error = error_of(client, HttpTarget(url, if_match=etag, weak_validators=signs), 5, 10)
    assert isinstance(error, Transient)
    assert error.code == "source_changed"
    assert "servers that share an address must give one ETag" in error.remedy  # else it changes for ever


def test_a_strong_etag_made_weak_is_no_change(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """A proxy may have made the listed ETag a weak one: it proves nothing, and is not held against the object."""
    origin.script("/model.bin", Headers({"ETag": 'W/"v1"'}))
    with client.get(HttpTarget(url, if_match='"v1"'), 5, 10, Cancellation()) as body:
        assert body.etag is None
        assert read_all(body) == DATA[5:15]


def test_another_hosts_signs_are_not_compared(client: HttpClient, origin: HostileOrigin, url: str) -> None:
    """Weak validators are compared with those of the host that was listed: a mirror has its own for the same file."""
    target = HttpTarget(url, weak_validators=WeakValidators('W/"elsewhere"', LATER, "http://mirror.example"))
    assert read_all(client.get(target, 5, 10, Cancellation())) == DATA[5:15]


def test_a_range_of_nothing_is_refused(client: HttpClient, url: str) -> None:
    """HTTP cannot ask for no bytes; asking is the caller's error."""
    with pytest.raises(ValueError, match="0 bytes"):
        client.get(HttpTarget(url), 5, 0, Cancellation())


def test_nginx_gives_ranges_on_one_connection(client: HttpClient, tmp_path: Path) -> None:
    """Against a real server a file read in ranges is the file, on one connection, with its validators."""
    root = tmp_path / "root"
    root.mkdir()
    content = random.Random(3).randbytes(3_000_000)
    (root / "model.bin").write_bytes(content)
    with nginx(tmp_path / "nginx", root) as base:
        head = client.head(HttpTarget(f"{base}/model.bin"), Cancellation())
        assert head.size == len(content)
        assert head.etag is not None
        target = HttpTarget(f"{base}/model.bin", if_match=head.etag)
        found = hashlib.sha256()
        for offset in range(0, len(content), 700_001):
            length = min(700_001, len(content) - offset)
            found.update(read_all(client.get(target, offset, length, Cancellation())))
        assert found.digest() == hashlib.sha256(content).digest()
        (root / "model.bin").write_bytes(content[1:])
        assert error_of(client, target, 0, 100).code == "source_changed"
    lines = (tmp_path / "nginx" / "access.log").read_text().splitlines()
    assert len({line.split()[0] for line in lines}) == 1
