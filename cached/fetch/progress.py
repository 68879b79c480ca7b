"""How far one download has come.

Law: thread-safe, takes no lock but its own, and does no I/O. A byte counts once: on its way, or written.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from cached.fetch.origin import AnyBody


class DownloadProgress:
    """The bytes of one blob that are here, and those that its threads receive now."""

    def __init__(self) -> None:
        self.written = 0  # so far, including resumed ones
        self.from_peers = 0  # of these
        self.received_at: float | None = None  # when the last of them came, in monotonic seconds
        self._arriving: dict[int, _Arriving] = {}  # by thread
        self._lock = threading.Lock()

    def begin(self, resumed: int) -> None:
        """Begin anew, with the bytes that an earlier attempt left."""
        with self._lock:
            self.written, self.from_peers = resumed, 0

    def watch(self, body: AnyBody, most: int) -> None:
        """Count what this thread receives of `body` from now on, at most `most` bytes, until they are written or
        lost."""
        with self._lock:
            self._arriving[threading.get_ident()] = _Arriving(body, body.received, most)

    def end_watch(self) -> None:
        """Forget what this thread has received and not written."""
        with self._lock:
            self._arriving.pop(threading.get_ident(), None)

    def add(self, size: int, *, from_peer: bool) -> None:
        """Count `size` bytes as written, in place of those of this thread that were on their way."""
        with self._lock:
            self._arriving[threading.get_ident()].settle()
            self.written += size
            if from_peer:
                self.from_peers += size
            self.received_at = time.monotonic()

    def count_received(self) -> int:
        """Return the written bytes and what has come of the buffers and pieces that are being received: on a slow link
        one buffer takes many seconds."""
        with self._lock:
            return self.written + sum(each.count() for each in self._arriving.values())


@dataclass(slots=True)
class _Arriving:
    """Bytes that are being received and not yet written: those of `body` after the first `before`, at most `most`."""

    body: AnyBody
    before: int
    most: int

    def settle(self) -> None:
        """Count no more what has come until now."""
        self.before = self.body.received

    def count(self) -> int:
        # A body that turns out to be a page has received nothing.
        return max(0, min(self.body.received - self.before, self.most))
