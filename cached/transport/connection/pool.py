"""Idle connections, kept for the next request on the same route.

Law: returns only open connections without unread bytes; never waits.
"""

from __future__ import annotations

import threading
import time

from cached.transport.connection.connect import ConnectionKey
from cached.transport.connection.stream import IdleState, Stream

_MAX_IDLE = 64
_MAX_IDLE_S = 60.0  # most servers and load balancers close at 60 to 75 s


class IdlePool:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[ConnectionKey, float, Stream]] = []  # the longest idle first
        self._closed = False

    def take(self, route: ConnectionKey) -> Stream | None:
        """Return the last used open connection to `route`, or None."""
        while True:
            with self._lock:
                found = next((entry for entry in reversed(self._idle) if entry[0] == route), None)
                if found is None:
                    return None
                self._idle.remove(found)
            stream = found[2]
            if stream.check_idle() is IdleState.QUIET:
                return stream
            stream.close()

    def put(self, route: ConnectionKey, stream: Stream) -> None:
        """Keep `stream`, which has no pending response; close connections that were idle too long."""
        now = time.monotonic()
        surplus = []
        with self._lock:
            if self._closed:
                surplus.append(stream)
            else:
                self._idle.append((route, now, stream))
            while self._idle and (len(self._idle) > _MAX_IDLE or now - self._idle[0][1] > _MAX_IDLE_S):
                surplus.append(self._idle.pop(0)[2])
        for old in surplus:
            old.close()

    def close(self) -> None:
        """Close the idle connections, and those that come back later."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, _, stream in idle:
            stream.close()
