"""One connection's bytes, in and out: blocking, with a clock that notices silence and a cancellation that wakes it.

Law: knows sockets, not HTTP. Everything received goes into the caller's memory, except the few KiB read with a
response's head. Errors of the socket pass through; whoever knows the URL gives them a name.
"""

from __future__ import annotations

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
    """The other side closed where more bytes were due."""


class Patience(Protocol):
    """Decides how long to wait."""

    def spent(self, seconds: float, received: int) -> None:
        """Account for one wait; raises `Transient` (`stalled`) when it has been enough."""


class Deadline:
    """So many seconds of waiting in all."""

    def __init__(self, seconds: float, what: str) -> None:
        self._limit_s = self._left_s = seconds
        self._what = what

    def spent(self, seconds: float, received: int) -> None:  # noqa: ARG002 - trickling a head byte by byte is no progress
        self._left_s -= seconds
        if self._left_s <= 0:
            raise Transient("stalled", f"{self._what}: no answer within {self._limit_s:g} s", "it is tried again")


class StallClock:
    """So many bytes in each window of waiting; the time between two receives does not count."""

    def __init__(self, window_s: float, min_bytes: int, what: str) -> None:
        self._window_s = window_s
        self._min_bytes = min_bytes
        self._what = what
        self._waited_s = 0.0
        self._received = 0

    def spent(self, seconds: float, received: int) -> None:
        self._waited_s += seconds
        self._received += received
        if self._received >= self._min_bytes:
            self._waited_s, self._received = 0.0, 0
        elif self._waited_s >= self._window_s:
            raise Transient(
                "stalled",
                f"{self._what}: expected at least {self._min_bytes} bytes in {self._window_s:g} s, "
                f"found {self._received}",
                "it is tried again; if it goes on, look at the network to that host",
            )


class Idle(enum.Enum):
    """What a connection on which nothing is due holds."""

    QUIET = enum.auto()
    CLOSED = enum.auto()
    DATA = enum.auto()


class Stream:
    """A connected socket, plain or TLS. Not thread-safe, except that a cancellation may wake it."""

    def __init__(self, sock: socket.socket, tick_s: float, cancellation: Cancellation, patience: Patience) -> None:
        self._sock = sock
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._tick_s = tick_s
        self._held = bytearray()
        self._cancellation = cancellation
        self._patience = patience
        self.answered = False
        if self._tls:
            sock.settimeout(tick_s)
        else:
            # A Python timeout makes the descriptor non-blocking, and MSG_WAITALL then returns whatever is there. A
            # blocking descriptor with the kernel's own timeout fills 4 MiB in one system call.
            sock.settimeout(None)
            tick = struct.pack("@ll", int(tick_s), int(tick_s % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tick)

    def begin(self, cancellation: Cancellation, patience: Patience) -> None:
        """Start an exchange; raises `Cancelled`."""
        self._cancellation = cancellation
        self._patience = patience
        self.answered = False
        cancellation.attach(self._sock)

    def wait_with(self, patience: Patience) -> None:
        """Go on with another clock."""
        self._patience = patience

    def rest(self) -> None:
        """End an exchange: the connection is idle and no longer cancelled with it."""
        self._cancellation.detach(self._sock)

    def close(self) -> None:
        self._cancellation.detach(self._sock)
        self._sock.close()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def take(self, view: memoryview) -> int:
        """Receive into a non-empty `view`: all of it where the socket allows, at least one byte, or 0 at the end."""
        if self._held:
            return self._take_held(view)
        return self._wait(view, socket.MSG_WAITALL)

    def readline(self, limit: int = 64 * 1024) -> bytes:
        """One line with its end, or `limit` bytes of it; raises `EndOfStream` if the other side closes before."""
        searched = 0
        while True:
            end = self._held.find(b"\n", searched, limit)
            if end >= 0 or len(self._held) >= limit:
                size = end + 1 if end >= 0 else limit
                line = bytes(self._held[:size])
                del self._held[:size]
                return line
            searched = len(self._held)
            scratch = bytearray(_HEAD_READ_BYTES)
            received = self._wait(memoryview(scratch), 0)
            if received == 0:
                raise EndOfStream("closed by the other side")
            self._held += scratch[:received]

    def look(self) -> Idle:
        """Say, without waiting, whether anything came that nobody asked for."""
        if self._held:
            return Idle.DATA
        try:
            # MSG_PEEK works on the ciphertext, where a TLS session ticket looks like data: read for real there.
            found = self._look_tls() if self._tls else self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, ssl.SSLWantReadError):
            return Idle.QUIET
        except OSError:
            return Idle.CLOSED
        return Idle.DATA if found else Idle.CLOSED

    def _look_tls(self) -> bytes:
        self._sock.settimeout(0)
        try:
            return self._sock.recv(1)
        finally:
            self._sock.settimeout(self._tick_s)

    def _take_held(self, view: memoryview) -> int:
        size = min(len(view), len(self._held))
        view[:size] = self._held[:size]
        del self._held[:size]
        return size

    def _wait(self, view: memoryview, flags: int) -> int:
        while True:
            began = time.monotonic()
            received = self._receive(view, flags)
            self._cancellation.check()  # a socket that was shut down still gives what it had received
            self._patience.spent(time.monotonic() - began, received or 0)
            if received is not None:
                self.answered = self.answered or received > 0
                return received

    def _receive(self, view: memoryview, flags: int) -> int | None:
        """One system call: bytes received, 0 at the end, None if a tick passed with nothing."""
        try:
            return self._sock.recv_into(view) if self._tls else self._sock.recv_into(view, 0, flags)
        except (BlockingIOError, TimeoutError):
            return None
