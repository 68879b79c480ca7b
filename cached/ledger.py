"""The ledger: the account of every byte under the root, so that no fetch begins that cannot end.

Law: in memory and thread-safe; does no I/O of its own, the disk's numbers come from a callable. Space is reserved
before it is written, and a reservation gives itself back. Whatever a byte is (committed, reserved, on its way out),
it is in exactly one of those accounts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from cached.contract.errors import Permanent, Transient
from cached.contract.units import format_size


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The root's file system, in bytes: all of it, and what an unprivileged writer may still take (`f_bavail`)."""

    capacity: int
    free: int


@dataclass(frozen=True, slots=True)
class SpaceUse:
    """The ledger at one moment, in bytes.

    `capacity`: the quota, or the file system where that is smaller. `used`: committed blobs. `reserved`: what fetches
    have set aside, written or not. `dying`: on disk, but trash or a partial blob that nobody fetches. `budget`: the
    most that may be held now, which is less than the capacity where others fill the file system. `free`: what of the
    budget can still be reserved.
    """

    capacity: int
    used: int
    reserved: int
    dying: int
    free: int
    budget: int


class NoSpace(Transient):
    """Too much is held just now for a reservation of `needed_bytes`."""

    def __init__(self, size: int, use: SpaceUse) -> None:
        super().__init__(
            "no_space",
            f"{format_size(size)} are needed, {format_size(use.free)} are free of {format_size(use.budget)}: "
            f"{format_size(use.used)} are committed, {format_size(use.reserved)} reserved, "
            f"{format_size(use.dying)} being deleted",
            "wait for other versions to be evicted, or raise the quota",
        )
        self.needed_bytes = size


class Ledger:
    """Hands out reservations within a quota and within what the file system has."""

    def __init__(self, quota_bytes: int | None, disk: Callable[[], DiskSpace]) -> None:
        self._quota = quota_bytes
        self._disk = disk
        self._lock = threading.Lock()
        self._committed = 0
        self._dying = 0
        self._open: set[Reservation] = set()

    def set_held(self, committed: int, dying: int) -> None:
        """Say what is on disk, as recovery found it. `dying` are trash, quarantine, and partial blobs."""
        with self._lock:
            self._committed, self._dying = committed, dying

    def moved_to_trash(self, size: int) -> None:
        """`size` committed bytes are in trash (or quarantine) now."""
        with self._lock:
            self._committed = _less(self._committed, size)
            self._dying += size

    def trash_deleted(self, size: int) -> None:
        """`size` dying bytes are gone from the disk. They may be more than were said to die: what a partial blob takes
        is measured in the file system's blocks."""
        with self._lock:
            self._dying = max(0, self._dying - size)

    def reserve(self, size: int, resumed: int = 0) -> Reservation:
        """Set `size` bytes aside, of which a partial blob already has `resumed` on disk: they are dying no more.

        Raises `Permanent` (`too_large`) where they could never fit, `NoSpace` where they do not fit now.
        """
        if not 0 <= resumed <= size:
            raise ValueError(f"expected 0 <= resumed <= size, found resumed {resumed}, size {size}")
        with self._lock:
            use = self._use()
            if size > use.capacity:
                raise self._too_large(size, use.capacity)
            if size - resumed > use.free:
                raise NoSpace(size, use)
            self._dying = max(0, self._dying - resumed)
            reservation = Reservation(self, size, resumed)
            self._open.add(reservation)
            return reservation

    def use(self) -> SpaceUse:
        """The account now, with the disk's numbers of now."""
        with self._lock:
            return self._use()

    def _use(self) -> SpaceUse:
        disk = self._disk()
        capacity = disk.capacity if self._quota is None else min(self._quota, disk.capacity)
        reserved = sum(reservation._size for reservation in self._open)
        allocated = sum(reservation._allocated for reservation in self._open)
        on_disk = self._committed + self._dying + allocated
        budget = min(capacity, on_disk + disk.free)
        free = max(0, budget - self._committed - self._dying - reserved)
        return SpaceUse(capacity, self._committed, reserved, self._dying, free, budget)

    def _too_large(self, size: int, capacity: int) -> Permanent:
        limit = "the quota" if capacity == self._quota else "the file system"
        return Permanent(
            "too_large",
            f"{format_size(size)} ({size} bytes) are needed, {limit} holds {format_size(capacity)} ({capacity} bytes)",
            f"raise {limit}'s size, or leave files out with `include` and `exclude` in the catalog",
        )


class Reservation:
    """Bytes set aside. Leave the `with` block, and what was not committed is given back."""

    def __init__(self, ledger: Ledger, size: int, allocated: int) -> None:
        self._ledger = ledger
        self._size = size
        self._allocated = allocated

    @property
    def size(self) -> int:
        """What is still set aside, in bytes."""
        with self._ledger._lock:
            return self._size

    def allocated(self, size: int) -> None:
        """The file system has given `size` bytes of this to a file (`fallocate`, or writing): they are missing from its
        free space by now and must not be counted twice."""
        with self._ledger._lock:
            self._check_open()
            if not 0 <= size <= self._size - self._allocated:
                raise ValueError(f"{size} bytes allocated of {self._size - self._allocated} reserved and not allocated")
            self._allocated += size

    def commit(self, size: int) -> None:
        """`size` bytes of this are committed blobs now."""
        with self._ledger._lock:
            self._take(size)
            self._ledger._committed += size

    def leave(self, size: int) -> None:
        """`size` bytes of this stay on disk uncommitted, as trash or as a partial blob to resume: they are dying."""
        with self._ledger._lock:
            self._take(size)
            self._ledger._dying += size

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._ledger._lock:
            self._ledger._open.discard(self)
            self._size = self._allocated = 0

    def _take(self, size: int) -> None:
        self._check_open()
        self._size = _less(self._size, size)
        self._allocated = max(0, self._allocated - size)

    def _check_open(self) -> None:
        if self not in self._ledger._open:
            raise ValueError("the reservation was given back already")


def _less(account: int, size: int) -> int:
    """What is left of an account. More taken than was there: account and disk have parted, and going on would overfill
    the disk."""
    if not 0 <= size <= account:
        raise ValueError(f"{size} bytes taken from an account of {account}")
    return account - size
