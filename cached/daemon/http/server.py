"""Serve connections: one request at a time of each, and limits on their number, their silence and their slowness.

Law: a new client is always accepted; past the limit the oldest connection is closed: idle clients are cheap to open and
would lock out others. A client has `SILENCE_S` for a whole request, from the accept or the last response on, and
`ANSWER_S` to take a response, which stays in memory until then. A client that ends does not end its request's handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from http import HTTPStatus

from cached.daemon.http.messages import Handler, Refused, Request, Response, make_refusal
from cached.daemon.http.reader import RequestReader

MOST_CONNECTIONS = 256  # a listener: a descriptor and some 20 KiB each
SILENCE_S = 15.0  # until a whole request has arrived, the first or the next one
ANSWER_S = 30.0  # until the client has taken the response
FAREWELL_S = 2.0  # for responses in progress at shutdown
_LINGER_S = 1.0  # after the response to a request that is not read to its end: a close at once would reset it

_log = logging.getLogger(__name__)


class Server:
    """The connections of one listener; calling it makes the protocol of a new one."""

    def __init__(self, handler: Handler, most_clients: int) -> None:
        self.handler = handler
        self._most_clients = most_clients
        self._connections: dict[Connection, None] = {}  # the oldest first
        self._closing = False

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return Connection(self)

    @property
    def is_closing(self) -> bool:
        return self._closing

    def add(self, connection: Connection) -> None:
        """Count a connection; close the oldest ones past the limit."""
        self._connections[connection] = None
        for oldest in list(self._connections)[: max(0, len(self._connections) - self._most_clients)]:
            self.remove(oldest)
            oldest.abort()

    def remove(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    async def close(self) -> None:
        """Close the idle connections, give responses in progress `FAREWELL_S`, and end the rest."""
        self._closing = True
        tasks = [task for task in [each.leave() for each in list(self._connections)] if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL_S)
        for each in list(self._connections):
            each.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._reader: RequestReader
        self._work: asyncio.Task[None] | None = None  # while a request is handled
        self._timer: asyncio.TimerHandle | None = None
        self._taken = asyncio.Event()  # the client has taken all that was written
        self._taken.set()
        self._is_over = False  # nothing more is read: the connection closes after its last response

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=0)
        self._transport, self._reader = transport, RequestReader(transport)
        self._server.add(self)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio.Protocol
        self._server.remove(self)
        self._stop_timer()
        self._is_over = True
        self._taken.set()

    def pause_writing(self) -> None:
        self._taken.clear()

    def resume_writing(self) -> None:
        self._taken.set()

    def eof_received(self) -> bool:
        self._is_over = True
        return self._work is not None  # a client that closed its half of the connection still gets its response

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return  # of a request that was refused
        self._reader.feed(data)
        self._take_next()

    def abort(self) -> None:
        """End the connection at once."""
        self._is_over = True
        self._transport.abort()

    def leave(self) -> asyncio.Task[None] | None:
        """Close the connection if it is idle; return the task of a request in work."""
        if self._work is None:
            self._is_over = True
            self._transport.close()
        return self._work

    def _take_next(self) -> None:
        """Begin the next request, if it is all here and none is in work."""
        if self._work is not None or self._is_over:
            return
        try:
            request = self._reader.take()
        except Refused as refused:
            self._refuse(refused.status)
            return
        if self._reader.expects_go_ahead:
            self._reader.expects_go_ahead = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request is not None:
            self._stop_timer()
            self._transport.pause_reading()  # what a client sends ahead waits in the kernel
            self._work = asyncio.get_running_loop().create_task(self._handle(request))

    async def _handle(self, request: Request) -> None:
        try:
            response = await self._respond(request)
            keeps = request.keeps_alive and not self._server.is_closing and not self._is_over
            await self._send(response, keeps=keeps, with_body=request.method != "HEAD")
        finally:
            self._work = None
        if not keeps:
            self._is_over = True
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.resume_reading()
            self._await_request()
            self._take_next()

    async def _respond(self, request: Request) -> Response:
        try:
            return await self._server.handler(request)
        except Exception:  # noqa: BLE001 - the client gets 500
            _log.exception("answering %s %s", request.method, request.path)
            return make_refusal(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _send(self, response: Response, *, keeps: bool, with_body: bool) -> None:
        """Write a response and wait until the client has taken it; abort the connection after `ANSWER_S`."""
        if self._transport.is_closing():
            return
        self._transport.write(_encode_head(response, keeps=keeps) + (response.body if with_body else b""))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._taken.wait()
                return
        self.abort()

    def _refuse(self, status: int) -> None:
        """Answer what is no request, or too large; then drop what still comes for a moment, and close."""
        self._is_over = True
        response = make_refusal(status)
        self._transport.write(_encode_head(response, keeps=False) + response.body)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._start_timer(_LINGER_S)

    def _await_request(self) -> None:
        self._start_timer(SILENCE_S)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _encode_head(response: Response, *, keeps: bool) -> bytes:
    status = HTTPStatus(response.status)
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
    ]
    if response.allow:
        lines.append(f"Allow: {response.allow}")
    if not keeps:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")
