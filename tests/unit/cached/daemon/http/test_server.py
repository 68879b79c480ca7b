"""The daemon's HTTP server, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cached.contract.errors import Permanent, Transient
from cached.daemon.http.messages import (
    JSON,
    HttpRequest,
    StreamedResponse,
    WholeResponse,
    accepts_gzip,
    make_json,
    make_router,
)
from cached.daemon.http.server import HttpServer

Ask = Callable[[bytes], Awaitable[bytes]]


async def _echo(request: HttpRequest) -> WholeResponse:
    return make_json({"method": request.method, "path": request.path, "body": request.body.decode()})


async def _name(request: HttpRequest) -> WholeResponse:
    return WholeResponse(request.segment.encode())


async def _refuse(_request: HttpRequest) -> WholeResponse:
    raise Permanent("bad_request", "wrong", "mend it")


async def _fail_for_now(_request: HttpRequest) -> WholeResponse:
    raise Transient("disk", "away", "wait")


async def _break(_request: HttpRequest) -> WholeResponse:
    raise RuntimeError("a bug")


_ROUTES = {
    ("GET", "/echo"): _echo,
    ("POST", "/echo"): _echo,
    ("GET", "/names/*"): _name,
    ("POST", "/refuse"): _refuse,
    ("GET", "/later"): _fail_for_now,
    ("GET", "/bug"): _break,
}


@asynccontextmanager
async def _serving(most_clients: int = 8) -> AsyncIterator[tuple[str, int]]:
    server = HttpServer(make_router(_ROUTES), most_clients)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()
    finally:
        listener.close()
        await server.close()


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    """Send bytes, close that half, and return all that is answered until the end of the connection."""
    async with _serving() as address:

        async def send(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(data)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
            return answer

        yield send


def _head(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return int(line.split()[1]), dict(field.split(": ", 1) for field in fields), body


async def test_a_library_client_is_answered_over_one_connection() -> None:
    """Several requests of one client, with and without a body, are answered over one connection."""
    async with _serving() as (host, port):

        def talk() -> None:
            client = http.client.HTTPConnection(host, port, timeout=120)
            for method, body in (
                ("GET", None),
                ("POST", b"x" * 100_000),
                ("POST", iter([b"one", b"two"])),
                ("GET", None),
            ):
                client.request(method, "/echo?query=1", body, encode_chunked=not isinstance(body, bytes | None))
                answer = client.getresponse()
                assert (answer.status, answer.getheader("Content-Type")) == (200, JSON)
                found = json.loads(answer.read())
                assert (found["method"], found["path"]) == (method, "/echo")
                assert len(found["body"]) == {"GET": 0}.get(method, 6 if not isinstance(body, bytes) else 100_000)
            client.request("HEAD", "/echo")
            answer = client.getresponse()
            assert (answer.status, answer.read()) == (200, b"")
            assert int(answer.getheader("Content-Length") or 0) > 0
            client.close()

        await asyncio.to_thread(talk)


async def test_requests_in_one_packet_are_answered_in_order(ask: Ask) -> None:
    """What a client sends ahead is answered in order, and after `Connection: close` no more."""
    one, two = (
        b"GET /names/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /names/b%20c HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    answer = await ask(one + two + b"GET /names/d HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b"\r\n\r\na") < answer.index(b"\r\n\r\nb c")


async def test_a_request_may_come_byte_by_byte() -> None:
    """How a request is cut into packets does not matter."""
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    sent = head + b"3;x=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: 1\r\n\r\n"
    async with _serving() as address:
        reader, writer = await asyncio.open_connection(*address)
        for at in range(len(sent)):
            writer.write(sent[at : at + 1])
            await asyncio.sleep(0)
        assert b'"abc0123456789"' in await reader.readuntil(b"}")
        writer.write(b"GET /names/next HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"next")
        writer.close()


async def test_a_client_that_waits_for_a_go_ahead_gets_it() -> None:
    """`Expect: 100-continue` is answered before the body comes."""
    async with _serving() as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ok")
        assert b'"body": "ok"' in await reader.readuntil(b"}")
        writer.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /names/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /names/* HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /names/a/b HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET http://host:1/names/a HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET http://[host/names/a HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /names/a HTTP/1.0\r\n\r\n", 200),
        (b"GET /bug HTTP/1.1\r\nHost: x\r\n\r\n", 500),
        (b"DELETE /echo HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /names/a HTTP/2.0\r\n\r\n", 505),
        (b"GET /names/a\r\n\r\n", 400),
        (b"GET /names/a HTTP/1.1\r\n\r\n", 400),
        (b"get /echo HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /names/a HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", 400),
        (b"GET /names/a HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n", 400),
        (b"GET /names/a HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nab", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: wonders\r\n\r\n", 417),
        (b"GET /" + b"a" * 400_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 400_000 + b"\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400),
    ],
)
async def test_a_request_gets_its_status(ask: Ask, request_: bytes, status: int) -> None:
    """What has no route, is no request, or could be read in two ways, gets a status of its own."""
    found, headers, body = _head(await ask(request_))
    assert found == status
    assert int(headers["Content-Length"]) == len(body)
    if status == 405:
        assert headers["Allow"] == "GET, HEAD, POST"


async def test_errors_are_documents(ask: Ask) -> None:
    """Our own errors are answered as JSON, by whether another try may help."""
    status, _, body = _head(await ask(b"POST /refuse HTTP/1.1\r\nHost: x\r\n\r\n"))
    expected = {"code": "bad_request", "message": "wrong", "remedy": "mend it", "permanent": True}
    assert (status, json.loads(body)) == (400, {"error": expected})
    status, _, body = _head(await ask(b"GET /later HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert (status, json.loads(body)["error"]["permanent"]) == (503, False)


async def test_past_the_limit_the_oldest_connection_goes() -> None:
    """A new client is answered however many connections stand open."""
    async with _serving(most_clients=3) as address:
        silent = [await asyncio.open_connection(*address) for _ in range(4)]
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /names/new HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"new")
        for old, _ in silent[:2]:
            with pytest.raises(ConnectionError):
                assert await old.read() == b""
                raise ConnectionError
        for _, each in (*silent, (reader, writer)):
            each.close()


class _Streams:
    """A route whose pieces the test gives; `open` streams now, `asked` for a piece so often."""

    def __init__(self) -> None:
        self.open = self.asked = 0
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def answer(self, _request: HttpRequest) -> StreamedResponse:
        return StreamedResponse(self._run(), "text/event-stream", (("X-More", "yes"),))

    async def _run(self) -> AsyncGenerator[bytes, None]:
        self.open += 1
        try:
            while True:
                self.asked += 1
                piece = await self.pieces.get()
                if piece is None:
                    return
                if piece == b"bug":
                    raise RuntimeError("a bug")
                yield piece
        finally:
            self.open -= 1
            self.ended.set()


@asynccontextmanager
async def _streaming(most_clients: int = 8) -> AsyncIterator[tuple[_Streams, HttpServer, tuple[str, int]]]:
    streams = _Streams()
    server = HttpServer(make_router({**_ROUTES, ("GET", "/stream"): streams.answer}), most_clients)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield streams, server, listener.sockets[0].getsockname()
    finally:
        listener.close()
        await server.close()


async def _follow(address: tuple[str, int], version: str = "1.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET /stream HTTP/{version}\r\nHost: x\r\n\r\n".encode())
    return reader, writer


async def test_a_stream_is_sent_piece_by_piece() -> None:
    """Each piece arrives when it is given; the end of the pieces ends the body and the connection."""
    async with _streaming() as (streams, _, address):
        reader, writer = await _follow(address)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        for field in ("200 ok", "text/event-stream", "x-more: yes", "transfer-encoding: chunked", "connection: close"):
            assert field in head
        for piece in (b"one", b"two"):
            streams.pieces.put_nowait(piece)
            assert await reader.readexactly(8) == b"3\r\n" + piece + b"\r\n"
        streams.pieces.put_nowait(None)
        assert await reader.read() == b"0\r\n\r\n"
        assert streams.open == 0
        writer.close()


async def test_a_stream_to_an_old_client_ends_with_the_connection() -> None:
    """HTTP/1.0 has no chunks: the pieces come as they are."""
    async with _streaming() as (streams, _, address):
        reader, writer = await _follow(address, "1.0")
        await reader.readuntil(b"\r\n\r\n")
        streams.pieces.put_nowait(b"one")
        assert await reader.readexactly(3) == b"one"
        streams.pieces.put_nowait(None)
        assert await reader.read() == b""
        writer.close()


async def test_head_of_a_stream_begins_none() -> None:
    """HEAD is answered with the head alone, and no piece is asked for."""
    async with _streaming() as (streams, _, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"HEAD /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\n")
        assert (streams.open, streams.asked) == (0, 0)
        writer.close()


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
async def test_a_client_that_goes_ends_its_stream(how: str) -> None:
    """A stream without news ends with its client, not with the next piece."""
    async with _streaming() as (streams, _, address):
        reader, writer = await _follow(address)
        await reader.readuntil(b"\r\n\r\n")
        await _until(lambda: streams.asked == 1)
        if how == "half-close":
            writer.write_eof()
        elif how == "reset":
            writer.transport.abort()
        else:
            writer.close()
        await asyncio.wait_for(streams.ended.wait(), 120)
        assert streams.open == 0
        writer.close()


async def test_the_end_of_the_server_ends_streams_at_once() -> None:
    """A stop does not wait for streams; they end as a whole body does, so that a browser connects again."""
    async with _streaming() as (streams, server, address):
        reader, writer = await _follow(address)
        await reader.readuntil(b"\r\n\r\n")
        await _until(lambda: streams.asked == 1)
        await server.close()
        assert await reader.read() == b"0\r\n\r\n"
        assert streams.open == 0
        writer.close()


async def test_a_slow_reader_is_asked_for_no_more_pieces() -> None:
    """While a client takes nothing no further piece is made for it: its stream costs one piece of memory."""
    async with _streaming() as (streams, _, address):
        reader, writer = await _follow(address)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a StreamWriter's transport can
        for _ in range(40):
            streams.pieces.put_nowait(bytes(1024 * 1024))
        await _until(lambda: streams.asked > 1)
        before = -1
        while before != streams.asked:
            before = streams.asked
            await asyncio.sleep(0.1)
        assert streams.asked < 40
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await asyncio.wait_for(reader.readexactly(40 * 1024 * 1024), 120)
        writer.close()


async def test_a_stream_with_a_bug_ends_its_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    """What a stream raises is logged, its client sees a broken body, and others are served."""
    async with _streaming() as (streams, _, address):
        reader, writer = await _follow(address)
        await reader.readuntil(b"\r\n\r\n")
        streams.pieces.put_nowait(b"bug")
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        assert "RuntimeError: a bug" in caplog.text
        other, sender = await asyncio.open_connection(*address)
        sender.write(b"GET /names/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await other.read()).endswith(b"a")
        sender.close()
        writer.close()


async def test_the_query_is_left_as_it_was_sent() -> None:
    """A handler gets the query undecoded, and the path without it."""
    seen: list[HttpRequest] = []

    async def note(request: HttpRequest) -> WholeResponse:
        seen.append(request)
        return WholeResponse(b"")

    server = HttpServer(make_router({("GET", "/a b"): note}), 8)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
    writer.write(b"GET /a%20b?x=%31&y=?#z HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.write(
        b"GET http://x/a%20b?q HTTP/1.1\r\nHost: x\r\n\r\nGET /a%20b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    await reader.read()
    assert [each.query for each in seen] == ["x=%31&y=?", "q", ""]
    writer.close()
    listener.close()
    await server.close()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(100):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("deflate, *", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("gzip; q=0.000", False),
        ("identity", False),
        ("gzipped", False),
    ],
)
async def test_a_client_says_whether_it_takes_gzip(header: str | None, expected: bool) -> None:
    """`Accept-Encoding` is read as RFC 9110 has it: names in any case, weights, and `*` for what is not named."""
    headers = {} if header is None else {"accept-encoding": header}
    assert accepts_gzip(HttpRequest("GET", "/", headers, b"", asyncio.Transport())) is expected
