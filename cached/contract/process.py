"""What a program that runs for long does before anything else: keep signals until it can heed them, and speak to a log
that neither stops nor ends it.

Law: standard library only, cheap to import. Here the process ends itself: nowhere else. That is allowed at any moment,
because whatever matters is durable step by step, and a kill leaves nothing that the next start does not mend.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable

ENDING = (signal.SIGTERM, signal.SIGINT)
_PIECE_BYTES = select.PIPE_BUF  # a pipe that poll(2) calls writable takes so much without waiting
_PATIENCE_MS = 100  # for a reader that lags; one that does not come back within it gets no more until it does


def prepare() -> None:
    """Make signals wait from now on, until `heed` or an `Ending`; ignore SIGHUP; let stderr lose lines, not time.

    As process 1 of a container a program without a handler does not even get SIGTERM, and the kubelet would wait out
    the whole grace for one that is still importing; what is blocked is kept. SIGHUP asks daemons to read their
    configuration again: there is nothing to read that is not watched.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stderr = Voice(sys.stderr.fileno())


def heed() -> None:
    """Let the signals come that were kept: handlers are there."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


class Voice(io.TextIOBase):
    """Text to a descriptor whose reader may be slow, stuck or gone: what it does not take is lost, and told later.

    No buffer, so nothing is left for the end of the process to fail at.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lost = 0  # lines

    def write(self, text: str) -> int:
        """Write all of `text`, or drop it."""
        with self._lock:
            if self._lost and self._put(f"(lines that nobody took: {self._lost})\n"):
                self._lost = 0
            if self._lost or not self._put(text):
                self._lost += max(1, text.count("\n"))
        return len(text)

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def _put(self, text: str) -> bool:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data:
            if not self._poll.poll(0 if self._lost else _PATIENCE_MS):
                return False
            try:
                data = data[os.write(self._descriptor, data[:_PIECE_BYTES]) :]
            except OSError:  # EPIPE: its reader is gone; EIO: its terminal is; ENOSPC: its disk is full
                return False
        return True


class Ending(threading.Thread):
    """Waits for the signals that ask the process to end. Start it before any other thread, and once.

    Before a `farewell` is known the process ends there and then, with 0. With one, it is called, and has `patience_s`
    seconds: past that, or at a second signal, `leave` is called and the process ends with 0 whatever still runs.
    """

    def __init__(self, patience_s: float, leave: Callable[[str], None]) -> None:
        super().__init__(name="ending", daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # each thread that starts later inherits it
        self._patience_s = patience_s
        self._leave = leave
        self._lock = threading.Lock()
        self._farewell: Callable[[], object] | None = None
        self.asked = False  # whether a signal asked the process to end

    def farewell(self, farewell: Callable[[], object]) -> None:
        """From now on a signal calls this, from the thread that waits for it; it must not block."""
        with self._lock:
            self._farewell = farewell

    def run(self) -> None:
        signal.sigwait(ENDING)
        self.asked = True
        with self._lock:
            if self._farewell is None:
                os._exit(0)
            self._farewell()
        again = signal.sigtimedwait(ENDING, self._patience_s)
        self._leave(f"still busy after {self._patience_s:g} s" if again is None else "told to end again")
        os._exit(0)
