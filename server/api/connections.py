"""The connections of the listener: their number, and the time of each for a request and for its answer.

Law: a new client is always accepted; past the limit the connection that has been without a request longest is closed:
idle clients are cheap to open and would lock out others. A request in work is never cut for a newcomer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

_LEAST_BYTES_PER_S = 16 * 1024  # of a body, and of an answer: slower clients hold memory for no gain


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`most` connections without a request in work; seconds for a request's head (from the connection, later from its
    first byte), for its body (one more for each 16 KiB received), for the client to take a part of the answer, and
    between two requests."""

    most: int
    head_s: float
    body_s: float
    answer_s: float
    idle_s: float


class SlowBody(web.RequestPayloadError):
    """The body of a request did not arrive in time."""


class Connections:
    """The open connections. `closed` is called with the reason of each one that a limit closes: `number`, `head`,
    `body` or `answer`."""

    def __init__(self, limits: ConnectionLimits, closed: Callable[[str], None]) -> None:
        self.limits = limits
        self.closed = closed
        self._open: set[_ClientConnection] = set()

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, handler: web.RequestHandler) -> asyncio.Protocol:
        """Return the protocol of a new connection, whose requests `handler` reads."""
        return _ClientConnection(handler, self)

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Mark the request's connection as in work until the handler has ended. A handler that sends the answer itself
        is protected until the client has it."""
        protocol = None if request.transport is None else request.transport.get_protocol()
        if not isinstance(protocol, _ClientConnection):  # the client is gone
            return await handler(request)
        with protocol.working(request):
            return await handler(request)

    def close_oldest(self) -> None:
        """Close the connection that has been without a request longest; none where all have one."""
        self._close_oldest(None)

    async def close_idle(self) -> None:
        """Close the connections that are between two requests. One without a first request stays: its request is on its
        way, and has no other answer than a reset."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the loop reads what has arrived, which makes a connection busy
        for connection in [one for one in self._open if one.is_idle and one.is_used]:
            connection.close()

    def add(self, connection: _ClientConnection) -> None:
        """Add a new connection, and close another one past the limit."""
        self._open.add(connection)
        if len(self._open) > self.limits.most:
            self._close_oldest(connection)

    def discard(self, connection: _ClientConnection) -> None:
        self._open.discard(connection)

    def _close_oldest(self, newest: _ClientConnection | None) -> None:
        # Idle ones first, then those that sent a part of a request: that one may still become work.
        found = [one for one in self._open if one is not newest and not one.is_working]
        if found:
            min(found, key=lambda one: (not one.is_idle, one.is_receiving, one.since)).abort("number")


class _ClientConnection(asyncio.Protocol):
    """One client's connection: passes bytes to aiohttp's handler, and ends what takes too long."""

    def __init__(self, handler: web.RequestHandler, connections: Connections) -> None:
        self._handler = handler
        self._connections = connections
        self._limits = connections.limits
        self._transport: asyncio.Transport | None = None
        self._request: web.Request | None = None  # in work
        self._has_part = False  # of the next request
        self._cut = False
        self._timer: asyncio.TimerHandle | None = None  # of the head or the body
        self._answer_timer: asyncio.TimerHandle | None = None
        self.is_used = False  # for a request
        self.since = monotonic()  # without a request

    @property
    def is_working(self) -> bool:
        """Whether a request has arrived whole and is being answered."""
        return self._request is not None and self._request.content.is_eof()

    @property
    def is_receiving(self) -> bool:
        """Whether a request's head has arrived, and its body not yet."""
        return self._request is not None and not self._request.content.is_eof()

    @property
    def is_idle(self) -> bool:
        return self._request is None and not self._has_part

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._handler.connection_made(transport)
        self._set_timer(self._limits.head_s, self._end_head)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._clear_timer()
        self._clear_answer_timer()
        self._transport = None
        self._handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._cut:
            return
        if self._request is None:
            self._begin_head()
        elif self._request.content.is_eof():
            self._has_part = True
        self._handler.data_received(data)

    def eof_received(self) -> None:
        self._handler.eof_received()

    def pause_writing(self) -> None:
        self._handler.pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        self._clear_answer_timer()
        self._handler.resume_writing()

    @contextmanager
    def working(self, request: web.Request) -> Iterator[None]:
        """Have a request in work while the block runs."""
        self._request, self._has_part, self.is_used = request, False, True
        self._clear_timer()
        if not self._left_to_write():  # else the client has yet to take an earlier answer
            self._clear_answer_timer()
        if not request.content.is_eof():
            self._set_timer(self._limits.body_s, self._check_body, monotonic())
        try:
            yield
        finally:
            self._request, self.since = None, monotonic()
            self._clear_timer()
            if self._has_part:
                self._begin_head()
            if self._left_to_write():
                self._watch_answer()

    def close(self) -> None:
        """Close after what was written has been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: str) -> None:
        """Close now, and count it under `reason`."""
        if self._transport is not None:
            self._connections.closed(reason)
            self._connections.discard(self)
            self._transport.abort()

    def _begin_head(self) -> None:
        self._has_part = True
        if self._timer is None:  # the first head's runs since the connection was made
            self._set_timer(self._limits.head_s, self._end_head)

    def _end_head(self) -> None:
        self.abort("head")

    def _check_body(self, began: float) -> None:
        request = self._request
        if request is None or self._transport is None or request.content.is_eof():
            return
        received = request.content.total_raw_bytes
        left_s = began + self._limits.body_s + received / _LEAST_BYTES_PER_S - monotonic()
        if not self._transport.is_reading():  # the application takes its time, not the client
            left_s = self._limits.body_s
        if left_s > 0:
            self._set_timer(left_s, self._check_body, began)
            return
        self._cut = True
        self._connections.closed("body")
        found = f"found {received} bytes of it after {monotonic() - began:.0f} s"
        request.content.set_exception(SlowBody(f"expected the whole body of the request, {found}"))

    def _watch_answer(self) -> None:
        if self._answer_timer is None:
            loop = asyncio.get_running_loop()
            self._answer_timer = loop.call_later(self._limits.answer_s, self._check_answer, self._left_to_write())

    def _left_to_write(self) -> int:
        """Return the bytes of answers that the client has not taken."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def _check_answer(self, before: int) -> None:
        self._answer_timer = None
        left = self._left_to_write()
        if left and before - left < self._limits.answer_s * _LEAST_BYTES_PER_S:
            self.abort("answer")
        elif left:
            self._watch_answer()

    def _set_timer(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        self._clear_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, call, *arguments)

    def _clear_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _clear_answer_timer(self) -> None:
        if self._answer_timer is not None:
            self._answer_timer.cancel()
            self._answer_timer = None
