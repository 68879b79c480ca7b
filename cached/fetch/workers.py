"""The worker threads: a bounded number in all and per origin, each receiving the most urgent segment next.

Law: a lower priority is served only while no higher one is receiving; a connection is preempted at the end of a buffer.
The next segment is chosen among a bounded number of open blobs and the heads of queues: a step costs the same, however
many blobs wait.
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
from typing import NamedTuple, TypeVar

from cached.contract.layout import Layout
from cached.contract.program import limits
from cached.contract.program.processors import count_processors
from cached.contract.program.thread_pool import start_pool
from cached.fetch.download import Download, DownloadMetrics
from cached.fetch.processor_demand import ProcessorDemand
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.group_commit import GroupCommit
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk.verity import Sealing
from cached.transport.client import HttpClient
from cached.transport.connection.bandwidth import BandwidthLimit
from cached.transport.connection.buffers import BufferPool
from cached.transport.connection.settings import HttpSettings

_log = logging.getLogger(__name__)

T = TypeVar("T")

DEFAULT_CONNECTIONS = 8
POOL_CONNECTIONS = 12  # with 8 a card waits a twentieth of the time: some of the nodes that are asked serve others too
MAX_OPEN = 8  # blobs received at once: enough to keep the disk and the hash busy, few enough to finish soon
MAX_PARKED = 64  # blobs with open files, including those that wait for a retry, or for other nodes
_HELD = 4  # buffers that may wait for the hash, beside the next one of each blob
_LOOK_S = 0.05
_SPARE_PROCESSORS = 0.25  # with less to spare another worker takes from the others what it gets
_RELEASE_S = 10.0
# A peer that does not answer at once is left: the next one has the piece too. It may queue a request for two seconds.
# At 256 KiB/s a piece takes two minutes: a slower peer is none (`serving/server.py` drops such readers).
PEER_HTTP = HttpSettings(
    connect_timeout_s=2.0, header_timeout_s=5.0, stall_window_s=3.0, stall_min_bytes=768 * 1024, is_direct=True
)
BUFFER_BYTES = 4 * 1024 * 1024  # sha256 releases and retakes the GIL once per buffer: small ones cost time


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """`connections` in all, `per_origin` at most to one origin, `bandwidth` in bytes a second (None: no limit);
    `sealing`: whether blobs are sealed; `peer_http`: how other nodes are asked."""

    connections: int
    per_origin: int
    bandwidth: int | None
    sealing: Sealing
    peer_http: HttpSettings = PEER_HTTP


class Workers:
    """A fixed set of threads for a changing set of downloads."""

    def __init__(
        self,
        layout: Layout,
        client: HttpClient,
        settings: WorkerSettings,
        metrics: DownloadMetrics,
        journal: DigestJournal,
        notes: HashNotes,
    ) -> None:
        self.layout = layout
        self.sealing = settings.sealing
        self.client = client
        self.peer_client = HttpClient(settings.peer_http)
        self.metrics = metrics
        self.journal = journal
        self.notes = notes
        self.limit = BandwidthLimit(settings.bandwidth, time.monotonic, time.sleep)
        self.buffers = BufferPool(settings.connections + _HELD + MAX_OPEN, BUFFER_BYTES)
        self.hold_slots = threading.Semaphore(_HELD)
        self.recorder = start_pool(2, "record")
        self.group_commit = GroupCommit(layout, settings.sealing, journal, notes)
        self._per_origin = settings.per_origin
        self._condition = threading.Condition()
        self._downloads = _DownloadQueues()
        self._idle = 0
        self._processors = count_processors()
        self._demand = ProcessorDemand(time.monotonic)
        self._crowded = False  # at the last choice
        self._looking = False  # whether an idle worker looks for a free processor again by itself
        self._releasing = False  # whether one waits to give the buffers' pages back
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"worker {n}", daemon=True) for n in range(settings.connections)
        ]
        for thread in self._threads:
            limits.start_thread(thread, f"the {settings.connections} threads of --connections")

    def submit(self, downloads: Iterable[Download]) -> None:
        """Run downloads until they have results."""
        with self._condition:
            for download in downloads:
                self._downloads.add(download)
            self._condition.notify()

    def changed(self, *downloads: Download) -> None:
        """Requeue downloads that have new work or another priority, or ended. Wake an idle worker only if there is
        work, or a processor to look for, or if it may sleep longer than a backoff lasts."""
        with self._condition:
            for download in downloads:
                self._downloads.requeue(download)
            now = time.monotonic()
            if self._idle and (any(download.not_before > now for download in downloads) or self._needs_worker(now)):
                self._condition.notify()

    def outranked(self, download: Download) -> bool:
        """Return whether a more urgent download could use this one's worker."""
        with self._condition:
            return any(
                self._has_room(origin) or origin == download.spec.origin  # a preempted connection frees one there
                for origin in self._downloads.origins_before(download.priority, time.monotonic())
            )

    def fills_processors(self) -> bool:
        """Return whether at least as many blobs are received at once as there are processors. Takes no lock: an attempt
        asks this while others hold theirs."""
        return self._downloads.count_received() >= self._processors

    def in_progress(self) -> int:
        """Return the number of blobs being received."""
        with self._condition:
            return sum(1 for f in self._downloads.started if f.opened)

    def busy(self) -> bool:
        """Return whether bytes are received now; a download that waits for a retry receives none."""
        with self._condition:
            now = time.monotonic()
            return any(f.opened and f.not_before <= now for f in self._downloads.started)

    def stop(self) -> None:
        """Cancel every download, recording its bytes, and end the threads."""
        with self._condition:
            self._stopping = True
            downloads = self._downloads.list_all()
            self._condition.notify_all()
        for download in downloads:
            download.cancel()
        for thread in self._threads:
            thread.join()
        self.group_commit.stop()
        wait(download.result for download in downloads)  # each records its bytes after its last worker left
        self.recorder.shutdown()
        self.peer_client.close()

    def _run(self) -> None:
        with self._demand.count_this_thread():
            while self._receive_one():
                pass

    def _receive_one(self) -> bool:
        """Receive the next segment; return False at the end. A method: it frees the download before the next wait."""
        download = self._next()
        if download is None:
            return False
        try:
            download.receive_once()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a dead thread would cost a connection
            _log.exception("downloading %s", download.spec.name)
            download.crash(error)
        finally:
            with self._condition:
                self._downloads.remove_worker(download)
        return True

    def _next(self) -> Download | None:
        with self._condition:
            while not self._stopping:
                now = time.monotonic()
                download = self._choose(now)
                if download is not None:
                    self._downloads.add_worker(download)
                    if self._idle and self._needs_worker(now):
                        self._condition.notify()  # each worker wakes the next while there is work
                    return download
                self._sleep(now)
            return None

    def _choose(self, now: float) -> Download | None:
        """Return the download that a free worker should take, None while there is none or no processor for it."""
        crowded = self._crowded = self._is_crowded()
        # Two blobs more than there are processors: others are at work while some wait for the disk, and fewer end last.
        # Those with small blobs do not count: there may be no end of them.
        begins = not crowded or self._downloads.count_large_workers() < self._processors + 2
        return self._downloads.choose(now, self._has_room, begins=begins, helps=not crowded)

    def _is_crowded(self) -> bool:
        """Return whether the workers use all processors; until that is measured, each is taken to use one."""
        workers = self._downloads.count_workers()
        demand = self._demand.measure(workers)
        return workers >= self._processors if demand is None else demand > self._processors - _SPARE_PROCESSORS

    def _needs_worker(self, now: float) -> bool:
        """Return whether an idle worker has a download to take, or a free processor to look for."""
        return self._choose(now) is not None or self._needs_look()

    def _needs_look(self) -> bool:
        """Return whether no idle worker looks for a free processor."""
        return not self._looking and self._crowded

    def _sleep(self, now: float) -> None:
        """Wait for a change. One of the idle workers looks again by itself: soon if only a processor is lacking, and
        after a while without downloads, to give the buffers' pages back."""
        looks = self._needs_look()
        releases = not (looks or self._releasing or self._downloads.count_workers()) and self.buffers.holds_pages
        self._looking, self._releasing = self._looking or looks, self._releasing or releases
        look_s = _LOOK_S if looks else _RELEASE_S if releases else None
        limits_s = [each for each in (look_s, self._downloads.next_backoff_s(now)) if each is not None]
        self._idle += 1
        try:
            is_changed = self._condition.wait(min(limits_s, default=None))
        finally:
            self._idle -= 1
            self._looking, self._releasing = self._looking and not looks, self._releasing and not releases
        if releases and not is_changed and not self._downloads.count_workers():
            self.buffers.release()

    def _has_room(self, origin: str) -> bool:
        return self._downloads.connections[origin] < self._per_origin


class _Lane(NamedTuple):
    """Downloads that one condition holds back: the large ones of an origin, or its small ones."""

    origin: str
    is_small: bool


class _DownloadQueues:
    """Every download in one place: started, waiting for its backoff, in the queue of its priority and lane, or none of
    these while it is committed. Not thread-safe: call with the workers' lock held."""

    def __init__(self) -> None:
        self.started: dict[Download, None] = {}  # an attempt is open, or a worker is about to open one
        self.connections: Counter[str] = Counter()  # by origin
        self._turns: dict[Download, int] = {}  # the order of arrival, of all
        self._workers: Counter[Download] = Counter()
        self._queues: dict[int, dict[_Lane, list[tuple[int, int, Download]]]] = {}  # heaps, by priority and lane
        self._queued: dict[Download, tuple[int, _Lane]] = {}  # other heap entries are stale
        self._backing_off: dict[Download, float] = {}
        self._backoff_ends: list[tuple[float, int, Download]] = []
        self._count = itertools.count()

    def list_all(self) -> list[Download]:
        """Return every download without a result."""
        return list(self._turns)

    def add(self, download: Download) -> None:
        """Add a download."""
        self._turns[download] = next(self._count)
        self._enqueue(download)

    def requeue(self, download: Download) -> None:
        """Move a download to its current place; remove it if it has a result."""
        if download not in self._turns:
            return
        if download in self.started and self._is_started(download):
            return  # it keeps its position
        self._remove(download)
        if download.result.done():
            del self._turns[download]
        else:
            self._enqueue(download)

    def add_worker(self, download: Download) -> None:
        """Count a worker that takes a segment of the download."""
        if download not in self.started:
            self._remove(download)
            self.started[download] = None
        self._workers[download] += 1
        self.connections[download.spec.origin] += 1

    def remove_worker(self, download: Download) -> None:
        """Uncount a worker that has left the download."""
        _decrement(self.connections, download.spec.origin)
        _decrement(self._workers, download)
        self.requeue(download)

    def count_workers(self) -> int:
        """Return the number of workers with a download."""
        return sum(self._workers.values())

    def count_large_workers(self) -> int:
        """Return the number of workers with a large download."""
        return sum(count for download, count in self._workers.items() if not download.is_small)

    def count_received(self) -> int:
        """Return the number of downloads with workers. Needs no lock."""
        return len(self._workers)

    def choose(self, now: float, has_room: Callable[[str], bool], *, begins: bool, helps: bool) -> Download | None:
        """Return the download that the next worker should take, None if there is none. Of the large ones, it may be one
        without a worker if the worker `begins` it, and one with others if it `helps` them."""
        self._end_backoffs(now)
        awake = [f for f in self.started if f.not_before <= now]
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
            and (f.is_small or (helps if self._workers[f] else begins))
        ]
        best = min(able, key=lambda f: (not f.is_waited_for, self._workers[f]), default=None)
        if best is not None and (best.is_waited_for or not self._workers[best]):
            return best
        parked = sum(1 for f in self.started if f.opened and f.priority == urgent)
        if sum(1 for f in mine if self._is_active(f)) < MAX_OPEN and parked < MAX_PARKED:
            heads = [head for lane in list(self._queues.get(urgent, ())) if (head := self._head(urgent, lane))]
            able_heads = (head for head in heads if has_room(head[2].spec.origin) and (begins or head[2].is_small))
            first = min(able_heads, key=lambda head: head[0], default=None)
            if first is not None:
                return first[2]
        return best

    def origins_before(self, priority: int, now: float) -> set[str]:
        """Return the origins of more urgent downloads that could use another worker now."""
        self._end_backoffs(now)
        more_urgent = [(each, lane) for each, queues in self._queues.items() if each < priority for lane in queues]
        waiting = {lane.origin for each, lane in more_urgent if self._head(each, lane)}
        started = {
            f.spec.origin for f in self.started if f.priority < priority and f.not_before <= now and f.has_work()
        }
        return waiting | started

    def next_backoff_s(self, now: float) -> float | None:
        """Return the seconds until the next backoff ends; None: no download waits for one."""
        later = [f.not_before - now for f in self.started if f.not_before > now]
        later += [at - now for at, _, _ in self._backoff_ends[:1]]
        return max(0.0, min(later)) if later else None

    def _is_started(self, download: Download) -> bool:
        return not download.result.done() and (download.opened or self._workers[download] > 0)

    def _is_active(self, download: Download) -> bool:
        """Return whether a started download is received, or could be: it counts among the open ones. One of which no
        node has anything new would keep the workers from others."""
        return self._is_started(download) and (self._workers[download] > 0 or not download.is_starved)

    def _enqueue(self, download: Download) -> None:
        if self._is_started(download):
            self.started[download] = None
        elif not download.has_work():
            return  # it is committed
        elif download.not_before > time.monotonic():
            self._backing_off[download] = download.not_before
            heapq.heappush(self._backoff_ends, (download.not_before, next(self._count), download))
        else:
            place = download.priority, _Lane(download.spec.origin, download.is_small)
            self._queued[download] = place
            heap = self._queues.setdefault(place[0], {}).setdefault(place[1], [])
            heapq.heappush(heap, (self._turns[download], next(self._count), download))

    def _remove(self, download: Download) -> None:
        self.started.pop(download, None)
        self._backing_off.pop(download, None)
        place = self._queued.pop(download, None)
        if place is not None:
            self._head(*place)

    def _head(self, priority: int, lane: _Lane) -> tuple[int, int, Download] | None:
        """Return the first entry of a queue after dropping stale ones; delete an empty queue."""
        heap = self._queues.get(priority, {}).get(lane, [])
        while heap and self._queued.get(heap[0][2]) != (priority, lane):
            heapq.heappop(heap)
        if heap:
            return heap[0]
        if lane in self._queues.get(priority, ()):
            del self._queues[priority][lane]
            if not self._queues[priority]:
                del self._queues[priority]
        return None

    def _end_backoffs(self, now: float) -> None:
        """Queue the downloads whose backoff has ended; ignore stale ones."""
        while self._backoff_ends and self._backoff_ends[0][0] <= now:
            at, _, download = heapq.heappop(self._backoff_ends)
            if self._backing_off.get(download) == at:
                self.requeue(download)


def _decrement(counter: Counter[T], key: T) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
