"""Cancel what blocks: a thread that waits in `recv` comes back at once when somebody else cancels it.

Law: holds sockets only while they are attached; it shuts them down, and never closes or reads them. What waits for
something else than a socket is woken by a call.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator


class Cancelled(Exception):
    """The caller asked to stop. Not a `HoldfastError`: nothing went wrong."""


class Cancellation:
    """One decision to stop, shared by any number of threads and connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._sockets: set[socket.socket] = set()
        self._calls: list[Callable[[], object]] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def check(self) -> None:
        """Raise `Cancelled` if it was cancelled."""
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
        """Shut `sock` down when cancelled; raises `Cancelled` if that has happened already."""
        with self._lock:
            self.check()
            self._sockets.add(sock)

    @contextlib.contextmanager
    def calling(self, stop: Callable[[], object]) -> Iterator[None]:
        """Call `stop`, from whichever thread cancels, during the `with` block; raises `Cancelled` as `attach` does."""
        with self._lock:
            self.check()
            self._calls.append(stop)
        try:
            yield
        finally:
            with self._lock:
                self._calls.remove(stop)

    def detach(self, sock: socket.socket) -> None:
        """Forget `sock`. Do so before closing it: its number may name another file a moment later."""
        with self._lock:
            self._sockets.discard(sock)
