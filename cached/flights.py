"""The table of flights: whoever wants a blob joins the one that is under way.

Law: used from the event loop. A flight lives while somebody waits for it; the disk space it may fill is reserved before
it starts and accounted for however it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from cached.attempt import BlobSpec, Verified
from cached.contract.layout import Layout
from cached.flight import Flight
from cached.ledger import Ledger, Reservation
from cached.sources.base import Target
from cached.store.ingest import allocated_bytes
from cached.workers import Workers

_STEP_BYTES = 64 * 1024 * 1024  # what a stream of unknown length reserves at a time


class Allotment:
    """The reservations of one flight: one where the size is known, growing where it is not. Thread-safe."""

    def __init__(self, ledger: Ledger, size: int | None, resumed: int) -> None:
        self._ledger = ledger
        self._stack = ExitStack()
        self._reserved = 0
        self._parts: list[Reservation] = []
        if size is not None:
            self._reserve(size, min(resumed, size))
        else:
            ledger.trash_deleted(resumed)  # a stream cannot resume: the ingest deletes what an earlier one left

    def grow(self, size: int) -> None:
        """Make sure that `size` bytes may be written; raises `NoSpace` or `Permanent` (`too_large`)."""
        while size > self._reserved:
            self._reserve(max(_STEP_BYTES, size - self._reserved), 0)

    def settle(self, committed: int, left: int) -> None:
        """The flight is over: `committed` bytes became a new blob, `left` bytes stay as a partial one; the rest is
        given back."""
        for part in self._parts:
            taken = min(part.size, committed)
            part.commit(taken)
            committed -= taken
            taken = min(part.size, left)
            part.leave(taken)
            left -= taken
        self._stack.close()

    def _reserve(self, size: int, resumed: int) -> None:
        self._parts.append(self._stack.enter_context(self._ledger.reserve(size, resumed)))
        self._reserved += size


@dataclass(slots=True)
class _Entry:
    flight: Flight
    result: asyncio.Future[Verified]
    waiters: dict[object, int] = field(default_factory=dict)  # who waits -> how urgently

    def reprioritize(self) -> None:
        if self.waiters:
            self.flight.priority = min(self.waiters.values())


class Flights:
    """All flights of this node, by the id of their partial blob."""

    def __init__(self, layout: Layout, workers: Workers, ledger: Ledger) -> None:
        self._layout = layout
        self._workers = workers
        self._ledger = ledger
        self._entries: dict[str, _Entry] = {}

    def reserve(self, specs: list[BlobSpec]) -> dict[str, Allotment]:
        """Set aside the space of those blobs that are not under way yet: of all, or of none.

        Raises `NoSpace` or `Permanent` (`too_large`).
        """
        new = {spec.key.id: spec for spec in specs if spec.key.id not in self._entries}
        resumed = {id_: allocated_bytes(self._layout.ingest / id_) for id_ in new}
        sizes = {id_: spec.key.size or 0 for id_, spec in new.items()}
        there = sum(min(resumed[id_], sizes[id_]) for id_ in new)
        with self._ledger.reserve(sum(sizes.values()), there) as whole:
            whole.leave(there)  # it fits: now part by part, with nothing in between
        allotments: dict[str, Allotment] = {}
        try:
            for id_, spec in new.items():
                allotments[id_] = Allotment(self._ledger, spec.key.size, resumed[id_])
        except BaseException:  # a growing stream took the space in between
            for id_, allotment in allotments.items():
                allotment.settle(0, resumed[id_])
            raise
        return allotments

    def join(
        self,
        spec: BlobSpec,
        locate: Callable[[], Target],
        allotment: Allotment | None,
        who: object,
        priority: int,
    ) -> tuple[Flight, asyncio.Future[Verified]]:
        """Wait for a blob on behalf of `who`, starting its flight with `allotment` if nobody has yet.

        Returns the flight and its result, which is shared: wait for it, never cancel it.
        """
        entry = self._entries.get(spec.key.id)
        if entry is None:
            assert allotment is not None
            flight = Flight(spec, locate, allotment, self._workers, priority)
            entry = _Entry(flight, asyncio.wrap_future(flight.result))
            entry.result.add_done_callback(lambda result: self._over(spec.key.id, allotment, result))
            self._entries[spec.key.id] = entry
            self._workers.submit(flight)
        entry.waiters[who] = priority
        entry.reprioritize()
        return entry.flight, entry.result

    def leave(self, spec: BlobSpec, who: object) -> asyncio.Future[Verified] | None:
        """`who` waits no longer. The last one to go cancels the flight; returns what to wait for until it is down."""
        entry = self._entries.get(spec.key.id)
        if entry is None:
            return None
        entry.waiters.pop(who, None)
        if entry.waiters:
            entry.reprioritize()
            return None
        entry.flight.cancel()
        return entry.result

    def reprioritize(self, who: object, priority: int) -> None:
        """`who` waits more, or less, urgently than before."""
        for entry in self._entries.values():
            if who in entry.waiters:
                entry.waiters[who] = priority
                entry.reprioritize()
        self._workers.changed()

    def busy(self) -> frozenset[str]:
        """The ids of the partial blobs that are under way."""
        return frozenset(self._entries)

    def _over(self, id_: str, allotment: Allotment, result: asyncio.Future[Verified]) -> None:
        del self._entries[id_]
        if result.exception() is None:
            allotment.settle(result.result().size if result.result().fresh else 0, 0)
        else:
            allotment.settle(0, allocated_bytes(self._layout.ingest / id_))
