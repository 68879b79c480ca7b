"""The bandwidth limit: a token bucket that all connections share.

Law: `take` waits outside the lock, only as long as the rate requires; the workers handle priorities.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cached.transport.connection.cancel import Cancellation

_BURST_S = 0.1


class BandwidthLimit:
    """At most `rate` bytes a second over all callers; None: no limit. `clock` and `sleep` are in monotonic seconds."""

    def __init__(self, rate: int | None, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()

    def chunk(self, size: int) -> int:
        """Return how many bytes to receive at once, so that a slow rate is spread out instead of coming in bursts."""
        if self.rate is None:
            return size
        return max(1, min(size, max(16 * 1024, int(self.rate * _BURST_S))))

    def take(self, size: int, cancellation: Cancellation) -> None:
        """Wait until `size` more bytes may be received."""
        if self.rate is None:
            return
        with self._lock:
            start = max(self._free_at, self._clock() - _BURST_S)
            self._free_at = start + size / self.rate
        while (left_s := start - self._clock()) > 0:
            cancellation.check()
            self._sleep(min(left_s, _BURST_S))
