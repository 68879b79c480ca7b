"""What the root's file system says, as a thread of its own saw it last: numbers, and whether the root was deleted.

Law: the only one who asks; everybody else is told, at once and also while the disk does not answer, which is an error
of its own after a while. The thread is never waited for: a disk that hangs must not keep anybody from going on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from statistics import median_low

from cached.contract.errors import HoldfastError, Transient
from cached.contract.program import limits
from cached.core.space import DiskSpace, Ledger
from cached.node.log_once import Saying
from cached.store.disk.root import Root

_log = logging.getLogger(__name__)

HANGING_S = 20.0  # without an answer: a disk under load takes seconds
_PAUSE_S = 1.0
_SUBJECT = "the root's file system"


class DiskWatch:
    """Looks once when it is made, which may block; then each second, from `follow` on. Close it when done."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._seen = self._look()
        self._asked_at: float | None = None  # on the monotonic clock, while the disk has not answered
        self._rooms: deque[int] = deque(maxlen=3)
        self._stop = threading.Event()
        self._saying = Saying(_log)

    def space(self) -> DiskSpace:
        """The numbers as they were seen last; raises `Transient` where the disk did not tell them, or does not answer.
        Never blocks."""
        with self._lock:
            seen = self.hanging() or self._seen
        if isinstance(seen, HoldfastError):
            raise seen
        return seen

    def hanging(self) -> Transient | None:
        """The error of a disk that has not answered for long; None where it answers."""
        since = self._asked_at
        if since is None or (waited_s := time.monotonic() - since) <= HANGING_S:
            return None
        return Transient(
            "disk",
            f"{self._root.path}: the disk has not answered for {waited_s:.0f} s",
            "check the node's disk and kernel log; it goes on by itself when the disk answers",
        )

    def follow(self, ledger: Ledger, deleted: Callable[[], None]) -> None:
        """Look each second from now on, beside what `ledger` has counted; call `deleted` once the root is gone for
        good. Raises `Transient` (`no_thread`)."""
        limits.start(threading.Thread(target=self._run, args=(ledger, deleted), name="disk", daemon=True), _SUBJECT)

    def close(self) -> None:
        """Look no more."""
        self._stop.set()

    def _run(self, ledger: Ledger, deleted: Callable[[], None]) -> None:
        while not self._stop.wait(_PAUSE_S):
            counted = ledger.on_disk
            self._asked_at = time.monotonic()
            gone, seen = self._root.deleted, self._look()
            self._asked_at = None
            if self._stop.is_set():
                return
            if gone:
                deleted()
                return
            with self._lock:
                self._seen = self._settled(seen, min(counted, ledger.on_disk))

    def _look(self) -> DiskSpace | HoldfastError:
        try:
            return self._root.space()
        except HoldfastError as error:
            return error

    def _settled(self, seen: DiskSpace | HoldfastError, counted: int) -> DiskSpace | HoldfastError:
        """What is to be believed of a look. What is counted is told a moment after the disk has it, or before: of the
        last three looks the middle one is not off by that, or versions would be evicted for nothing."""
        if isinstance(seen, HoldfastError):
            self._rooms.clear()
            return seen
        self._rooms.append(seen.free + counted)
        return replace(seen, free=median_low(self._rooms), counted=0)
