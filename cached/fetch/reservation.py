"""The space that one download may fill.

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


class Allotment:
    """What one flight may fill: all of it from the start where the size is known, growing where it is not. Thread-safe.

    The file system shows as taken what it has given to `folder` already: the ledger is told, or it would count that
    twice and evict others for it. `folder` is None for a small blob, which is on the disk for a moment only.
    """

    def __init__(self, ledger: Ledger, reservation: Reservation, folder: Path | None) -> None:
        self._ledger = ledger
        self._reservation = reservation
        self._folder = folder
        self._lock = threading.Lock()

    def grow(self, size: int) -> None:
        """Make sure that `size` bytes may be written; raises `NoSpace` or `Permanent` (`too_large`)."""
        with self._lock:
            if size > self._reservation.size:
                self._grow(size)
            if self._folder is not None:
                self._ledger.count_partial(self._reservation.id, allocated_bytes(self._folder))

    @property
    def reserved(self) -> int:
        """What is set aside, in bytes."""
        return self._reservation.size

    def give_back(self) -> None:
        """No flight began: what an earlier one left stays as it is."""
        self._reservation.close()

    def settle(self, placed: Verified | None, left: int) -> None:
        """The flight is over: `placed` is a committed blob, `left` bytes stay as a partial one; the rest is given
        back."""
        if placed is None:
            self._reservation.settle(left, None, 0)
        else:
            self._reservation.settle(left, placed.sha256, placed.size)

    def _grow(self, size: int) -> None:
        """In large steps while there is room for them; what is missing at the end is told for the whole stream, since
        another try begins at its start."""
        self._ledger.require_capacity(size)
        for step in (max(self._reservation.size + _STEP_BYTES, size), size):
            try:
                self._reservation.grow(step)
            except HoldfastError:
                continue
            return
        raise NoSpace(size, 0, self._ledger.use())
