"""The threads that carry bytes: a bounded number in all and per origin, each taking the most urgent segment next.

Law: a lower priority is served only while no higher one is receiving; a connection gives way at the next buffer's end.
What to carry next is found among the blobs that are open, a bounded number, and the heads of queues: however many
blobs wait, a step costs the same.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from dataclasses import dataclass
from typing import TypeVar

from cached.contract.layout import Layout
from cached.contract.program import limits
from cached.contract.program.limits import started_pool
from cached.fetch.download import Flight, Observer
from cached.store.digest_journal import DigestJournal
from cached.store.disk.verity import Sealing
from cached.store.group_commit import GroupCommit
from cached.transport.client import HttpClient
from cached.transport.connection.buffers import BufferPool
from cached.transport.connection.limits import BandwidthLimit

_log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_OPEN = 8  # blobs received at once: enough to keep the disk and the hash busy, few enough to finish soon
_MAX_PARKED = 64  # blobs with their files open, those that wait to be tried again included
_HELD = 8  # buffers that may wait for the hash
BUFFER_BYTES = 4 * 1024 * 1024  # sha256 gives the GIL away and takes it back once per buffer: small ones cost time


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """`connections` in all, `per_origin` at most to one origin, `bandwidth` in bytes a second (None: no limit);
    `sealing`: whether blobs are sealed."""

    connections: int
    per_origin: int
    bandwidth: int | None
    sealing: Sealing


class Workers:
    """A fixed set of threads over a changing set of flights."""

    def __init__(
        self,
        layout: Layout,
        client: HttpClient,
        settings: WorkerSettings,
        observer: Observer,
        journal: DigestJournal,
    ) -> None:
        self.layout = layout
        self.sealing = settings.sealing
        self.client = client
        self.observer = observer
        self.journal = journal
        self.limit = BandwidthLimit(settings.bandwidth, time.monotonic, time.sleep)
        self.buffers = BufferPool(settings.connections + _HELD + MAX_OPEN, BUFFER_BYTES)
        self.hold_slots = threading.Semaphore(_HELD)
        self.recorder = started_pool(2, "record")
        self.group_commit = GroupCommit(layout, settings.sealing, journal)
        self._per_origin = settings.per_origin
        self._condition = threading.Condition()
        self._flights = _Flights()
        self._idle = 0
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"carry {n}", daemon=True) for n in range(settings.connections)
        ]
        for thread in self._threads:
            limits.start(thread, f"the {settings.connections} threads of --connections")

    def submit(self, flights: Iterable[Flight]) -> None:
        """Let the workers carry flights until their results are there."""
        with self._condition:
            for flight in flights:
                self._flights.add(flight)
            self._condition.notify()

    def changed(self, flight: Flight) -> None:
        """A flight has new work, another priority, or ended: look again."""
        with self._condition:
            self._flights.refile(flight)
            self._condition.notify()

    def outranked(self, flight: Flight) -> bool:
        """Tell whether a more urgent flight could use the worker that carries this one."""
        with self._condition:
            return any(
                self._has_room(origin) or origin == flight.spec.origin  # giving way makes room there
                for origin in self._flights.origins_before(flight.priority, time.monotonic())
            )

    def in_progress(self) -> int:
        """How many blobs are under way."""
        with self._condition:
            return sum(1 for f in self._flights.begun if f.opened)

    def busy(self) -> bool:
        """Tell whether bytes are moved now; a flight that waits to be tried again moves none."""
        with self._condition:
            now = time.monotonic()
            return any(f.opened and f.not_before <= now for f in self._flights.begun)

    def stop(self) -> None:
        """Cancel every flight, recording what is durable, and end the threads."""
        with self._condition:
            self._stopping = True
            flights = self._flights.all()
            self._condition.notify_all()
        for flight in flights:
            flight.cancel()
        for thread in self._threads:
            thread.join()
        self.group_commit.stop()
        wait(flight.result for flight in flights)  # each records what it has after its last worker left
        self.recorder.shutdown()

    def _run(self) -> None:
        while self._carry_one():
            pass

    def _carry_one(self) -> bool:
        """Carry the next segment; False when there is none any more. A method, so that the flight is let go before the
        next one is waited for."""
        flight = self._next()
        if flight is None:
            return False
        try:
            flight.work()
        except Exception as error:  # noqa: BLE001 - a thread that dies takes a connection with it
            _log.exception("carrying %s", flight.spec.name)
            flight.crash(error)
        finally:
            with self._condition:
                self._flights.left(flight)
        return True

    def _next(self) -> Flight | None:
        with self._condition:
            while not self._stopping:
                now = time.monotonic()
                flight = self._flights.choose(now, self._has_room)
                if flight is not None:
                    self._flights.taken(flight)
                    if self._idle and self._flights.choose(now, self._has_room) is not None:
                        self._condition.notify()  # one wakes the next as long as there is work
                    return flight
                self._idle += 1
                try:
                    self._condition.wait(self._flights.nap(now))
                finally:
                    self._idle -= 1
            return None

    def _has_room(self, origin: str) -> bool:
        return self._flights.connections[origin] < self._per_origin


class _Flights:
    """Every flight in exactly one place: begun, asleep until it may be tried again, in the queue of its priority and
    origin, or none of these while all its bytes are here. Not thread-safe: the workers' lock is held."""

    def __init__(self) -> None:
        self.begun: dict[Flight, None] = {}  # an attempt is open, or a worker is about to open one
        self.connections: Counter[str] = Counter()  # by origin
        self._turns: dict[Flight, int] = {}  # of all: who came when
        self._workers: Counter[Flight] = Counter()
        self._queues: dict[int, dict[str, list[tuple[int, int, Flight]]]] = {}  # heaps, by priority and origin
        self._queued: dict[Flight, tuple[int, str]] = {}  # entries of the heaps that say otherwise are void
        self._asleep: dict[Flight, float] = {}
        self._alarms: list[tuple[float, int, Flight]] = []
        self._count = itertools.count()

    def all(self) -> list[Flight]:
        """Every flight that is not over."""
        return list(self._turns)

    def add(self, flight: Flight) -> None:
        """A new flight."""
        self._turns[flight] = next(self._count)
        self._file(flight)

    def refile(self, flight: Flight) -> None:
        """Put a flight where it belongs now; nowhere, once it is over."""
        if flight not in self._turns:
            return
        if flight in self.begun and self._is_begun(flight):
            return  # it keeps its place among the others
        self._remove(flight)
        if flight.result.done():
            del self._turns[flight]
        else:
            self._file(flight)

    def taken(self, flight: Flight) -> None:
        """A worker carries it."""
        if flight not in self.begun:
            self._remove(flight)
            self.begun[flight] = None
        self._workers[flight] += 1
        self.connections[flight.spec.origin] += 1

    def left(self, flight: Flight) -> None:
        """A worker carries it no more."""
        _less(self.connections, flight.spec.origin)
        _less(self._workers, flight)
        self.refile(flight)

    def choose(self, now: float, has_room: Callable[[str], bool]) -> Flight | None:
        """The flight that a worker should carry now, if there is one."""
        self._wake(now)
        awake = [f for f in self.begun if f.not_before <= now]
        urgent = min([*(f.priority for f in awake if f.receiving()), *self._queues], default=None)
        if urgent is None:
            return None
        mine = [f for f in awake if f.priority == urgent]
        able = [
            f
            for f in mine
            if (f.opened or not self._workers[f])
            and f.has_work()
            and has_room(f.spec.origin)
            and not (self._workers[f] and f.hash_is_behind())
        ]
        best = min(able, key=lambda f: self._workers[f], default=None)
        if best is not None and not self._workers[best]:
            return best
        parked = sum(1 for f in self.begun if f.opened and f.priority == urgent)
        if sum(1 for f in mine if self._is_begun(f)) < MAX_OPEN and parked < _MAX_PARKED:
            heads = [head for origin in list(self._queues.get(urgent, ())) if (head := self._head(urgent, origin))]
            able_heads = (head for head in heads if has_room(head[2].spec.origin))
            first = min(able_heads, key=lambda head: head[0], default=None)
            if first is not None:
                return first[2]
        return best

    def origins_before(self, priority: int, now: float) -> set[str]:
        """The origins of flights that are more urgent and could use another worker now."""
        self._wake(now)
        more_urgent = [(each, origin) for each, queues in self._queues.items() if each < priority for origin in queues]
        waiting = {origin for each, origin in more_urgent if self._head(each, origin)}
        begun = {f.spec.origin for f in self.begun if f.priority < priority and f.not_before <= now and f.has_work()}
        return waiting | begun

    def nap(self, now: float) -> float | None:
        """How long nothing changes by itself, in seconds; None: for ever."""
        later = [f.not_before - now for f in self.begun if f.not_before > now]
        later += [at - now for at, _, _ in self._alarms[:1]]
        return max(0.0, min(later)) if later else None

    def _is_begun(self, flight: Flight) -> bool:
        return not flight.result.done() and (flight.opened or self._workers[flight] > 0)

    def _file(self, flight: Flight) -> None:
        if self._is_begun(flight):
            self.begun[flight] = None
        elif not flight.has_work():
            return  # it is being committed
        elif flight.not_before > time.monotonic():
            self._asleep[flight] = flight.not_before
            heapq.heappush(self._alarms, (flight.not_before, next(self._count), flight))
        else:
            place = flight.priority, flight.spec.origin
            self._queued[flight] = place
            heap = self._queues.setdefault(place[0], {}).setdefault(place[1], [])
            heapq.heappush(heap, (self._turns[flight], next(self._count), flight))

    def _remove(self, flight: Flight) -> None:
        self.begun.pop(flight, None)
        self._asleep.pop(flight, None)
        place = self._queued.pop(flight, None)
        if place is not None:
            self._head(*place)

    def _head(self, priority: int, origin: str) -> tuple[int, int, Flight] | None:
        """The first of a queue, behind its turn; a queue that is found empty goes."""
        heap = self._queues.get(priority, {}).get(origin, [])
        while heap and self._queued.get(heap[0][2]) != (priority, origin):
            heapq.heappop(heap)
        if heap:
            return heap[0]
        if origin in self._queues.get(priority, ()):
            del self._queues[priority][origin]
            if not self._queues[priority]:
                del self._queues[priority]
        return None

    def _wake(self, now: float) -> None:
        """Queue the flights whose pause is over. An alarm of a flight that was filed anew since rings for nobody."""
        while self._alarms and self._alarms[0][0] <= now:
            at, _, flight = heapq.heappop(self._alarms)
            if self._asleep.get(flight) == at:
                self.refile(flight)


def _less(counter: Counter[T], key: T) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
