"""The ledger: the account of every byte under the root, so that no fetch starts that cannot complete.

Law: in memory and thread-safe; does no I/O of its own, a callable returns the disk's numbers. The ledger maps content
to size: after each change of the disk the caller records the new size (`count_…`), never a difference, so that a
repeated record changes nothing and a recount can correct changes by others. Space is reserved before it is written, and
every reservation is released. The cost of a call hardly depends on the number of entries: it copies a bucket of blobs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from cached.contract.errors import Permanent, Transient
from cached.contract.program.units import format_size
from cached.core.blob_table import BlobTable


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The root's file system: capacity in bytes, and the bytes free for an unprivileged writer (`f_bavail`).

    `files` and `files_free`: the same in inodes; `files` is 0 if the file system creates inodes as needed. `counted`:
    the ledger's bytes on this disk at the time of measurement, so that later changes by the ledger do not count as
    changes by others; None: the numbers are current.
    """

    capacity: int
    free: int
    files: int = 0
    files_free: int = 0
    counted: int | None = None


@dataclass(frozen=True, slots=True)
class SpaceUse:
    """The state of the ledger, in bytes.

    `capacity`: the smaller of quota and file system. `used`: committed blobs. `reserved`: reservations of fetches,
    written or not. `dying`: on disk, but quarantine or a partial blob without a fetch. `budget`: the most that may be
    held now, less than the capacity if others fill the file system. `free`: the part of the budget that can still be
    reserved. `files_free`: inodes.
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
    """The sizes under the root, in bytes: committed blobs by sha256, partial ones by id, the quarantine by name."""

    blobs: BlobTable
    partials: Mapping[str, int]
    quarantined: Mapping[str, int]


class Correct(Protocol):
    """The second step of a recount."""

    def __call__(self, found: OnDisk, *, with_blobs: bool = True) -> int: ...


@dataclass(frozen=True, slots=True)
class Shortage:
    """The free bytes and files (inodes) that a fetch needs to continue."""

    bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class FetchSpace:
    """The space held for a running fetch, in bytes; fetches may share it. `blobs`: committed ones, by sha256.
    `reserved`: reservations of its downloads, `left`: partial blobs, dying but not deleted while it runs; by id."""

    blobs: Mapping[str, int]
    reserved: Mapping[str, int]
    left: Mapping[str, int]

    def total(self) -> int:
        """Return the sum, in bytes."""
        return sum(sum(part.values()) for part in (self.blobs, self.reserved, self.left))


class NoSpace(Transient):
    """Too little space is free now for `size` bytes, of which `resumed` are on disk: `needed_bytes` must be free."""

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
    """The file system has too few free inodes now for `needed_files` new files."""

    def __init__(self, needed_files: int, free: int) -> None:
        super().__init__(
            "no_space",
            f"{needed_files} files are to be made, the file system has {free} inodes left, whatever its free bytes",
            "wait for other versions to be evicted, delete small files there, or make it anew with more inodes "
            "(mkfs.ext4 -N)",
        )
        self.needed_files = needed_files


class Ledger:
    """Grants reservations within a quota and within the file system's free space."""

    def __init__(self, quota_bytes: int | None, disk: Callable[[], DiskSpace]) -> None:
        self._quota = quota_bytes
        self._disk = disk
        self._lock = threading.RLock()  # a reservation records several sizes in one step
        self._blobs = BlobTable()
        self._partials: dict[str, int] = {}
        self._quarantined: dict[str, int] = {}
        self._open: dict[str, Reservation] = {}
        self._sizes: dict[str, int] = {}  # the reserved bytes of each of those
        self._committed = self._dying = self._reserved = self._allocated = 0  # the sums, kept up to date
        self._recorded: set[tuple[int, str]] | None = None  # the entries recorded since a running recount began

    # --- the content of the disk -----------------------------------------------------------------------------------

    def count_blob(self, sha256: str, size: int) -> None:
        """Record that a committed blob has `size` bytes; 0: it does not exist."""
        with self._lock:
            self._committed += self._put(self._blobs, sha256, size)

    def count_partial(self, id_: str, size: int) -> None:
        """Record that a partial blob takes `size` bytes of the disk; 0: it does not exist. The bytes are part of its
        reservation, or dying without one."""
        with self._lock:
            reserved = self._sizes.get(id_)
            grown = self._put(self._partials, id_, size)
            if reserved is None:
                self._dying += grown
            else:
                self._allocated += min(size, reserved) - min(size - grown, reserved)

    def count_quarantined(self, name: str, size: int) -> None:
        """Record that a file in quarantine has `size` bytes; 0: it does not exist."""
        with self._lock:
            self._dying += self._put(self._quarantined, name, size)

    def count_all(self, found: OnDisk) -> None:
        """Replace all entries with those that recovery found."""
        with self._lock:
            self._blobs = found.blobs.copy()
            self._committed = self._blobs.total()
            for id_ in (*self._partials, *found.partials):
                self.count_partial(id_, found.partials.get(id_, 0))
            for name in (*self._quarantined, *found.quarantined):
                self.count_quarantined(name, found.quarantined.get(name, 0))

    @contextmanager
    def begin_recount(self) -> Iterator[Correct]:
        """Correct the account after a scan of the disk, concurrently with other calls: enter before the scan, and call
        the yielded function with its result; it returns the number of wrong entries, but for what a running fetch
        explains. Entries recorded since then stay, because the scan may be older; without `with_blobs` those of
        committed blobs stay too. Raises ValueError during another recount."""
        with self._lock:
            if self._recorded is not None:
                raise ValueError("a recount is under way already")
            self._recorded = set()
        try:
            yield self._correct
        finally:
            with self._lock:
                self._recorded = None

    @property
    def on_disk(self) -> int:
        """The recorded bytes on the disk."""
        with self._lock:
            return self._committed + self._dying + self._allocated

    @property
    def blob_count(self) -> int:
        """The number of committed blobs."""
        with self._lock:
            return len(self._blobs)

    @property
    def quarantined_bytes(self) -> int:
        """The bytes in quarantine, which are part of the dying ones."""
        with self._lock:
            return sum(self._quarantined.values())

    def partial_bytes(self, id_: str) -> int:
        """Return the bytes that a partial blob takes of the disk."""
        with self._lock:
            return self._partials.get(id_, 0)

    # --- reservations ----------------------------------------------------------------------------------------------

    def reserve(self, sizes: Mapping[str, int]) -> dict[str, Reservation]:
        """Reserve space for blobs, by the id of their partial blob: for all of them, or for none. Their bytes on disk
        are no longer dying.

        Raises `Permanent` (`too_large`) if they can never fit, `NoSpace` if they do not fit now, ValueError for a
        negative size or an id with a reservation.
        """
        size = sum(sizes.values())
        with self._lock:
            if wrong := [id_ for id_, each in sizes.items() if each < 0 or id_ in self._open]:
                raise ValueError(f"{wrong[0]} is reserved already, or of negative size")
            resumed = sum(min(self._partials.get(id_, 0), each) for id_, each in sizes.items())
            self._require(size, size - resumed)
            reservations = {id_: Reservation(self, id_) for id_ in sizes}
            for id_, each in sizes.items():
                partial = self._partials.get(id_, 0)
                self._dying -= partial
                self._reserved += each
                self._allocated += min(partial, each)
            self._open.update(reservations)
            self._sizes.update(sizes)
            return reservations

    def reserved_by(self, reservation: Reservation) -> int:
        """Return the reserved bytes; 0 after the release."""
        with self._lock:
            return self._sizes[reservation.id] if self._is_open(reservation) else 0

    def grow(self, reservation: Reservation, size: int) -> None:
        """Grow to `size` bytes, unless it has as many. Raises `Permanent` (`too_large`) or `NoSpace` without effect,
        ValueError after the release."""
        with self._lock:
            if not self._is_open(reservation):
                raise ValueError("the reservation was given back already")
            before = self._sizes[reservation.id]
            if size > before:
                self._require(size, size - before)
                partial = self._partials.get(reservation.id, 0)
                self._reserved += size - before
                self._allocated += min(partial, size) - min(partial, before)
                self._sizes[reservation.id] = size

    def settle(self, reservation: Reservation, left: int, sha256: str | None, size: int) -> None:
        """Release after the fetch, atomically: record `left` bytes on disk as a partial blob, dying, and with `sha256`
        a committed blob of `size` bytes."""
        with self._lock:
            self.count_partial(reservation.id, left)
            if sha256 is not None:
                self.count_blob(sha256, size)
            self.give_back(reservation)

    def give_back(self, reservation: Reservation) -> None:
        """Release all bytes; those on disk are dying. Idempotent."""
        with self._lock:
            if self._is_open(reservation):
                partial, size = self._partials.get(reservation.id, 0), self._sizes.pop(reservation.id)
                self._dying += partial
                self._reserved -= size
                self._allocated -= min(partial, size)
                del self._open[reservation.id]

    def require_capacity(self, size: int) -> None:
        """Raise `Permanent` (`too_large`) if `size` bytes can never be held."""
        use = self.compute_use()
        if size > use.capacity:
            raise self._too_large(size, use.capacity)

    def require_files(self, count: int) -> None:
        """Raise `NoInodes` if `count` new files cannot be created now, `Permanent` (`too_large`) if they never can."""
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

    # --- the balance -----------------------------------------------------------------------------------------------

    def compute_shortage(self, error: Transient) -> Shortage:
        """Return what must be free for the fetch that failed with this `no_space` error."""
        if isinstance(error, NoSpace):
            return Shortage(error.needed_bytes, 0)
        if isinstance(error, NoInodes):
            return Shortage(0, error.needed_files)
        use = self.compute_use()  # the disk refused what the account allowed: require a little more than that
        return Shortage(use.free + 1, use.files_free + 1)

    def compute_use(self) -> SpaceUse:
        """Return the account with the disk's numbers. Raises `Transient` if the disk does not report them."""
        with self._lock:
            return self._use(self._disk())

    def compute_use_without_disk(self) -> SpaceUse:
        """Return the account without the disk's numbers, with nothing free."""
        with self._lock:
            return self._use(DiskSpace(0, 0))

    # --- internal; the caller holds the lock, except for `_correct` ------------------------------------------------

    def _use(self, disk: DiskSpace) -> SpaceUse:
        capacity = disk.capacity if self._quota is None else min(self._quota, disk.capacity)
        counted = self._committed + self._dying + self._allocated if disk.counted is None else disk.counted
        budget = min(capacity, counted + disk.free)
        free = max(0, budget - self._committed - self._dying - self._reserved)
        return SpaceUse(capacity, self._committed, self._reserved, self._dying, free, budget, disk.files_free)

    def _require(self, size: int, needed: int) -> None:
        """Raise `Permanent` or `NoSpace` unless `size` bytes fit, of which `needed` are not on the disk yet."""
        use = self._use(self._disk())
        if size > use.capacity:
            raise self._too_large(size, use.capacity)
        if needed > use.free:
            raise NoSpace(size, size - needed, use)

    def _put(self, table: MutableMapping[str, int], key: str, size: int) -> int:
        """Replace an entry and return its growth in bytes."""
        if size < 0:
            raise ValueError(f"{key}: {size} bytes")
        if self._recorded is not None:
            self._recorded.add((id(table), key))
        before = table.pop(key, 0)
        if size:
            table[key] = size
        return size - before

    def _is_open(self, reservation: Reservation) -> bool:
        return self._open.get(reservation.id) is reservation

    def _correct(self, found: OnDisk, *, with_blobs: bool = True) -> int:
        """Correct each table: compute the differences without the lock, then apply those not recorded since."""
        corrected = 0
        if with_blobs:
            with self._lock:
                known = self._blobs.copy()
            differing = known.find_differing(found.blobs)
            corrected += self._record(self._blobs, differing, found.blobs, self.count_blob)
        for table, actual, count in (
            (self._partials, found.partials, self.count_partial),
            (self._quarantined, found.quarantined, self.count_quarantined),
        ):
            with self._lock:
                entries = dict(table)
            names = [key for key in entries.keys() | actual.keys() if entries.get(key, 0) != actual.get(key, 0)]
            corrected += self._record(table, names, actual, count)
        return corrected

    def _record(
        self,
        table: MutableMapping[str, int],
        keys: Iterable[str],
        actual: Mapping[str, int],
        count: Callable[[str, int], None],
    ) -> int:
        """Correct the entries `keys` of a table, but for those recorded since the recount began; return how many."""
        corrected = 0
        with self._lock:
            for key in keys:
                if self._recorded is not None and (id(table), key) not in self._recorded:
                    corrected += not self._is_under_way(table, key)
                    count(key, actual.get(key, 0))
        return corrected

    def _is_under_way(self, table: MutableMapping[str, int], key: str) -> bool:
        """Return whether a running fetch explains that an entry differs: it writes a partial blob after it counted it,
        and names a blob before it says so."""
        if table is self._partials:
            return key in self._sizes
        return table is self._blobs and key not in table and bool(self._open)

    def _too_large(self, size: int, capacity: int) -> Permanent:
        limit = "the quota" if capacity == self._quota else "the file system"
        return Permanent(
            "too_large",
            f"{format_size(size)} ({size} bytes) are needed, {limit} holds {format_size(capacity)} ({capacity} bytes)",
            f"raise {limit}'s size, or leave files out with `include` and `exclude` in the catalog",
        )


class Reservation:
    """Bytes reserved for one blob until `close` or `finish`."""

    def __init__(self, ledger: Ledger, id_: str) -> None:
        self.id = id_
        self._ledger = ledger

    @property
    def size(self) -> int:
        """Return the reserved bytes; 0 after the release."""
        return self._ledger.reserved_by(self)

    def grow(self, size: int) -> None:
        """Grow to `size` bytes, as `Ledger.grow` does."""
        self._ledger.grow(self, size)

    def finish(self, left: int, sha256: str | None, size: int) -> None:
        """Release after the fetch, as `Ledger.settle` does."""
        self._ledger.settle(self, left, sha256, size)

    def close(self) -> None:
        """Release all bytes, as `Ledger.give_back` does."""
        self._ledger.give_back(self)
