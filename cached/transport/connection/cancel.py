"""Cancellation of blocking calls: a thread that waits in `recv` returns at once when another one cancels it.

Law: holds sockets only while they are attached; it shuts them down, and never closes or reads them. A callback wakes a
thread that waits for something else than a socket.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


class Cancelled(Exception):
    """The caller cancelled. Not a `HoldfastError`, because nothing failed."""


class Cancellation:
    """One request to stop, shared by any number of threads and connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._sockets: set[socket.socket] = set()
        self._calls: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def check(self) -> None:
        """Raise `Cancelled` after `cancel`."""
        if self._cancelled:
            raise Cancelled

    def cancel(self) -> None:
        """Stop everything attached now or later; from any thread, any number of times."""
        with self._lock:
            self._cancelled = True
            calls = list(self._calls)
            for sock in self._sockets:
                # The plain socket's method: SSLSocket.shutdown() drops its TLS state, and a reader in another thread
                # would then take ciphertext for the body.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for call in calls:
            call()

    def attach(self, sock: socket.socket) -> None:
        """Shut `sock` down on `cancel`. Raises `Cancelled` after it."""
        with self._lock:
            self.check()
            self._sockets.add(sock)

    @contextlib.contextmanager
    def on_cancel(self, stop: Callable[[], object]) -> Iterator[None]:
        """Call `stop` on `cancel`, in the cancelling thread, during the `with` block. Raises as `attach` does."""
        with self._lock:
            self.check()
            self._calls.append(stop)
        try:
            yield
        finally:
            with self._lock:
                self._calls.remove(stop)

    def detach(self, sock: socket.socket) -> None:
        """Forget `sock`. Call this before closing it: its descriptor may soon belong to another file."""
        with self._lock:
            self._sockets.discard(sock)
