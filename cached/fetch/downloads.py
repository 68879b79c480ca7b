"""The table of flights: whoever wants a blob joins the one that is under way.

Law: used from the event loop. A flight lives while somebody waits for it; the disk space it may fill is reserved before
it starts and accounted for however it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from cached.contract.layout import Layout
from cached.core.space import Ledger, NoSpace
from cached.fetch.attempt import BlobSpec, Verified
from cached.fetch.download import Flight
from cached.fetch.reservation import Allotment
from cached.fetch.small_attempt import is_small
from cached.fetch.workers import Workers
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import Target


@dataclass(slots=True)
class _Entry:
    flight: Flight
    allotment: Allotment
    result: asyncio.Future[Verified]
    waiters: dict[object, int]  # who waits -> how urgently


class Flights:
    """All flights of this node, by the id of their partial blob. `starting`: held from a look at what is under way
    until what is not has been started, which takes an answer of the disk in between."""

    def __init__(self, layout: Layout, workers: Workers, ledger: Ledger) -> None:
        self.starting = asyncio.Lock()
        self._layout = layout
        self._workers = workers
        self._ledger = ledger
        self._entries: dict[str, _Entry] = {}

    def join(self, spec: BlobSpec, who: object, priority: int) -> tuple[Flight, asyncio.Future[Verified]] | None:
        """Wait on behalf of `who` for a blob that is under way; None where it is not.

        Returns the flight and its result, which is shared: wait for it, never cancel it.
        """
        entry = self._entries.get(spec.key.id)
        if entry is None:
            return None
        entry.waiters[who] = priority
        self._reprioritize([entry])
        return entry.flight, entry.result

    def reserve(self, specs: Sequence[BlobSpec], allotments: dict[str, Allotment]) -> None:
        """Set aside the space of these blobs, of which none is under way: of all, or of none. `allotments` gets them,
        by the id of the partial blob, also where nobody waits for this call any more. Blocking: the disk is asked what
        it has.

        Raises `NoSpace`, `NoInodes` or `Permanent` (`too_large`).
        """
        new = {spec.key.id: spec for spec in specs}
        if new:
            self._ledger.require_files(_files_made(new.values()))
        reservations = self._ledger.reserve({id_: spec.key.size or 0 for id_, spec in new.items()})
        for id_, spec in new.items():
            folder = None if is_small(spec) else self._layout.ingest / id_
            allotments[id_] = Allotment(self._ledger, reservations[id_], folder)

    def start(
        self,
        spec: BlobSpec,
        locate: Callable[[Cancellation], Target],
        allotment: Allotment,
        who: object,
        priority: int,
    ) -> tuple[Flight, asyncio.Future[Verified]]:
        """Begin the flight of a blob that is not under way, in the space of `allotment`. Returns what `join` does."""
        flight = Flight(spec, locate, allotment, self._workers, priority)
        entry = _Entry(flight, allotment, asyncio.wrap_future(flight.result), {who: priority})
        entry.result.add_done_callback(lambda _: self._over(spec.key.id))
        self._entries[spec.key.id] = entry
        self._workers.submit([flight])
        return flight, entry.result

    def leave(self, spec: BlobSpec, who: object) -> asyncio.Future[Verified] | None:
        """`who` waits no longer. The last one to go cancels the flight; returns what to wait for until it is down."""
        entry = self._entries.get(spec.key.id)
        if entry is None:
            return None
        entry.waiters.pop(who, None)
        if entry.waiters:
            self._reprioritize([entry])
            return None
        entry.flight.cancel()
        return entry.result

    def reprioritize(self, who: object, priority: int) -> None:
        """`who` waits more, or less, urgently than before."""
        concerned = [entry for entry in self._entries.values() if who in entry.waiters]
        for entry in concerned:
            entry.waiters[who] = priority
        self._reprioritize(concerned)

    def require_capacity(self, size: int) -> None:
        """Make sure that `size` bytes can be held at all; raises `Permanent` (`too_large`)."""
        self._ledger.require_capacity(size)

    def no_space(self, size: int, resumed: int) -> NoSpace:
        """The refusal of `size` bytes, of which `resumed` are on the disk."""
        return NoSpace(size, min(size, resumed), self._ledger.use())

    def reserved_for(self, who: object) -> dict[str, int]:
        """The bytes set aside for the blobs that `who` waits for, by the id of the partial blob."""
        return {id_: entry.allotment.reserved for id_, entry in self._entries.items() if who in entry.waiters}

    def left_by(self, ids: Iterable[str]) -> dict[str, int]:
        """The bytes that these partial blobs take of the disk."""
        return {id_: self._ledger.partial_bytes(id_) for id_ in ids}

    def busy(self) -> frozenset[str]:
        """The ids of the partial blobs that are under way."""
        return frozenset(self._entries)

    def _reprioritize(self, entries: Iterable[_Entry]) -> None:
        """Each flight is as urgent as the most urgent of those who wait for it."""
        for entry in entries:
            priority = min(entry.waiters.values())
            if entry.flight.priority != priority:
                entry.flight.priority = priority
                self._workers.changed(entry.flight)

    def _over(self, id_: str) -> None:
        entry = self._entries.pop(id_)
        left = 0
        if entry.result.exception() is not None:
            touched = entry.flight.left_bytes
            left = self._ledger.partial_bytes(id_) if touched is None else touched
        entry.allotment.settle(entry.flight.placed, left)


def _files_made(specs: Collection[BlobSpec]) -> int:
    """How many inodes these blobs and their snapshot take at the least: what comes on top, for a while or in folders
    of blobs that are there already, the disk itself refuses."""
    return len(specs) + len({parent for spec in specs for parent in PurePosixPath(spec.name).parents})
