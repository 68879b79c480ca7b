"""The daemon's HTTP server, over real connections."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cached.contract.errors import Permanent, Transient
from cached.daemon.http.messages import JSON, Request, Response, make_json, make_router
from cached.daemon.http.server import Server

Ask = Callable[[bytes], Awaitable[bytes]]


async def _echo(request: Request) -> Response:
    return make_json({"method": request.method, "path": request.path, "body": request.body.decode()})


async def _name(request: Request) -> Response:
    return Response(request.segment.encode())


async def _refuse(_request: Request) -> Response:
    raise Permanent("bad_request", "wrong", "mend it")


async def _fail_for_now(_request: Request) -> Response:
    raise Transient("disk", "away", "wait")


async def _break(_request: Request) -> Response:
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
    server = Server(make_router(_ROUTES), most_clients)
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
            client = http.client.HTTPConnection(host, port, timeout=30)
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
