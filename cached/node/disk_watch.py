"""The root's file system as a thread last measured it: its free space, and whether the root was deleted.

Law: only this thread asks the disk; all callers get the last result at once, also while the disk does not answer, which
becomes an error after `HANGING_S`. No caller waits for the thread, nor for a lock: the ledger asks while it holds its
own, which the thread takes.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median_low

from cached.contract.errors import HoldfastError, Transient
from cached.contract.program import limits
from cached.core.space import DiskSpace, Ledger
from cached.store.disk.root import Root

HANGING_S = 20.0  # without an answer: a disk under load takes seconds
_PAUSE_S = 1.0
_QUIET_PAUSE_S = 5.0  # while nothing is fetched, and others leave the disk as it is
_NEWS_SHARE = 256  # of the capacity, by which the free space changes


class DiskWatch:
    """Measures once in the constructor, which may block, and again and again after `follow`. Close it when done."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._measured = self._measure()  # replaced as a whole
        self._asked_at: float | None = None  # on the monotonic clock, while the disk has not answered
        self._rooms: deque[int] = deque(maxlen=3)
        self._stop = threading.Event()

    def space(self) -> DiskSpace:
        """Return the last measurement; never blocks. Raises `Transient` if it failed or the disk hangs."""
        measured = self.hanging() or self._measured
        if isinstance(measured, HoldfastError):
            raise measured
        return measured

    def hanging(self) -> Transient | None:
        """Return the error of a disk that has not answered for `HANGING_S`, else None."""
        return hang_error(self._root.path, self._asked_at)

    def follow(self, ledger: Ledger, deleted: Callable[[], None], is_busy: Callable[[], bool]) -> None:
        """Measure from now on, together with the bytes that `ledger` has counted: each second while `is_busy`, which is
        called from a thread, and while others change the free space, else every five seconds. Call `deleted` once the
        root was deleted. Raises `Transient` (`no_thread`)."""
        thread = threading.Thread(target=self._run, args=(ledger, deleted, is_busy), name="disk", daemon=True)
        limits.start_thread(thread, "the root's file system")

    def close(self) -> None:
        """Stop the thread, without waiting for it."""
        self._stop.set()

    def _run(self, ledger: Ledger, deleted: Callable[[], None], is_busy: Callable[[], bool]) -> None:
        room, pause_s = 0, _PAUSE_S
        while not self._stop.wait(pause_s):
            counted = ledger.on_disk
            self._asked_at = time.monotonic()
            is_gone, measured = self._root.deleted, self._measure()
            self._asked_at = None
            if self._stop.is_set():
                return
            if is_gone:
                deleted()
                return
            self._measured = self._smooth(measured, min(counted, ledger.on_disk))
            before, room = room, 0 if isinstance(measured, HoldfastError) else measured.free + counted
            has_news = isinstance(measured, HoldfastError) or abs(room - before) * _NEWS_SHARE > measured.capacity
            pause_s = _PAUSE_S if has_news or is_busy() else _QUIET_PAUSE_S

    def _measure(self) -> DiskSpace | HoldfastError:
        try:
            return self._root.space()
        except HoldfastError as error:
            return error

    def _smooth(self, measured: DiskSpace | HoldfastError, counted: int) -> DiskSpace | HoldfastError:
        """Return the measurement with the median room of the last three: the ledger counts bytes a moment before or
        after the disk has them, and that difference must not evict versions."""
        if isinstance(measured, HoldfastError):
            self._rooms.clear()
            return measured
        self._rooms.append(measured.free + counted)
        return replace(measured, free=median_low(self._rooms), counted=0)


def hang_error(path: Path, asked_at: float | None) -> Transient | None:
    """Return the error for a disk under `path` that has not answered for `HANGING_S` a call made at `asked_at`
    (monotonic seconds; None: no call is open), else None."""
    if asked_at is None or (waited_s := time.monotonic() - asked_at) <= HANGING_S:
        return None
    return Transient(
        "disk",
        f"{path}: the disk has not answered for {waited_s:.0f} s",
        "check the node's disk and kernel log; it goes on by itself when the disk answers",
    )
