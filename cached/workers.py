"""The threads that carry bytes: a bounded number in all and per origin, each taking the most urgent segment next.

Law: a lower priority is served only while no higher one is receiving; a connection gives way at the next buffer's end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from concurrent.futures import wait
from dataclasses import dataclass

from cached.contract import limits
from cached.contract.layout import Layout
from cached.flight import Flight, Observer
from cached.pools import started_pool
from cached.store.verity import Sealing
from cached.wire.buffers import BufferPool
from cached.wire.client import HttpClient
from cached.wire.limits import BandwidthLimit

_log = logging.getLogger(__name__)

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

    def __init__(self, layout: Layout, client: HttpClient, settings: WorkerSettings, observer: Observer) -> None:
        self.layout = layout
        self.sealing = settings.sealing
        self.client = client
        self.observer = observer
        self.limit = BandwidthLimit(settings.bandwidth, time.monotonic, time.sleep)
        self.buffers = BufferPool(settings.connections + _HELD + MAX_OPEN, BUFFER_BYTES)
        self.hold_slots = threading.Semaphore(_HELD)
        self.recorder = started_pool(2, "record")
        self._per_origin = settings.per_origin
        self._condition = threading.Condition()
        self._flights: list[Flight] = []
        self._busy: Counter[Flight] = Counter()
        self._origins: Counter[str] = Counter()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"carry {n}", daemon=True) for n in range(settings.connections)
        ]
        for thread in self._threads:
            limits.start(thread, f"the {settings.connections} threads of --connections")

    def submit(self, flight: Flight) -> None:
        """Let the workers carry a flight until its result is there."""
        with self._condition:
            self._flights.append(flight)
            self._condition.notify_all()

    def changed(self) -> None:
        """A flight has new work, or ended: look again."""
        with self._condition:
            self._flights = [f for f in self._flights if not f.result.done()]
            self._condition.notify_all()

    def outranked(self, flight: Flight) -> bool:
        """Tell whether a more urgent flight could use the worker that carries this one."""
        with self._condition:
            now = time.monotonic()
            return any(
                f.priority < flight.priority
                and f.not_before <= now
                and f.has_work()
                and (self._has_room(f) or f.spec.origin == flight.spec.origin)  # giving way makes room there
                for f in self._flights
            )

    def in_progress(self) -> int:
        """How many blobs are under way."""
        with self._condition:
            return sum(1 for f in self._flights if f.opened)

    def busy(self) -> bool:
        """Tell whether bytes are moved now; a flight that waits to be tried again moves none."""
        with self._condition:
            now = time.monotonic()
            return any(f.opened and f.not_before <= now for f in self._flights)

    def stop(self) -> None:
        """Cancel every flight, recording what is durable, and end the threads."""
        with self._condition:
            self._stopping = True
            flights = list(self._flights)
            self._condition.notify_all()
        for flight in flights:
            flight.cancel()
        for thread in self._threads:
            thread.join()
        wait(flight.result for flight in flights)  # each records what it has after its last worker left
        self.recorder.shutdown()

    def _run(self) -> None:
        while (flight := self._next()) is not None:
            try:
                flight.work()
            except Exception as error:  # noqa: BLE001 - a thread that dies takes a connection with it
                _log.exception("carrying %s", flight.spec.name)
                flight.crash(error)
            finally:
                with self._condition:
                    self._busy[flight] -= 1
                    self._origins[flight.spec.origin] -= 1
                    if not self._busy[flight]:
                        del self._busy[flight]
                    self._condition.notify_all()

    def _next(self) -> Flight | None:
        with self._condition:
            while not self._stopping:
                now = time.monotonic()
                flight = self._choose(now)
                if flight is not None:
                    self._busy[flight] += 1
                    self._origins[flight.spec.origin] += 1
                    return flight
                self._condition.wait(self._nap(now))
            return None

    def _choose(self, now: float) -> Flight | None:
        awake = [f for f in self._flights if f.not_before <= now]
        urgent = min((f.priority for f in awake if f.receiving()), default=None)
        opened = sum(1 for f in awake if f.opened and f.priority == urgent)
        parked = sum(1 for f in self._flights if f.opened and f.priority == urgent) >= _MAX_PARKED
        able = [
            f
            for f in awake
            if f.priority == urgent
            and f.has_work()
            and self._has_room(f)
            and not (self._busy[f] and f.hash_is_behind())
            and (f.opened or (not self._busy[f] and opened < MAX_OPEN and not parked))
        ]
        return min(able, key=lambda f: self._busy[f], default=None)

    def _has_room(self, flight: Flight) -> bool:
        return self._origins[flight.spec.origin] < self._per_origin

    def _nap(self, now: float) -> float | None:
        later = [f.not_before - now for f in self._flights if f.not_before > now]
        return min(later, default=None)
