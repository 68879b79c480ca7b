"""Requests to one API server, by the standard library's `http.client` on threads: idle connections, and bodies as they
come.

Law: knows no resource and no token; every wait is bounded by its caller, whose end ends the connection. aiohttp costs
each node 14 MiB of memory, to send a dozen kinds of requests to one address without redirects, cookies or proxies.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import select
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit
from weakref import WeakSet

from cached.transport.connection.cancel import Cancellation, Cancelled
from cached.transport.connection.thread_call import call_in_thread

T = TypeVar("T")

CONNECT_S = 10.0
_IDLE_S = 15.0  # less than servers keep an idle connection
_MOST_IDLE = 8
_PIECE_BYTES = 256 << 10
_AGAIN = frozenset({"GET"})  # sent once more where an idle connection ended before an answer


class BrokenAnswer(Exception):
    """The response does not follow HTTP; the message says how."""


class Connection:
    """A connection to the API server. `idle_since`: monotonic seconds, while it is idle."""

    def __init__(self, protocol: http.client.HTTPConnection, sock: socket.socket) -> None:
        self.protocol = protocol
        self.protocol.sock = sock
        self.protocol.auto_open = 0  # it would connect again by itself, and without TLS
        self.idle_since = 0.0
        self._sock = sock

    @property
    def is_usable(self) -> bool:
        """Whether an idle connection may be used again: it is young, and the server sent neither data nor its end."""
        if time.monotonic() - self.idle_since >= _IDLE_S or self.protocol.sock is None:
            return False
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        return not poll.poll(0)

    async def run(self, step: Callable[[], T]) -> T:
        """Return the result of a blocking `step` of this connection; the caller's end shuts the connection down. Raises
        `BrokenAnswer` or OSError."""
        try:
            return await call_in_thread(lambda cancellation: self._run(step, cancellation))
        except http.client.IncompleteRead as error:
            raise ConnectionResetError("the body ended early") from error
        except (http.client.HTTPException, ValueError) as error:
            if isinstance(error, OSError):  # RemoteDisconnected is both
                raise
            raise BrokenAnswer(f"{type(error).__name__}: {error}") from error
        except Cancelled as error:
            raise ConnectionResetError("the connection was shut down") from error

    def _run(self, step: Callable[[], T], cancellation: Cancellation) -> T:
        cancellation.attach(self._sock)
        try:
            return step()
        finally:
            cancellation.detach(self._sock)

    def shut_down(self) -> None:
        """End a running step with an error, from another thread."""
        with contextlib.suppress(OSError):  # the server has ended it
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def drop(self) -> None:
        """Close at once."""
        self.protocol.close()
        self._sock.close()


class Response:
    """A response whose head has been read. Use as `async with`: on the way out its connection is idle again if the body
    was read to its end, else closed."""

    def __init__(self, answer: http.client.HTTPResponse, connection: Connection, pool: ApiConnections) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._answer = answer
        self._connection = connection
        self._pool = pool

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back, or close it."""
        if self._answer.isclosed() and not self._answer.will_close:
            self._pool.put(self._connection)
        else:
            self._answer.close()
            self._connection.drop()

    async def read(self, most_bytes: int) -> bytes:
        """Return the body, or its first `most_bytes`; raises `BrokenAnswer` or OSError."""
        body = await self._connection.run(lambda: self._answer.read(most_bytes))
        self._check_end(at_end=len(body) < most_bytes)
        return body

    async def receive(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes, in pieces of at least a byte; raises `BrokenAnswer` or OSError."""
        while piece := await self._connection.run(lambda: self._answer.read1(_PIECE_BYTES)):
            yield piece
        self._check_end(at_end=True)

    def _check_end(self, *, at_end: bool) -> None:
        """http.client does not raise where a body of known length ends early, if it is read in parts."""
        if at_end and self._answer.length:
            self._answer.will_close = True
            raise ConnectionResetError(f"the body ended {self._answer.length} bytes early")


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
        self._all: WeakSet[Connection] = WeakSet()
        self._is_closed = False

    def close(self) -> None:
        """Close the idle connections, and end the running requests with an error."""
        self._is_closed = True
        for connection in list(self._all):
            connection.shut_down()
        for connection in self._idle:
            connection.drop()
        self._idle.clear()

    def put(self, connection: Connection) -> None:
        """Keep a connection without a request for the next one."""
        if self._is_closed:
            connection.drop()
            return
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
        if any("\r" in value or "\n" in value for value in headers.values()):  # http.client's error has the value
            raise BrokenAnswer("a header has a line break")
        target = f"{self._prefix}{quote(path)}{'?' if query else ''}{urlencode(query)}"

        def request(connection: Connection) -> http.client.HTTPResponse:
            connection.protocol.request(method, target, body, {"Host": self._netloc, **headers})
            return connection.protocol.getresponse()

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

    async def _exchange(
        self, connection: Connection, request: Callable[[Connection], http.client.HTTPResponse]
    ) -> Response:
        try:
            return Response(await connection.run(lambda: request(connection)), connection, self)
        except BaseException:
            connection.drop()
            raise

    async def _connect(self, tls: ssl.SSLContext | None) -> Connection:
        def dial(cancellation: Cancellation) -> socket.socket:
            sock = socket.create_connection((self._host, self._port), CONNECT_S)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if tls is not None:
                    sock = tls.wrap_socket(sock, server_hostname=self._server_name)
                sock.settimeout(None)
                cancellation.check()
            except BaseException:
                sock.close()
                raise
            return sock

        connection = Connection(http.client.HTTPConnection(self._host, self._port), await call_in_thread(dial))
        if self._is_closed:
            connection.drop()
            raise ConnectionAbortedError("the client was closed")
        self._all.add(connection)
        return connection
