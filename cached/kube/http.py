"""HTTP/1.1 to one API server on asyncio's streams: idle connections, heads, bodies.

Law: knows no resource and no token; every wait is bounded by its caller. A general client library costs each node some
10 MiB of memory, to send a dozen kinds of requests to one address without redirects, cookies or proxies. A response is
read as `transport/response.py` reads one.
"""

from __future__ import annotations

import asyncio
import io
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import quote, urlencode, urlsplit

from cached.contract.errors import Transient
from cached.transport.response import ResponseHead, read_head

CONNECT_S = 10.0
_IDLE_S = 15.0  # less than servers keep an idle connection
_MOST_IDLE = 8
_PIECE_BYTES = 256 << 10
_MOST_INTERIM = 8
_AGAIN = frozenset({"GET"})  # sent once more where an idle connection ended before an answer


class BrokenAnswer(Exception):
    """The response does not follow HTTP; the message says how."""


class Connection:
    """A connection to the API server. `idle_since`: monotonic seconds, while it is idle."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.idle_since = 0.0

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection may be used again: it is young, and the server sent neither data nor its end."""
        is_young = time.monotonic() - self.idle_since < _IDLE_S
        return is_young and not self.reader.at_eof() and not self.writer.transport.is_closing()

    def drop(self) -> None:
        """Close at once."""
        self.writer.transport.abort()


class Response:
    """A response whose head has been read. Use as `async with`: on the way out its connection is idle again if the body
    was read to its end, else closed."""

    def __init__(self, head: ResponseHead, connection: Connection, pool: ApiConnections) -> None:
        self.status = head.status
        self.headers = head.headers
        self._head = head
        self._connection = connection
        self._pool = pool
        self._is_read = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back, or close it. Idempotent."""
        if self._is_read and self._head.keep_alive:
            self._is_read = False
            self._pool.put(self._connection)
        else:
            self._connection.drop()

    async def read(self, most_bytes: int) -> bytes:
        """Return the body, or its first `most_bytes`; raises `BrokenAnswer` or OSError."""
        body = bytearray()
        async for piece in self.receive():
            body += piece
            if len(body) > most_bytes:
                return bytes(body[:most_bytes])
        return bytes(body)

    async def receive(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes, in pieces of at least a byte; raises `BrokenAnswer` or OSError."""
        reader = self._connection.reader
        if self._head.chunked:
            while size := await _read_chunk_size(reader):
                async for piece in _receive_counted(reader, size):
                    yield piece
                if await _read_line(reader) != b"\r\n":
                    raise BrokenAnswer("a chunk is longer than its size says")
            while await _read_line(reader) != b"\r\n":
                pass  # trailers; the stream bounds each, the caller the time
        elif self._head.length is not None:
            async for piece in _receive_counted(reader, self._head.length):
                yield piece
        else:
            while piece := await reader.read(_PIECE_BYTES):
                yield piece
        self._is_read = True


class ApiConnections:
    """The connections to `server`, `https://host:port` with an optional path. `server_name`: the name in its
    certificate, if that is not the host."""

    def __init__(self, server: str, server_name: str | None) -> None:
        parts = urlsplit(server)
        is_tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if is_tls else 80)
        self._netloc = parts.netloc.rpartition("@")[2]
        self._prefix = parts.path.rstrip("/")
        self._server_name = (server_name or self._host) if is_tls else None
        self._idle: list[Connection] = []

    async def close(self) -> None:
        """Close the idle connections, and wait for the ends of all that were closed before."""
        for connection in self._idle:
            connection.drop()
        self._idle.clear()
        await asyncio.sleep(0)  # the loop closes a socket in its next round

    def put(self, connection: Connection) -> None:
        """Keep a connection without a request for the next one."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)
        if len(self._idle) > _MOST_IDLE:
            self._idle.pop(0).drop()
        asyncio.get_running_loop().call_later(_IDLE_S, self._drop_unusable)

    def _drop_unusable(self) -> None:
        usable = [connection for connection in self._idle if connection.is_usable]
        for connection in self._idle:
            if connection not in usable:
                connection.drop()
        self._idle = usable

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
        tls: ssl.SSLContext | None,
    ) -> Response:
        """Send a request, and return its response, which the caller closes. Raises `BrokenAnswer` or OSError, of which
        `ssl.SSLError` is one."""
        lines = [f"{method} {self._prefix}{quote(path)}{'?' if query else ''}{urlencode(query)} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in {"Host": self._netloc, **headers}.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        if any("\r" in line or "\n" in line for line in lines):
            raise BrokenAnswer("a header has a line break")
        request = "\r\n".join((*lines, "", "")).encode("latin-1") + (body or b"")
        while self._idle:
            idle = self._idle.pop()
            if not idle.is_usable:
                idle.drop()
                continue
            try:
                return await self._exchange(idle, request)
            except OSError:
                if method not in _AGAIN:
                    raise
                break  # the server ended it just now
        return await self._exchange(await self._connect(tls), request)

    async def _connect(self, tls: ssl.SSLContext | None) -> Connection:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(
                self._host, self._port, ssl=tls, server_hostname=self._server_name, happy_eyeballs_delay=0.25
            )
        return Connection(reader, writer)

    async def _exchange(self, connection: Connection, request: bytes) -> Response:
        try:
            connection.writer.write(request)
            await connection.writer.drain()
            return Response(await _read_head(connection.reader), connection, self)
        except BaseException:
            connection.drop()
            raise


async def _read_head(reader: asyncio.StreamReader) -> ResponseHead:
    for _ in range(_MOST_INTERIM):
        head = await _read_until(reader, b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 1"):
            try:
                return read_head(io.BytesIO(head), "the answer")
            except Transient as error:
                raise BrokenAnswer(error.message) from error
    raise BrokenAnswer("too many interim answers")


async def _read_chunk_size(reader: asyncio.StreamReader) -> int:
    digits = (await _read_line(reader)).partition(b";")[0].strip()
    if not 0 < len(digits) < 16 or not digits.isalnum():
        raise BrokenAnswer("the size of a chunk is malformed")
    try:
        return int(digits, 16)
    except ValueError as error:
        raise BrokenAnswer("the size of a chunk is malformed") from error


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    return await _read_until(reader, b"\r\n")


async def _read_until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    try:
        return await reader.readuntil(end)
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("the server closed the connection") from error
    except asyncio.LimitOverrunError as error:
        raise BrokenAnswer("a header is too long") from error


async def _receive_counted(reader: asyncio.StreamReader, size: int) -> AsyncGenerator[bytes, None]:
    while size:
        piece = await reader.read(min(size, _PIECE_BYTES))
        if not piece:
            raise ConnectionResetError(f"the body ended {size} bytes early")
        size -= len(piece)
        yield piece
