"""A connected socket: blocking, with a clock that detects silence and a cancellation that wakes it.

Law: knows sockets, not HTTP. Received bytes go into the caller's memory, except the few KiB read with a response's
head. Errors of the socket pass through to the caller, which knows the URL.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import ssl
import struct
import time
from typing import Protocol

from cached.contract.errors import Transient
from cached.transport.connection.cancel import Cancellation

_HEAD_READ_BYTES = 16 * 1024


class EndOfStream(ConnectionError):
    """The peer closed the connection before the expected bytes."""


class WaitLimit(Protocol):
    """The limit of a wait."""

    def record_wait(self, seconds: float, received: int) -> None:
        """Record one wait. Raises `Transient` (`stalled`) at the limit."""


class Deadline:
    """A limit of waiting time in total."""

    def __init__(self, seconds: float, subject: str) -> None:
        self._limit_s = self._left_s = seconds
        self._subject = subject

    def record_wait(self, seconds: float, received: int) -> None:  # noqa: ARG002 - a head that arrives byte by byte is no progress
        self._left_s -= seconds
        if self._left_s <= 0:
            raise Transient("stalled", f"{self._subject}: no answer within {self._limit_s:g} s", "it is tried again")


class StallClock:
    """A minimum of bytes in each window of waiting; the time between two receives does not count."""

    def __init__(self, window_s: float, min_bytes: int, subject: str) -> None:
        self._window_s = window_s
        self._min_bytes = min_bytes
        self._subject = subject
        self._waited_s = 0.0
        self._received = 0

    def record_wait(self, seconds: float, received: int) -> None:
        self._waited_s += seconds
        self._received += received
        if self._received >= self._min_bytes:
            self._waited_s, self._received = 0.0, 0
        elif self._waited_s >= self._window_s:
            raise Transient(
                "stalled",
                f"{self._subject}: expected at least {self._min_bytes} bytes in {self._window_s:g} s, "
                f"found {self._received}",
                "it is tried again; if it goes on, look at the network to that host",
            )


class IdleState(enum.Enum):
    """The state of an idle connection: open, closed, or with unexpected bytes."""

    QUIET = enum.auto()
    CLOSED = enum.auto()
    DATA = enum.auto()


class Stream:
    """A connected socket, plain or TLS. Not thread-safe, except that a cancellation may wake it."""

    def __init__(self, sock: socket.socket, tick_s: float, cancellation: Cancellation, wait_limit: WaitLimit) -> None:
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._tick_s = tick_s
        self._buffered = bytearray()
        self._cancellation = cancellation
        self.wait_limit = wait_limit
        self.answered = False
        if self._tls:
            sock.settimeout(tick_s)
        else:
            # A Python timeout makes the descriptor non-blocking, and MSG_WAITALL then returns what has arrived. A
            # blocking descriptor with the kernel's own timeout fills 4 MiB in one system call.
            sock.settimeout(None)
            tick = struct.pack("@ll", int(tick_s), int(tick_s % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, tick)

    def begin(self, cancellation: Cancellation, wait_limit: WaitLimit) -> None:
        """Start an exchange; raises `Cancelled`."""
        self._cancellation = cancellation
        self.wait_limit = wait_limit
        self.answered = False
        cancellation.attach(self._sock)

    def end_exchange(self) -> None:
        """End an exchange: the connection is idle, and the cancellation no longer covers it."""
        self._cancellation.detach(self._sock)

    def close(self) -> None:
        self._cancellation.detach(self._sock)
        self._sock.close()

    def send(self, data: bytes) -> None:
        """Send all of `data`. A peer that takes no bytes, or takes them one by one, does not answer: what is waited for
        it counts as waiting for its answer."""
        rest = memoryview(data)
        while rest:
            began = time.monotonic()
            sent = 0  # after a tick in which nothing was taken
            with contextlib.suppress(BlockingIOError, TimeoutError):
                sent = self._sock.send(rest)
            self._cancellation.check()
            self.wait_limit.record_wait(time.monotonic() - began, 0)
            rest = rest[sent:]

    def receive(self, view: memoryview) -> int:
        """Receive into a non-empty `view`, to its end if the socket can; return the count, 0 at the end of data."""
        if not self._buffered:
            return self._wait(view, socket.MSG_WAITALL)
        size = min(len(view), len(self._buffered))
        view[:size] = self._buffered[:size]
        del self._buffered[:size]
        return size

    def readline(self, limit: int = 64 * 1024) -> bytes:
        """Read one line with its end, or `limit` bytes of it. Raises `EndOfStream` if the peer closes before."""
        searched = 0
        while True:
            end = self._buffered.find(b"\n", searched, limit)
            if end >= 0 or len(self._buffered) >= limit:
                size = end + 1 if end >= 0 else limit
                line = bytes(self._buffered[:size])
                del self._buffered[:size]
                return line
            searched = len(self._buffered)
            scratch = bytearray(_HEAD_READ_BYTES)
            received = self._wait(memoryview(scratch), 0)
            if received == 0:
                raise EndOfStream("closed by the other side")
            self._buffered += scratch[:received]

    def check_idle(self) -> IdleState:
        """Return the state of an idle connection without waiting."""
        if self._buffered:
            return IdleState.DATA
        try:
            # MSG_PEEK works on the ciphertext, where a TLS session ticket looks like data, so TLS needs a real read.
            found = self._read_tls_at_once() if self._tls else self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, ssl.SSLWantReadError):
            return IdleState.QUIET
        except OSError:
            return IdleState.CLOSED
        return IdleState.DATA if found else IdleState.CLOSED

    def _read_tls_at_once(self) -> bytes:
        self._sock.settimeout(0)
        try:
            return self._sock.recv(1)
        finally:
            self._sock.settimeout(self._tick_s)

    def _wait(self, view: memoryview, flags: int) -> int:
        while True:
            began = time.monotonic()
            received: int | None = None  # after a tick without bytes
            with contextlib.suppress(BlockingIOError, TimeoutError):
                received = self._sock.recv_into(view) if self._tls else self._sock.recv_into(view, 0, flags)
            self._cancellation.check()  # a socket that was shut down still returns received bytes
            self.wait_limit.record_wait(time.monotonic() - began, received or 0)
            if received is not None:
                self.answered = self.answered or received > 0
                return received
