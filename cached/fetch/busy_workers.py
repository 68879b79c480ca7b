"""How many workers use a processor: those that wait for a server do not.

Law: knows threads and a clock, not downloads. One more connection makes a fetch faster while connections wait for the
network. Where the processors are the limit it costs their time (switches between threads, pieces out of order, cold
caches) and memory, and gains nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

# A receive that finds its bytes in the kernel takes 1 ms for 4 MiB; a connection of 1 GB/s keeps it waiting for 4 ms.
_LONG_S = 0.004


class AtWork:
    """The threads that wait for a server, and since when. Thread-safe. `clock` is in monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting_since: dict[int, float] = {}  # by thread

    def begin_wait(self) -> None:
        """Note that the calling thread begins to wait: for the answer to a request, or for bytes."""
        with self._lock:
            self._waiting_since[threading.get_ident()] = self._clock()

    def end_wait(self) -> float:
        """Note that the calling thread waits no more; return the seconds it has waited."""
        with self._lock:
            return self._clock() - self._waiting_since.pop(threading.get_ident())

    def count_waiting(self) -> int:
        """Return how many threads have been waiting for long."""
        latest = self._clock() - _LONG_S
        with self._lock:
            return sum(1 for since in self._waiting_since.values() if since <= latest)
