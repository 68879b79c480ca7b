"""The ledger: the account of every byte under the root, so that no fetch begins that cannot end.

Law: in memory and thread-safe; does no I/O of its own, the disk's numbers come from a callable. Space is reserved
before it is written, and a reservation gives itself back. Whatever a byte is (committed, reserved, on its way out),
it is in exactly one of those accounts.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType

from cached.contract.errors import Permanent, Transient
from cached.contract.units import format_size


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The root's file system: all of it in bytes, and what an unprivileged writer may still take (`f_bavail`).

    `files` and `files_free`: the same in inodes; 0 in all where the file system makes them as it needs them.
    """

    capacity: int
    free: int
    files: int = 0
    files_free: int = 0


@dataclass(frozen=True, slots=True)
class SpaceUse:
    """The ledger at one moment, in bytes.

    `capacity`: the quota, or the file system where that is smaller. `used`: committed blobs. `reserved`: what fetches
    have set aside, written or not. `dying`: on disk, but trash or a partial blob that nobody fetches. `budget`: the
    most that may be held now, which is less than the capacity where others fill the file system. `free`: what of the
    budget can still be reserved. `files_free`: inodes.
    """

    capacity: int
    used: int
    reserved: int
    dying: int
    free: int
    budget: int
    files_free: int = 0


@dataclass(frozen=True, slots=True)
class Shortage:
    """What must be free before a fetch can go on: bytes, and files (inodes)."""

    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Stake:
    """What the space holds for a version under way, in bytes; others may go on from the same. `blobs`: committed ones,
    by sha256. `reserved`: what its flights set aside, `left`: partial blobs, dying but not deleted meanwhile; by id."""

    blobs: Mapping[str, int]
    reserved: Mapping[str, int]
    left: Mapping[str, int]

    def total(self) -> int:
        """All of it."""
        return sum(sum(part.values()) for part in (self.blobs, self.reserved, self.left))


class NoSpace(Transient):
    """Too much is held just now for `size` bytes, of which `resumed` are on disk: `needed_bytes` must be free."""

    def __init__(self, size: int, resumed: int, use: SpaceUse) -> None:
        super().__init__(
            "no_space",
            f"{format_size(size)} are needed, {format_size(use.free)} are free of {format_size(use.budget)}: "
            f"{format_size(use.used)} are committed, {format_size(use.reserved)} reserved, "
            f"{format_size(use.dying)} being deleted",
            "wait for other versions to be evicted, or raise the quota",
        )
        self.needed_bytes = size - resumed


class NoInodes(Transient):
    """The file system has too few inodes just now for `needed_files` new files."""

    def __init__(self, needed_files: int, free: int) -> None:
        super().__init__(
            "no_space",
            f"{needed_files} files are to be made, the file system has {free} inodes left, whatever its free bytes",
            "wait for other versions to be evicted, delete small files there, or make it anew with more inodes "
            "(mkfs.ext4 -N)",
        )
        self.needed_files = needed_files


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

    def found_dying(self, size: int) -> None:
        """`size` bytes more are dying than was known: the last block of a partial blob, or a blob that went bad."""
        with self._lock:
            self._dying += size

    def lost(self, size: int) -> None:
        """`size` committed bytes were deleted by somebody else, or went bad."""
        with self._lock:
            self._committed = max(0, self._committed - size)

    def reserve(self, size: int, resumed: int = 0) -> Reservation:
        """Set `size` bytes aside, of which a partial blob already has `resumed` on disk: they are dying no more.

        Raises `Permanent` (`too_large`) where they could never fit, `NoSpace` where they do not fit now.
        """
        if not 0 <= resumed <= size:
            raise ValueError(f"expected 0 <= resumed <= size, found resumed {resumed}, size {size}")
        with self._lock:
            use = self._use(self._disk())
            if size > use.capacity:
                raise self._too_large(size, use.capacity)
            if size - resumed > use.free:
                raise NoSpace(size, resumed, use)
            self._dying = max(0, self._dying - resumed)
            reservation = Reservation(self, size, resumed)
            self._open.add(reservation)
            return reservation

    def require_capacity(self, size: int) -> None:
        """Make sure that `size` bytes can be held at all; raises `Permanent` (`too_large`)."""
        use = self.use()
        if size > use.capacity:
            raise self._too_large(size, use.capacity)

    def require_files(self, count: int) -> None:
        """Make sure that `count` new files can be made now; raises `NoInodes` or `Permanent` (`too_large`)."""
        disk = self._disk()
        if disk.files == 0 or count <= disk.files_free:
            return
        if count > disk.files:
            raise Permanent(
                "too_large",
                f"{count} files are to be made, the file system has {disk.files} inodes in all",
                "make it anew with more inodes (mkfs.ext4 -N), or leave files out with `include` and `exclude`",
            )
        raise NoInodes(count, disk.files_free)

    def shortage(self, error: Transient) -> Shortage:
        """What would have to be free for whoever met this `no_space`."""
        if isinstance(error, NoSpace):
            return Shortage(error.needed_bytes, 0)
        if isinstance(error, NoInodes):
            return Shortage(0, error.needed_files)
        use = self.use()  # the disk itself refused what the account allowed: more than seems to be free, one by one
        return Shortage(use.free + 1, use.files_free + 1)

    def use(self) -> SpaceUse:
        """The account now, with the disk's numbers of now; raises `Transient` where the disk does not tell them."""
        with self._lock:
            return self._use(self._disk())

    def use_unseen(self) -> SpaceUse:
        """The account alone, where the disk does not tell its numbers: nothing is free."""
        with self._lock:
            return self._use(DiskSpace(0, 0))

    def _use(self, disk: DiskSpace) -> SpaceUse:
        capacity = disk.capacity if self._quota is None else min(self._quota, disk.capacity)
        reserved = sum(reservation._size for reservation in self._open)
        allocated = sum(reservation._allocated for reservation in self._open)
        on_disk = self._committed + self._dying + allocated
        budget = min(capacity, on_disk + disk.free)
        free = max(0, budget - self._committed - self._dying - reserved)
        return SpaceUse(capacity, self._committed, reserved, self._dying, free, budget, disk.files_free)

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
