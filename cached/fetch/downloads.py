"""The table of downloads, and the disk space of each: a version that needs a blob joins its running download.

Law: the table is used from the event loop. A download runs while a version waits for it; every byte is reserved in the
ledger before it is written, and accounted for however the download ends.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.core.space import Ledger, NoSpace, Reservation
from cached.fetch.blob import BlobSpec, Verified
from cached.fetch.download import Download
from cached.fetch.small_attempt import is_small
from cached.fetch.supply import SupplyMaker
from cached.fetch.workers import Workers
from cached.store.blob.ingest import allocated_bytes
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import Target

_STEP_BYTES = 64 * 1024 * 1024  # reserved at a time for a stream of unknown length


class DownloadSpace:
    """The reserved space of one download: all of it at once if the size is known, else growing. Thread-safe. The file
    system counts the space that `folder` has already as used: the ledger must know it, or it would count these bytes
    twice and evict versions for them. `folder` is None for a small blob, which is partial for a moment only."""

    def __init__(self, ledger: Ledger, reservation: Reservation, folder: Path | None) -> None:
        self._ledger = ledger
        self._reservation = reservation
        self._folder = folder
        self._lock = threading.Lock()
        self._allocated = 0  # reserved bytes, all of which have their blocks, and are counted

    def grow(self, size: int) -> None:
        """Reserve `size` bytes in all, before they are written; 0: a new partial blob was opened. Raises `NoSpace` or
        `Permanent` (`too_large`)."""
        if 0 < size <= self._allocated:
            return  # most file systems allocate all at once: there is nothing to count for each piece
        with self._lock:
            if size > self._reservation.size:
                self._grow(size)
            if self._folder is not None:
                allocated = allocated_bytes(self._folder)
                self._ledger.count_partial(self._reservation.id, allocated)
                # At most what is reserved: some file systems allocate beyond the end of a file that grows.
                self._allocated = self._reservation.size if allocated >= self._reservation.size else 0

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


@dataclass(slots=True)
class _DownloadEntry:
    download: Download
    allotment: DownloadSpace
    result: asyncio.Future[Verified]
    waiters: dict[object, int]  # priority by waiter


class Downloads:
    """All downloads of this node, by ingest id. `starting`: held from the first `join` of a fetch until it has started
    all other downloads, which may take a thread call in between. `committed`: how many have ended with a blob."""

    def __init__(self, layout: Layout, workers: Workers, ledger: Ledger) -> None:
        self.starting = asyncio.Lock()
        self.committed = 0
        self._layout = layout
        self._workers = workers
        self._ledger = ledger
        self._entries: dict[str, _DownloadEntry] = {}

    def join(self, spec: BlobSpec, waiter: object, priority: int) -> tuple[Download, asyncio.Future[Verified]] | None:
        """Add `waiter` to the waiters of a running download; return None if there is none, else the download and its
        result, which is shared: wait for it, never cancel it."""
        entry = self._entries.get(spec.key.id)
        if entry is None:
            return None
        entry.waiters[waiter] = priority
        self._reprioritize([entry])
        return entry.download, entry.result

    def reserve(self, specs: Sequence[BlobSpec], allotments: dict[str, DownloadSpace]) -> None:
        """Reserve the space of all these blobs, which have no download, or of none; slow for thousands, but waits for
        nothing. `allotments` gets them by ingest id, also if the caller was cancelled. Raises `NoSpace`, `NoInodes` or
        `Permanent` (`too_large`)."""
        new = {spec.key.id: spec for spec in specs}
        if new:
            folders = {parent for spec in specs for parent in PurePosixPath(spec.name).parents}
            self._ledger.require_files(len(new) + len(folders))  # the least number of inodes: for more, the disk raises
        reservations = self._ledger.reserve({id_: spec.key.size or 0 for id_, spec in new.items()})
        for id_, spec in new.items():
            folder = None if is_small(spec) else self._layout.ingest / id_
            allotments[id_] = DownloadSpace(self._ledger, reservations[id_], folder)

    def start(
        self,
        spec: BlobSpec,
        locate: Callable[[Cancellation], Target],
        allotment: DownloadSpace,
        waiter: object,
        priority: int,
        make_supply: SupplyMaker | None = None,
    ) -> tuple[Download, asyncio.Future[Verified]]:
        """Start the download of a blob that has none, in the space of `allotment`; return the same as `join`.
        `make_supply` as in `Download`."""
        download = Download(spec, locate, allotment, self._workers, priority, make_supply)
        entry = _DownloadEntry(download, allotment, asyncio.wrap_future(download.result), {waiter: priority})
        entry.result.add_done_callback(lambda _: self._settle(spec.key.id))
        self._entries[spec.key.id] = entry
        self._workers.submit([download])
        return download, entry.result

    def leave(self, spec: BlobSpec, waiter: object) -> asyncio.Future[Verified] | None:
        """Remove `waiter`; with the last waiter cancel the download, and return the result to wait for."""
        entry = self._entries.get(spec.key.id)
        if entry is None:
            return None
        entry.waiters.pop(waiter, None)
        if entry.waiters:
            self._reprioritize([entry])
            return None
        entry.download.cancel()
        return entry.result

    def reprioritize(self, waiter: object, priority: int) -> None:
        """Set the priority of `waiter` in all its downloads."""
        concerned = [entry for entry in self._entries.values() if waiter in entry.waiters]
        for entry in concerned:
            entry.waiters[waiter] = priority
        self._reprioritize(concerned)

    def reserved_for(self, waiter: object) -> dict[str, int]:
        """Return the reserved bytes of the downloads that `waiter` waits for, by ingest id."""
        return {id_: entry.allotment.reserved for id_, entry in self._entries.items() if waiter in entry.waiters}

    def busy(self) -> frozenset[str]:
        """Return the ingest ids of running downloads."""
        return frozenset(self._entries)

    def _reprioritize(self, entries: Iterable[_DownloadEntry]) -> None:
        """Set each download's priority to that of its most urgent waiter."""
        changed = []
        for entry in entries:
            priority = min(entry.waiters.values())
            if entry.download.priority != priority:
                entry.download.priority = priority
                changed.append(entry.download)
        if changed:
            self._workers.changed(*changed)

    def _settle(self, id_: str) -> None:
        entry = self._entries.pop(id_)
        self.committed += entry.result.exception() is None
        left = 0
        if entry.result.exception() is not None:
            touched = entry.download.left_bytes
            left = self._ledger.partial_bytes(id_) if touched is None else touched
        entry.allotment.settle(entry.download.placed, left)
