"""How many processors the workers keep busy, or queue for.

Law: knows threads and a clock, not downloads. One more connection makes a fetch faster while connections wait for the
network. Where the processors are the limit it costs their time (switches between threads, pieces out of order, cold
caches) and memory, and gains nothing. A thread that waits for the network needs no processor; one that is ready to run
and has none shows that all are taken, be it by another program. Linux counts the nanoseconds of both for each thread
(Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat").
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WINDOW_S = 0.05  # some pieces of each worker, of 2 to 5 ms


class ProcessorDemand:
    """The processors that some threads used or queued for lately. Thread-safe. `clock` is in monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._descriptors: list[int] = []  # of each thread's counts
        self._since_s: float | None = None
        self._counted_s = 0.0
        self._workers = 1
        self._demand: float | None = None

    @contextmanager
    def count_this_thread(self) -> Iterator[None]:
        """Count the calling thread during the `with` block, unless the kernel has no counts of it to read."""
        try:
            descriptor = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # a sandbox, or no free descriptor: the thread works all the same
            yield
            return
        with self._lock:
            self._descriptors.append(descriptor)
            self._forget()
        try:
            yield
        finally:
            with self._lock:
                self._descriptors.remove(descriptor)
                self._forget()
            os.close(descriptor)

    def measure(self, workers: int) -> float | None:
        """Return how many processors the threads used or queued for on average between the last two measurements, at
        least 50 ms apart; None before the second one, 0 if no thread is counted: then none is held back. `workers`: how
        many of the threads have something to do now; those that were added since then are taken to need as much as the
        others. With none the demand is 0, and what was measured before is forgotten."""
        now = self._clock()
        with self._lock:
            if not workers:
                self._forget()  # else the next demand would be an average with a pause
            if not workers or not self._descriptors:
                return 0.0
            if self._since_s is None or now - self._since_s >= _WINDOW_S:
                counted_s = sum(map(_read_s, self._descriptors))
                if self._since_s is not None:
                    self._demand = (counted_s - self._counted_s) / (now - self._since_s)
                self._since_s, self._counted_s, self._workers = now, counted_s, workers
            return None if self._demand is None else self._demand * max(1.0, workers / self._workers)

    def _forget(self) -> None:
        self._since_s = self._demand = None


def _read_s(descriptor: int) -> float:
    """Return the seconds that a thread has run, and has been ready to run without a processor."""
    ran_ns, queued_ns, _ = os.pread(descriptor, 64, 0).split()
    return (int(ran_ns) + int(queued_ns)) / 1e9
