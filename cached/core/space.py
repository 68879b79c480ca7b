"""The ledger: the account of every byte under the root, so that no fetch begins that cannot end.

Law: in memory and thread-safe; does no I/O of its own, the disk's numbers come from a callable. It is a map from
content to size: whoever changes the disk says what is there now (`count_…`), never by how much that differs, so that
saying the same twice changes nothing and a recount can correct whatever somebody else did to the disk. Space is
reserved before it is written, and a reservation gives itself back. Each call costs the same however much is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from cached.contract.errors import Permanent, Transient
from cached.contract.program.units import format_size


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The root's file system: all of it in bytes, and what an unprivileged writer may still take (`f_bavail`).

    `files` and `files_free`: the same in inodes; 0 in all where the file system makes them as it needs them. `counted`:
    what the ledger had on this disk at that moment, so that its own changes since then do not look like others'; None:
    these are the numbers of now.
    """

    capacity: int
    free: int
    files: int = 0
    files_free: int = 0
    counted: int | None = None


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
class OnDisk:
    """What lies under the root, in bytes: committed blobs by sha256, partial ones by id, and the quarantine by name."""

    blobs: Mapping[str, int]
    partials: Mapping[str, int]
    quarantined: Mapping[str, int]


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
        self._blobs: dict[str, int] = {}
        self._partials: dict[str, int] = {}
        self._quarantined: dict[str, int] = {}
        self._open: dict[str, Reservation] = {}
        self._sizes: dict[str, int] = {}  # what is set aside for each of those
        self._committed = self._dying = self._reserved = self._allocated = 0  # the sums, kept up to date
        self._said: set[tuple[int, str]] | None = None  # what was counted since a recount began, while one runs

    # --- what is on the disk ---------------------------------------------------------------------------------------

    def count_blob(self, sha256: str, size: int) -> None:
        """A committed blob has `size` bytes; 0: it is not there."""
        with self._lock:
            self._count_blob(sha256, size)

    def count_partial(self, id_: str, size: int) -> None:
        """A partial blob takes `size` bytes of the disk; 0: it is not there. While it is reserved they are part of the
        reservation, else they are dying."""
        with self._lock:
            self._count_partial(id_, size)

    def count_quarantined(self, name: str, size: int) -> None:
        """A file in quarantine has `size` bytes; 0: it is not there."""
        with self._lock:
            self._count_quarantined(name, size)

    def count_all(self, found: OnDisk) -> None:
        """This is what is on the disk, and nothing else: what recovery found."""
        with self.recounting() as correct:
            correct(found)

    @contextmanager
    def recounting(self) -> Iterator[Callable[[OnDisk], int]]:
        """Compare the account with the disk, while others go on: begin this before the first look at the disk, and
        call its value with all that was found. What others counted meanwhile stays as they said, for the look may be
        older. Returns how many entries were wrong. One at a time."""
        with self._lock:
            if self._said is not None:
                raise ValueError("a recount is under way already")
            self._said = set()
        try:
            yield self._correct
        finally:
            with self._lock:
                self._said = None

    @property
    def on_disk(self) -> int:
        """All that is counted on the disk, in bytes."""
        with self._lock:
            return self._committed + self._dying + self._allocated

    def partial_bytes(self, id_: str) -> int:
        """What a partial blob takes of the disk."""
        with self._lock:
            return self._partials.get(id_, 0)

    # --- what is set aside -----------------------------------------------------------------------------------------

    def reserve(self, sizes: Mapping[str, int]) -> dict[str, Reservation]:
        """Set space aside for blobs, by the id of their partial blob: for all of them, or for none. What is on disk of
        one is dying no more.

        Raises `Permanent` (`too_large`) where they could never fit, `NoSpace` where they do not fit now.
        """
        size = sum(sizes.values())
        with self._lock:
            if wrong := [id_ for id_, each in sizes.items() if each < 0 or id_ in self._open]:
                raise ValueError(f"{wrong[0]} is reserved already, or of negative size")
            resumed = sum(min(self._partials.get(id_, 0), each) for id_, each in sizes.items())
            self._require(size, size - resumed)
            reservations = {id_: Reservation(self, id_) for id_ in sizes}
            for id_, reservation in reservations.items():
                self._begin(reservation, sizes[id_])
            return reservations

    def reserved_by(self, reservation: Reservation) -> int:
        """What is set aside, in bytes; 0 when it was given back."""
        with self._lock:
            return self._sizes[reservation.id] if self._is_open(reservation) else 0

    def grow(self, reservation: Reservation, size: int) -> None:
        """Set `size` bytes aside in all, unless so many are. Raises `Permanent` (`too_large`) or `NoSpace`, and then
        the reservation stays as it is."""
        with self._lock:
            if not self._is_open(reservation):
                raise ValueError("the reservation was given back already")
            if size > self._sizes[reservation.id]:
                self._grow(reservation.id, size)

    def settle(self, reservation: Reservation, left: int, sha256: str | None, size: int) -> None:
        """The fetch is over: `left` bytes stay on disk as a partial blob, dying; where `sha256` is given it is a
        committed blob of `size` bytes now. The rest is given back, all in one moment."""
        with self._lock:
            self._count_partial(reservation.id, left)
            if sha256 is not None:
                self._count_blob(sha256, size)
            self._end(reservation)

    def give_back(self, reservation: Reservation) -> None:
        """Give everything back; what is on the disk of it is dying. Nothing happens the second time."""
        with self._lock:
            self._end(reservation)

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

    # --- what that comes to ----------------------------------------------------------------------------------------

    def shortage(self, error: Transient) -> Shortage:
        """What would have to be free for whoever met this `no_space`."""
        if isinstance(error, NoSpace):
            return Shortage(error.needed_bytes, 0)
        if isinstance(error, NoInodes):
            return Shortage(0, error.needed_files)
        use = self.use()  # the disk itself refused what the account allowed: more than seems to be free, one by one
        return Shortage(use.free + 1, use.files_free + 1)

    def use(self) -> SpaceUse:
        """The account now, with the disk's numbers; raises `Transient` where the disk does not tell them."""
        with self._lock:
            return self._use(self._disk())

    def use_unseen(self) -> SpaceUse:
        """The account alone, where the disk does not tell its numbers: nothing is free."""
        with self._lock:
            return self._use(DiskSpace(0, 0))

    # --- inside; all of it with the lock held ----------------------------------------------------------------------

    def _use(self, disk: DiskSpace) -> SpaceUse:
        capacity = disk.capacity if self._quota is None else min(self._quota, disk.capacity)
        counted = self._committed + self._dying + self._allocated if disk.counted is None else disk.counted
        budget = min(capacity, counted + disk.free)
        free = max(0, budget - self._committed - self._dying - self._reserved)
        return SpaceUse(capacity, self._committed, self._reserved, self._dying, free, budget, disk.files_free)

    def _require(self, size: int, needed: int) -> None:
        """Make sure that `size` bytes fit, of which `needed` are not on the disk yet."""
        use = self._use(self._disk())
        if size > use.capacity:
            raise self._too_large(size, use.capacity)
        if needed > use.free:
            raise NoSpace(size, size - needed, use)

    def _put(self, table: dict[str, int], key: str, size: int) -> int:
        """Replace an entry; returns by how much it grew."""
        if size < 0:
            raise ValueError(f"{key}: {size} bytes")
        if self._said is not None:
            self._said.add((id(table), key))
        before = table.pop(key, 0)
        if size:
            table[key] = size
        return size - before

    def _count_blob(self, sha256: str, size: int) -> None:
        self._committed += self._put(self._blobs, sha256, size)

    def _count_partial(self, id_: str, size: int) -> None:
        reserved = self._sizes.get(id_)
        grown = self._put(self._partials, id_, size)
        if reserved is None:
            self._dying += grown
        else:
            self._allocated += min(size, reserved) - min(size - grown, reserved)

    def _is_open(self, reservation: Reservation) -> bool:
        return self._open.get(reservation.id) is reservation

    def _begin(self, reservation: Reservation, size: int) -> None:
        there = self._partials.get(reservation.id, 0)
        self._dying -= there
        self._reserved += size
        self._allocated += min(there, size)
        self._open[reservation.id] = reservation
        self._sizes[reservation.id] = size

    def _end(self, reservation: Reservation) -> None:
        if not self._is_open(reservation):
            return
        there, size = self._partials.get(reservation.id, 0), self._sizes.pop(reservation.id)
        self._dying += there
        self._reserved -= size
        self._allocated -= min(there, size)
        del self._open[reservation.id]

    def _grow(self, id_: str, size: int) -> None:
        before = self._sizes[id_]
        self._require(size, size - before)
        there = self._partials.get(id_, 0)
        self._reserved += size - before
        self._allocated += min(there, size) - min(there, before)
        self._sizes[id_] = size

    def _correct(self, found: OnDisk) -> int:
        """End a recount, table by table: the differences are looked for beside the lock, and looked at once more."""
        tables: list[tuple[dict[str, int], Mapping[str, int], Callable[[str, int], None]]] = [
            (self._blobs, found.blobs, self._count_blob),
            (self._partials, found.partials, self._count_partial),
            (self._quarantined, found.quarantined, self._count_quarantined),
        ]
        corrected = 0
        for table, there, count in tables:
            with self._lock:
                known = dict(table)
            differing = [key for key in known.keys() | there.keys() if known.get(key, 0) != there.get(key, 0)]
            with self._lock:
                for key in differing:
                    if self._said is not None and (id(table), key) not in self._said:
                        count(key, there.get(key, 0))
                        corrected += 1
        return corrected

    def _count_quarantined(self, name: str, size: int) -> None:
        self._dying += self._put(self._quarantined, name, size)

    def _too_large(self, size: int, capacity: int) -> Permanent:
        limit = "the quota" if capacity == self._quota else "the file system"
        return Permanent(
            "too_large",
            f"{format_size(size)} ({size} bytes) are needed, {limit} holds {format_size(capacity)} ({capacity} bytes)",
            f"raise {limit}'s size, or leave files out with `include` and `exclude` in the catalog",
        )


class Reservation:
    """Bytes set aside for one blob, given back when the `with` block is left, or by `close` or `settle`."""

    def __init__(self, ledger: Ledger, id_: str) -> None:
        self.id = id_
        self._ledger = ledger

    @property
    def size(self) -> int:
        """As of `Ledger.reserved_by`."""
        return self._ledger.reserved_by(self)

    def grow(self, size: int) -> None:
        """As of `Ledger.grow`."""
        self._ledger.grow(self, size)

    def settle(self, left: int, sha256: str | None, size: int) -> None:
        """As of `Ledger.settle`."""
        self._ledger.settle(self, left, sha256, size)

    def close(self) -> None:
        """As of `Ledger.give_back`."""
        self._ledger.give_back(self)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
