"""One client's connection: requests one after the other, whole before they are handled, and the time for each step.

Law: h11 parses and frames; this module moves bytes between it and the transport, and limits the time of each step. A
client has `SILENCE_S` for a whole request, from the accept or the last response on, and `ANSWER_S` to take a response,
or a piece of a stream, which stays in memory until then. A client that ends does not end its request's handler; it
ends a stream, which would else last until something is to be sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Protocol
from urllib.parse import unquote, urlsplit

import h11

from cached.daemon.http.messages import (
    Answer,
    Handler,
    HttpRequest,
    StreamedResponse,
    Upgrade,
    WholeResponse,
    make_refusal,
)

SILENCE_S = 15.0  # until a whole request has arrived, the first or the next one
ANSWER_S = 30.0  # until the client has taken the response
_LINGER_S = 1.0  # after the response to a request that is not read to its end: a close at once would reset it
_MOST_HEAD = 32 * 1024  # bytes of a request line with all headers, and of a chunked body's trailers
_MOST_BODY = 1024 * 1024
_METHODS_WITHOUT_BODY = frozenset({"HEAD"})

_log = logging.getLogger(__name__)


class ConnectionOwner(Protocol):
    """What a connection needs of its server."""

    handler: Handler

    @property
    def is_closing(self) -> bool:
        """Whether connections close after their next response."""

    def add(self, connection: Connection) -> None:
        """Count a connection."""

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""


class Connection(asyncio.Protocol):
    """One client of `listener`."""

    def __init__(self, listener: ConnectionOwner) -> None:
        self._listener = listener
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEAD)
        self._transport: asyncio.Transport
        self._head: h11.Request | None = None  # of the request whose body is being read
        self._body = bytearray()
        self._work: asyncio.Task[None] | None = None  # while a request is handled
        self._timer: asyncio.TimerHandle | None = None
        self._taken = asyncio.Event()  # the client has taken all that was written
        self._taken.set()
        self._is_over = False  # nothing more is read: the connection closes after its last response
        self._is_streaming = False  # the work is a stream, whose head was written

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=0)
        self._transport = transport
        self._listener.add(self)
        self._start_timer(SILENCE_S)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio.Protocol
        self._listener.remove(self)
        self._stop_timer()
        self._is_over = True
        self._taken.set()
        if self._is_streaming and self._work is not None:
            self._work.cancel()

    def pause_writing(self) -> None:
        self._taken.clear()

    def resume_writing(self) -> None:
        self._taken.set()

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return  # after a request that was refused, or during a stream
        self._http.receive_data(data)
        self._take_next()

    def eof_received(self) -> bool:
        if not self._is_over:
            self._http.receive_data(b"")
            self._take_next()
        # Half-closed: the client still gets its response. Of a stream no client closes a half.
        return (self._work is not None and not self._is_streaming) or not self._taken.is_set()

    def abort(self) -> None:
        """End the connection at once."""
        self._is_over = True
        self._transport.abort()

    def leave(self) -> asyncio.Task[None] | None:
        """Close the connection if it is idle, end a stream; return the task of a request in work."""
        if self._work is None or self._is_streaming:
            self._is_over = True
            if self._is_streaming and self._http.our_state is h11.SEND_BODY:
                self._transport.write(self._http.send(h11.EndOfMessage()) or b"")
            self._transport.close()
        if self._work is not None and self._is_streaming:
            self._work.cancel()
        return self._work

    def _take_next(self) -> None:
        """Begin the next request, if it is all here and none is in work."""
        try:
            while self._work is None and not self._is_over and self._take_event():
                pass
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint)

    def _take_event(self) -> bool:
        """Handle h11's next event; return whether another one may be there."""
        event = self._http.next_event()
        if isinstance(event, h11.Request):
            self._begin(event)
        elif isinstance(event, h11.Data):
            self._body += event.data
            if len(self._body) > _MOST_BODY:
                self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif isinstance(event, h11.EndOfMessage):
            assert self._head is not None
            self._start_work(self._head)
        elif isinstance(event, h11.ConnectionClosed):
            self._is_over = True
            self._transport.close()
        else:  # NEED_DATA or PAUSED
            if event is h11.NEED_DATA and self._http.they_are_waiting_for_100_continue:
                go_ahead = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                self._transport.write(self._http.send(go_ahead) or b"")
            return False
        return True

    def _begin(self, head: h11.Request) -> None:
        self._head, self._body = head, bytearray()
        headers = _list_headers(head)
        if not head.http_version.startswith(b"1."):
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        elif int(headers.get("content-length", "0")) > _MOST_BODY:  # h11 has checked that it is a number
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif headers.get("expect", "100-continue").lower() != "100-continue":
            self._refuse(HTTPStatus.EXPECTATION_FAILED)

    def _start_work(self, head: h11.Request) -> None:
        self._stop_timer()
        self._transport.pause_reading()  # what a client sends ahead waits in the kernel
        request = HttpRequest(
            method=head.method.decode("ascii"),
            path=_find_path(head.target.decode("ascii")),
            query=head.target.decode("ascii").partition("#")[0].partition("?")[2],
            headers=_list_headers(head),
            body=bytes(self._body),
            transport=self._transport,
        )
        self._work = asyncio.get_running_loop().create_task(self._handle(request))

    async def _handle(self, request: HttpRequest) -> None:
        try:
            answer = await self._respond(request)
            if isinstance(answer, StreamedResponse):
                await self._send_stream(answer, request.method)
            elif isinstance(answer, Upgrade):
                await self._upgrade(answer)
            else:
                await self._send(answer, request.method)
        finally:
            self._work = None
        if self._is_over or self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._is_over = True
            self._transport.close()
        elif not self._transport.is_closing():
            self._http.start_next_cycle()
            self._transport.resume_reading()
            self._start_timer(SILENCE_S)
            self._take_next()

    async def _upgrade(self, answer: Upgrade) -> None:
        """Send 101, and hand the socket over; the transport reads nothing until that ends, and closes then."""
        self._is_over = True
        headers = [("Upgrade", answer.protocol), ("Connection", "Upgrade")]
        head = h11.InformationalResponse(status_code=101, headers=headers, reason=b"Switching Protocols")
        self._transport.write(self._http.send(head) or b"")
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._taken.wait()
        except TimeoutError:
            return
        with self._transport.get_extra_info("socket").dup() as stream:
            stream.setblocking(True)  # of both descriptors: the transport uses its own only to close it
            try:
                await answer.work(stream)
            except Exception:  # noqa: BLE001 - the client sees the end of the connection
                _log.exception("working for `%s`", answer.protocol)

    async def _respond(self, request: HttpRequest) -> Answer:
        try:
            return await self._listener.handler(request)
        except Exception:  # noqa: BLE001 - the client gets 500
            _log.exception("answering %s %s", request.method, request.path)
            return make_refusal(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def _send(self, response: WholeResponse, method: str) -> None:
        """Write a response and wait until the client has taken it; abort the connection after `ANSWER_S`."""
        if self._transport.is_closing():
            self._is_over = True
            return
        self._write(response, closes=self._listener.is_closing, with_body=method not in _METHODS_WITHOUT_BODY)
        await self._wait_until_taken()

    async def _send_stream(self, stream: StreamedResponse, method: str) -> None:
        """Write the pieces of a stream as they come, each after the client has taken the last one."""
        self._is_over = True  # what the client still sends is dropped
        async with contextlib.aclosing(stream.pieces) as pieces:
            if self._transport.is_closing():
                return
            headers = [("Content-Type", stream.content_type), *stream.headers]
            self._transport.write(self._make_head(HTTPStatus.OK, headers, closes=True))
            if method not in _METHODS_WITHOUT_BODY:
                self._is_streaming = True
                self._transport.resume_reading()  # only a read tells that the client has gone
                await self._write_pieces(pieces)
            if not self._transport.is_closing():
                self._transport.write(self._http.send(h11.EndOfMessage()) or b"")

    async def _write_pieces(self, pieces: AsyncIterator[bytes]) -> None:
        try:
            async for piece in pieces:
                self._transport.write(self._http.send(h11.Data(data=piece)) or b"")
                if not await self._wait_until_taken():
                    return
        except Exception:  # noqa: BLE001 - the client gets the end of its connection
            _log.exception("a stream")
            self.abort()

    async def _wait_until_taken(self) -> bool:
        """Return whether the client has taken all that was written; abort the connection after `ANSWER_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._taken.wait()
                return not self._transport.is_closing()
        self.abort()
        return False

    def _refuse(self, status: int) -> None:
        """Answer what is no request, or too large; then drop what still comes for a moment, and close."""
        self._is_over = True
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write(make_refusal(status), closes=True, with_body=True)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._start_timer(_LINGER_S)

    def _write(self, response: WholeResponse, *, closes: bool, with_body: bool) -> None:
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            *([("Allow", response.allow)] if response.allow else []),
            *response.headers,
        ]
        head = self._make_head(HTTPStatus(response.status), headers, closes=closes)
        body = h11.Data(data=response.body if with_body else b"")
        self._transport.write(head + b"".join(self._http.send(event) or b"" for event in (body, h11.EndOfMessage())))

    def _make_head(self, status: HTTPStatus, headers: list[tuple[str, str]], *, closes: bool) -> bytes:
        date = ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()))
        all_ = [*headers, date, *([("Connection", "close")] if closes else [])]
        return (
            self._http.send(h11.Response(status_code=status.value, headers=all_, reason=status.phrase.encode())) or b""
        )

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _list_headers(head: h11.Request) -> Mapping[str, str]:
    """Return the headers by lower-case name; values of a repeated one are joined by commas (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("ascii"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _find_path(target: str) -> str:
    """Return the decoded path of a request target, which may be a whole URI (RFC 9112, 3.2.2)."""
    try:
        path = target.partition("?")[0] if target.startswith("/") else urlsplit(target).path
    except ValueError:  # `http://[x/`: there is nothing
        path = ""
    return unquote(path, errors="replace")
