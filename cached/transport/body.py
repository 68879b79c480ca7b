"""The body of one response, received into the caller's memory.

Law: the kernel or TLS copies every byte once, into the caller's view. A body ends cleanly only as its framing says,
with no bytes after it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol, Self

from cached.contract.errors import HoldfastError, Transient
from cached.transport.connection.cancel import Cancellation, Cancelled
from cached.transport.connection.connect import ConnectionKey
from cached.transport.connection.pool import IdlePool
from cached.transport.connection.stream import EndOfStream, IdleState, Stream
from cached.transport.origin_proxy import OriginProxy
from cached.transport.pages import LOOKED_AT_BYTES, page_error, page_instead
from cached.transport.response import Extent, ResponseHead, bad_response
from cached.transport.target import Expected
from cached.transport.urls import display_url

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_MAX_TRAILERS = 100


@dataclass(slots=True, repr=False)
class Exchange:
    """A connection with one response on it, until the response is read or dropped. `origin_proxy`: who sends it in
    place of the origin."""

    answer: ResponseHead
    stream: Stream
    url: str
    route: ConnectionKey
    pool: IdlePool
    cancellation: Cancellation
    origin_proxy: OriginProxy | None = None
    _kept: bool = field(default=False, init=False)

    @property
    def where(self) -> str:
        shown = display_url(self.url)
        return shown if self.origin_proxy is None else f"{shown} through Dragonfly"

    def keep(self) -> None:
        """Return the idle connection to the pool, unless the server or a cancellation ends it."""
        self._kept = True
        self.stream.end_exchange()
        if self.answer.keep_alive and not self.cancellation.cancelled:
            self.pool.put(self.route, self.stream)
        else:
            self.stream.close()

    def drop(self) -> None:
        """Close the connection, unless it was kept: another exchange may use it by now."""
        if not self._kept:
            self.stream.close()


class Framing(Protocol):
    """The framing of a body, which determines its end."""

    def read(self, view: memoryview) -> int:
        """Receive at least one byte into a non-empty `view`; 0 at and after the clean end. Raises OSError."""


class Counted:
    """A body of known length."""

    def __init__(self, stream: Stream, length: int) -> None:
        self._stream = stream
        self._left = length

    def read(self, view: memoryview) -> int:
        if self._left == 0:
            return 0
        received = self._stream.receive(view[: self._left])
        if received == 0:
            raise EndOfStream(f"the body ended {self._left} bytes early")
        self._left -= received
        return received


class UntilClose:
    """A body that ends with the connection (HTTP/1.0 without a length)."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._ended = False

    def read(self, view: memoryview) -> int:
        received = 0 if self._ended else self._stream.receive(view)
        self._ended = received == 0
        return received


class Chunked:
    """A body in chunks (RFC 9112, section 7.1)."""

    def __init__(self, stream: Stream, where: str) -> None:
        self._stream = stream
        self._where = where
        self._left = 0
        self._ended = False

    def read(self, view: memoryview) -> int:
        if self._left == 0 and not self._ended:
            self._open_chunk()
        if self._ended:
            return 0
        received = self._stream.receive(view[: self._left])
        if received == 0:
            raise EndOfStream("the body ended within a chunk")
        self._left -= received
        if self._left == 0 and self._stream.readline().rstrip(b"\r\n"):
            raise bad_response(self._where, "a chunk is longer than its size says")
        return received

    def _open_chunk(self) -> None:
        match = _CHUNK_SIZE.fullmatch(self._stream.readline())
        if match is None:
            raise bad_response(self._where, "the size of a chunk is malformed")
        self._left = int(match[1], 16)
        if self._left:
            return
        for _ in range(_MAX_TRAILERS):
            if not self._stream.readline().rstrip(b"\r\n"):
                self._ended = True
                return
        raise bad_response(self._where, "too many trailers")


class Body:
    """The bytes of an object from `start`, `length` of them (None: unknown until the end), out of `total` if known.

    `start` is the requested offset, or 0 if the server ignores ranges and sends the whole object. `received` counts the
    bytes so far.
    """

    def __init__(self, exchange: Exchange, extent: Extent, expected: Expected | None) -> None:
        """`expected`: the expected file; a web page in its place is refused."""
        self.start = extent.start
        self.length = extent.length
        self.total = extent.total
        self.etag = exchange.answer.etag
        self.last_modified = exchange.answer.last_modified
        self.load = exchange.answer.headers.get("Holdfast-Load", "")  # what a node of the pool says of itself
        self.is_proxied = exchange.origin_proxy is not None
        self.pieces = exchange.answer.headers.get("Holdfast-Pieces", "")
        self._exchange = exchange
        self._framing = _framing(exchange, extent)
        self.ends_by_close = isinstance(self._framing, UntilClose)  # a part looks like the whole
        self.received = 0
        self._ended = False
        self._closed = False
        self._expected = expected if extent.start == 0 else None
        self._page: str | None = None

    def readinto(self, view: memoryview) -> int:
        """Fill `view` unless the body ends first; return the bytes received, 0 only at the clean end of the body.

        Raises `Transient` (`bad_response`, `reset`, `stalled`), or `Cancelled`; `view` and `received` then have the
        bytes before that. Only time spent in this call counts for a stall.
        """
        filled = 0
        try:
            self._exchange.cancellation.check()
            window = view if self.length is None else view[: self.length - self.received]
            count = 1
            while count and filled < len(window) and not self._ended:
                count = self._framing.read(window[filled:])
                filled += count
                self.received += count
            self._check_page(view[:filled])
            if (not count or self.received == self.length) and not self._ended:
                self._end()
        except (HoldfastError, Cancelled, OSError) as error:
            self.close()
            self._exchange.cancellation.check()  # a cancelled connection may fail with another error
            if self._exchange.origin_proxy is not None:
                self._exchange.origin_proxy.record_failure(str(error))
            self._check_page(view[:filled])
            if isinstance(error, OSError):
                raise self._broken(error) from error
            raise
        return filled

    def close(self) -> None:
        """Return the connection to the pool if the body was read to its end, else close it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._ended:
            self._exchange.keep()
        else:
            self._exchange.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _end(self) -> None:
        where, answer = self._exchange.where, self._exchange.answer
        if answer.chunked and self._framing.read(memoryview(bytearray(1))):
            raise bad_response(where, f"more than the {self.length} bytes that its Content-Range says")
        if self.length is not None and self.received < self.length:
            raise EndOfStream(f"the body ended {self.length - self.received} bytes early")
        if self._exchange.stream.check_idle() is IdleState.DATA:
            raise bad_response(where, f"bytes after the end of a body of {self.received} bytes")
        if self._page is not None and self._expected is not None and self._expected.size not in (None, self.received):
            raise page_error(f"the file {self._expected.name!r}", where, self._page)
        self._ended = True
        if self._exchange.origin_proxy is not None:
            self._exchange.origin_proxy.record_success()

    def _check_page(self, first: memoryview) -> None:
        """Check the first bytes for a page, of which no byte counts as received: no caller keeps it as the file's."""
        expected = self._expected
        if expected is None or self.received != len(first):
            return
        content_type = self._exchange.answer.headers.get_content_type()
        self._page = page_instead(expected, content_type, bytes(first[:LOOKED_AT_BYTES]))
        if self._page is not None and not expected.promised:
            self.received = 0
            raise page_error(f"the file {expected.name!r}", self._exchange.where, self._page)

    def _broken(self, error: OSError) -> Transient:
        where = self._exchange.where
        due = "" if self.length is None else f" of {self.length}"
        if isinstance(error, EndOfStream):
            return bad_response(where, f"{error}, after {self.received} bytes{due}")
        reason = error.strerror or type(error).__name__
        return Transient("reset", f"{where}: {reason} after {self.received} bytes{due}", "it is tried again")


def _framing(exchange: Exchange, extent: Extent) -> Framing:
    if exchange.answer.chunked:
        return Chunked(exchange.stream, exchange.where)
    # Content-Range gives the length of a 206 without Content-Length.
    if extent.length is not None:
        return Counted(exchange.stream, extent.length)
    return UntilClose(exchange.stream)
