"""The disk space that one download may fill.

Law: thread-safe; every byte is reserved in the ledger before it is written.
"""

from __future__ import annotations

import threading
from pathlib import Path

from cached.contract.errors import HoldfastError
from cached.core.space import Ledger, NoSpace, Reservation
from cached.fetch.attempt import Verified
from cached.store.ingest import allocated_bytes

_STEP_BYTES = 64 * 1024 * 1024  # what a stream of unknown length reserves at a time


class DownloadSpace:
    """The reserved space of one download: all of it at once if the size is known, else growing. Thread-safe. The file
    system counts the space that `folder` has already as used: the ledger must know it, or it would count these bytes
    twice and evict versions for them. `folder` is None for a small blob, which is partial for a moment only."""

    def __init__(self, ledger: Ledger, reservation: Reservation, folder: Path | None) -> None:
        self._ledger = ledger
        self._reservation = reservation
        self._folder = folder
        self._lock = threading.Lock()

    def grow(self, size: int) -> None:
        """Reserve `size` bytes in all; raises `NoSpace` or `Permanent` (`too_large`)."""
        with self._lock:
            if size > self._reservation.size:
                self._grow(size)
            if self._folder is not None:
                self._ledger.count_partial(self._reservation.id, allocated_bytes(self._folder))

    @property
    def reserved(self) -> int:
        """The reserved bytes."""
        return self._reservation.size

    def give_back(self) -> None:
        """Release the reservation of a download that did not start; an earlier partial blob stays as it is."""
        self._reservation.close()

    def settle(self, placed: Verified | None, left: int) -> None:
        """Replace the reservation of an ended download by its committed blob, and `left` bytes of a partial one."""
        if placed is None:
            self._reservation.finish(left, None, 0)
        else:
            self._reservation.finish(left, placed.sha256, placed.size)

    def _grow(self, size: int) -> None:
        """Grow in large steps while there is room; `NoSpace` has the whole size: a new attempt begins at its start."""
        self._ledger.require_capacity(size)
        for step in (max(self._reservation.size + _STEP_BYTES, size), size):
            try:
                self._reservation.grow(step)
            except HoldfastError:
                continue
            return
        raise NoSpace(size, 0, self._ledger.compute_use())
