"""The limits of the server's connections, at a listener with short times."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from server.api.connections import ConnectionLimits
from server.api.listener import Listener
from server.api.probes import Probes
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.readiness import Ready, ServerReadiness
from tests.support.serving import LIMITS

MUCH = 64 << 20  # more than the kernel's buffers hold
DEADLINE_S = 100.0
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class OpenListener:
    """An open listener in front of an application that waits, reads, or writes much."""

    url: str
    listener: Listener
    readiness: ServerReadiness
    metrics: ServerMetrics
    gate: asyncio.Event
    opened: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, sent: bytes = b"") -> Stream:
        host, _, port = self.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1000)
        self.opened.append(writer)
        writer.write(sent)
        await self.answers()  # so that this connection is accepted before the next one
        return reader, writer

    async def answers(self) -> None:
        """A new client is answered."""
        async with (
            aiohttp.ClientSession(self.url, headers={"Connection": "close"}) as client,
            client.get("/healthz") as answer,
        ):
            assert answer.status == 200

    def closed(self, limit: str) -> float:
        sample = f'holdfast_server_connections_closed_total{{limit="{limit}"}} '
        lines = self.metrics.text().decode().splitlines()
        return sum(float(line.removeprefix(sample)) for line in lines if line.startswith(sample))


@asynccontextmanager
async def opened(limits: ConnectionLimits) -> AsyncIterator[OpenListener]:
    metrics = ServerMetrics()
    readiness = ServerReadiness(metrics)
    gate = asyncio.Event()

    async def wait(_request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text="waited")

    async def read(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def read_late(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(text=str(len(await request.read())))

    async def write(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(MUCH))

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(1 << 16))

    application = web.Application(client_max_size=2 * MUCH)
    handlers: tuple[Callable[[web.Request], Awaitable[web.StreamResponse]], ...] = (
        wait,
        read,
        read_late,
        write,
        stream,
    )
    for handler in handlers:
        application.router.add_route("*", f"/{handler.__name__}", handler)
    async with Listener(Probes(readiness, metrics), limits) as listener:
        url = await listener.listen("127.0.0.1", 0)
        await listener.serve(application, cancel_when_gone=True)
        readiness.enter(Ready())
        server = OpenListener(url, listener, readiness, metrics, gate)
        try:
            async with asyncio.timeout(DEADLINE_S):
                yield server
        finally:
            for writer in server.opened:
                writer.transport.abort()


def post(path: str, length: int, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: m\r\nContent-Length: {length}\r\n\r\n".encode() + body


async def is_open(stream: Stream) -> bool:
    """Whether the connection is kept and answers a probe."""
    reader, writer = stream
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: m\r\n\r\n")
    try:
        if not (head := await reader.readuntil(b"\r\n\r\n")):
            return False
        return b" 200 " in head and await reader.readexactly(3) == b"ok\n"
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes the connection."""
    found = b""
    try:
        while piece := await reader.read(1 << 16):
            found = (found + piece)[-(1 << 16) :]
    except ConnectionError:
        pass
    return found


async def test_past_the_limit_the_connection_that_was_idle_longest_goes() -> None:
    """A new client is answered however many stand open; what is in work and what was used lately stays."""
    async with opened(replace(LIMITS, most=4)) as server:
        working = await server.connect(b"GET /wait HTTP/1.1\r\nHost: m\r\n\r\n")
        oldest, used = await server.connect(), await server.connect()
        assert await is_open(used)
        newest = await server.connect()
        assert await rest(oldest[0]) == b""
        assert await is_open(used) and await is_open(newest)
        assert server.closed("number") == 1
        server.gate.set()
        assert b" 200 " in await working[0].readline()


async def test_requests_in_work_are_never_cut_for_a_newcomer() -> None:
    """Where every connection has a request in work, a newcomer is answered, and all the others too."""
    async with opened(replace(LIMITS, most=3)) as server:
        working = [await server.connect(b"GET /wait HTTP/1.1\r\nHost: m\r\n\r\n") for _ in range(6)]
        await server.answers()
        server.gate.set()
        for reader, _ in working:
            assert b" 200 " in await reader.readline()


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
async def test_half_a_head_is_ended(later: bool) -> None:
    """A head that does not end is hung up on, the first of a connection and a later one."""
    async with opened(replace(LIMITS, head_s=0.2)) as server:
        reader, writer = await server.connect()
        assert not later or await is_open((reader, writer))
        writer.write(b"GET /read HTTP/1.1\r\nHos")
        assert await rest(reader) == b""
        assert server.closed("head") == 1


async def test_a_connection_is_kept_between_requests() -> None:
    """The time for a head runs from its first byte: a client may take its time between two requests."""
    async with opened(replace(LIMITS, head_s=0.05, body_s=0.05)) as server:
        stream = await server.connect(post("/read", 3, b"abc"))
        assert b" 200 " in await stream[0].readuntil(b"\r\n\r\n") and await stream[0].readexactly(1) == b"3"
        await asyncio.sleep(0.5)
        assert await is_open(stream)


async def test_half_a_body_is_answered_and_ended(caplog: pytest.LogCaptureFixture) -> None:
    """A body that stops gets 408 that says what was found; the connection ends, the log has no traceback."""
    async with opened(replace(LIMITS, body_s=0.2)) as server:
        reader, _ = await server.connect(post("/read", 100, b"abc"))
        head, _, body = (await rest(reader)).partition(b"\r\n\r\n")
        assert b" 408 " in head and b"connection: close" in head.lower()
        error: dict[str, Any] = json.loads(body)["error"]
        assert "whole body" in error["message"] and "found 3 bytes of it" in error["message"]
        assert server.closed("body") == 1
        await server.readiness.in_flight.wait_drained()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_slow_application_is_not_the_clients_fault() -> None:
    """A body that the application leaves lying is not late."""
    async with opened(replace(LIMITS, body_s=0.1)) as server:
        reader, writer = await server.connect(post("/read_late", 4 << 20, b""))
        writer.write(bytes(4 << 20))
        await asyncio.sleep(0.5)
        server.gate.set()
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head


@pytest.mark.parametrize("path", ["/write", "/stream"])
async def test_a_client_that_reads_nothing_is_cut_off(path: str) -> None:
    """Its request ends, and with it whatever the request holds; a whole answer or a stream alike."""
    async with opened(replace(LIMITS, answer_s=0.3)) as server:
        reader, _ = await server.connect(f"GET {path} HTTP/1.1\r\nHost: m\r\n\r\n".encode())
        await reader.readexactly(15)
        await server.readiness.in_flight.wait_drained()
        assert server.closed("answer") == 1


async def test_a_client_that_reads_steadily_has_its_answer() -> None:
    """The time for an answer bounds each part of it, not the whole."""
    async with opened(replace(LIMITS, answer_s=0.3)) as server:
        reader, _ = await server.connect(b"GET /write HTTP/1.1\r\nHost: m\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        left = MUCH
        while left:
            left -= len(await reader.read(1 << 20))
            await asyncio.sleep(0.001)
        assert server.closed("answer") == 0
