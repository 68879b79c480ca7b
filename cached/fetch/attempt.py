"""One attempt at one blob: ranges arrive in any order, are written at their offsets, and are hashed in order.

Law: the hash follows the contiguous front, from buffers still in memory, else from the disk; there is no second pass.
A piece that was checked as a step from the hash's own state is not hashed again. One thread at a time advances the
hash: the attempt's own, or a worker with the next piece. Memory is bounded by the pool, whatever the blob's size. Only
a verified blob is committed.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import Layout
from cached.contract.program import limits
from cached.fetch.blob import SEGMENT_BYTES, BlobHashes, BlobSpec, NoRanges, Segment, Verified
from cached.fetch.supply import Assignment, Supply
from cached.peers.chaining import ChainStep
from cached.store.blob import blobs
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.group_commit import GroupCommit, read_back
from cached.store.blob.hash_notes import HashNotes
from cached.store.blob.ingest import ALIGNMENT, Ingest, allocated_bytes, forget
from cached.store.blob.ranges import Ranges
from cached.store.disk.verity import Sealing, seal
from cached.transport.checksums import Hasher
from cached.transport.connection.buffers import BufferPool
from cached.transport.connection.cancel import Cancellation

_BEHIND_BYTES = 8 * 1024 * 1024
_PATIENCE_S = 0.1  # of a worker that writes slower than it receives, for the piece that the hash lacks
# Errors after which the bytes are deleted: wrong, of a changed object, or lost by the disk.
_WORTHLESS = frozenset({"digest_mismatch", "source_changed", "bad_response", "lost_bytes"})
RECORD_FROM_BYTES = 2 * SEGMENT_BYTES  # smaller blobs are fetched again after a crash
_LOST_BYTES = 2 * SEGMENT_BYTES  # what a crash may cost at most, a connection
_RECORDED_BYTES = 3 * SEGMENT_BYTES // 2  # what one record adds: the rest of that comes while it is written
_MAX_JOINED = 4  # segments in one request
_REQUEST_S = 0.5  # how long one request of several segments may take


@dataclass(frozen=True, slots=True)
class _Held:
    """A written piece that waits in memory for the hash; `has_slot`: in one of the slots that all blobs share."""

    buffer: memoryview
    length: int
    has_slot: bool


class AttemptResources(Protocol):
    """The resources that all attempts share: see `workers.Workers`."""

    layout: Layout
    sealing: Sealing
    journal: DigestJournal
    notes: HashNotes
    buffers: BufferPool
    hold_slots: threading.Semaphore
    recorder: ThreadPoolExecutor
    group_commit: GroupCommit

    def fills_processors(self) -> bool:
        """Return whether at least as many blobs are received at once as there are processors."""


class Attempt:
    """The state of one attempt; workers feed it, its own thread hashes what they do not, and commits."""

    committing = False  # it counts as receiving until it has its name

    def __init__(self, spec: BlobSpec, shared: AttemptResources, *, stream: bool, keeps_chain: bool = False) -> None:
        """`keeps_chain`: the states of sha256 between the pieces are wanted."""
        self.spec = spec
        self.size = spec.key.size
        self.stream = stream or self.size is None
        self.cancellation = Cancellation()
        self.outcome: Future[Verified] = Future()
        self.placed: Verified | None = None  # the blob, once it has its name, also if the disk failed after that
        self.left_bytes = 0  # of the partial blob on the disk, after a failure
        self.has_peer_bytes = False  # whether other nodes sent some of them
        self.has_proxied_bytes = False  # whether the origin proxy did
        self.chain: bytes | None = None  # of a committed blob: the states of sha256 between its pieces, if kept
        self._keeps_chain = keeps_chain
        self._checked: dict[int, tuple[ChainStep, int]] = {}  # pieces of other nodes, and their length, by offset
        self._shared = shared
        if stream:
            forget(shared.layout, spec.key.id)
        is_whole = shared.journal.find(spec.key.id) is not None
        self._ingest = Ingest(shared.layout.ingest / spec.key.id, spec.key, is_whole=is_whole)
        self._lock = threading.RLock()
        self._recorded_more = threading.Condition(self._lock)
        self._for_hash = threading.Condition(self._lock)
        self._written = Ranges(self._ingest.recorded())
        self.resumed_bytes = self._written.total()
        self._unassigned = deque(self._segments())
        self._held: dict[int, _Held] = {}  # by offset
        self._hashes: BlobHashes | None = None  # until its thread has made them
        self._hashing = False
        self._worker_hashes = False
        self._front = 0
        self._moved_at = time.monotonic()
        self._waiting: dict[int, threading.Condition] = {}  # of each worker that waits with a piece, by its offset
        self._users = 0
        self._failure: BaseException | None = None
        self._finished = False
        self._record_queued = False
        self._recording = 0
        self._recorded_bytes = self.resumed_bytes
        self._rate = 0.0  # of the last piece, in bytes a second
        follower = threading.Thread(target=self._follow, name=f"hash {spec.name}"[:15], daemon=True)
        try:
            limits.start_thread(follower, f"hashing {spec.name}")
        except Transient:
            self._ingest.close()
            raise

    # --- called by the workers -------------------------------------------------------------------------------------

    def take_segment(self) -> Segment | None:
        """Return the next range to request, in order; None if all are assigned or received."""
        with self._lock:
            if self._failure is not None or not self._unassigned:
                return None
            return self._take(self._unassigned[0], joins=True)

    def take_assignment(self, supply: Supply) -> Assignment | None:
        """Return the range that `supply` chooses next, with its place; None if all are assigned, or it chooses none."""
        with self._lock:
            if self._failure is not None or not self._unassigned:
                return None
            assignment = supply.choose(self._unassigned)
            if assignment is None:
                return None
            return replace(assignment, segment=self._take(assignment.segment, joins=supply.joins))

    def has_work(self) -> bool:
        """Return whether `take_segment` would return a segment."""
        with self._lock:
            return self._failure is None and bool(self._unassigned)

    def has_work_of(self, supply: Supply) -> bool:
        """Return whether `take_assignment` would return one."""
        with self._lock:
            return self._failure is None and bool(self._unassigned) and supply.has_work(self._unassigned)

    def receiving(self) -> bool:
        """Return whether bytes are still to be received, requested or not."""
        with self._lock:
            return self._failure is None and (bool(self._unassigned) or self._users > 0)

    def hash_is_behind(self) -> bool:
        """Return whether bytes wait for the hash: then more connections only cost processor time."""
        with self._lock:
            return self._written.end_at(self._front) - self._front >= _BEHIND_BYTES

    def end_segment(self, rest: Segment | None) -> None:
        """End a worker's segment, and requeue its unreceived rest."""
        with self._lock:
            self._users -= 1
            if rest is not None:
                self._unassigned.extendleft(reversed(_cut(rest)))
            self._wake_hash()

    def become_stream(self, segment: Segment) -> None:
        """Continue as one stream from the start: the origin does not support ranges. Raises `NoRanges` if the attempt
        has bytes already, or another worker that may receive some: it must start over, because a byte that is written
        twice is hashed once, and the disk may keep the other value."""
        with self._lock:
            if segment.start != 0 or self._users > 1 or len(self._written):
                raise NoRanges
            self.stream = True
            self._unassigned.clear()

    def accept(self, buffer: memoryview, length: int, offset: int, received_s: float) -> None:
        """Write a piece that took `received_s` seconds to receive, and hash it or pass it to the hash; takes ownership
        of `buffer`. Raises `HoldfastError`."""
        kept = False
        try:
            began = time.monotonic()
            self._ingest.write(buffer, length, offset)
            # Where the network is slower than the disk, a wait would only leave the connection unused.
            patience_s = _PATIENCE_S if received_s < time.monotonic() - began else 0.0
            is_ours = self._shared.fills_processors()
            with self._lock:
                self._rate = length / received_s if received_s > 0 else 0.0
                hashes = self._take_front(offset) if is_ours else None
                if hashes is None:
                    kept = self._hold(buffer, length, offset, patience_s)
                    self._wake_first_waiting()  # for the next one there may be room too, or none for long
                self._written.add(offset, offset + length)  # last: now the hash may read it from the disk
                self._wake_hash()
            if hashes is not None:
                hashes.update(buffer[:length])
                self._leave_front(length)
        finally:
            if not kept:
                self._shared.buffers.give(buffer)

    def write_provisional(self, buffer: memoryview, length: int, offset: int) -> None:
        """Write bytes that are not checked: they count as received, are hashed and recorded only after `accept_piece`,
        and until then others may be written in their place. Raises `HoldfastError`."""
        self._ingest.write(buffer, length, offset)

    def accept_piece(self, segment: Segment, step: ChainStep | None) -> None:
        """Count a range that was written provisionally, whose sha256 was right: the hash reads it from the disk. Where
        it was checked as a `step` of the chain, the hash goes over it."""
        assert segment.end is not None
        with self._lock:
            if step is not None:
                self._checked[segment.start] = step, segment.end - segment.start
            self._written.add(segment.start, segment.end)
            self.has_peer_bytes = True
            self._wake_first_waiting()
            self._wake_hash()

    def end_of_stream(self, size: int) -> None:
        """Set the size in bytes of a stream of unknown length, at its clean end."""
        with self._lock:
            self.size = size

    def record_soon(self, ahead: int) -> None:
        """Queue a record of the written bytes once there are enough for one; `ahead`: the most bytes that come over
        this connection before the next call. Waits only where a crash until then could cost more than two segments a
        connection."""
        if self.stream or self.size is None or self.size < RECORD_FROM_BYTES:
            return
        with self._lock:
            while self._failure is None:
                lost = self._written.total() - self._recorded_bytes + ahead
                if lost < _RECORDED_BYTES:
                    return
                if not self._record_queued:
                    self._record_queued = True
                    self._shared.recorder.submit(self._record)
                if lost <= _LOST_BYTES * self._users:
                    return
                self._recorded_more.wait()

    def fail(self, error: BaseException) -> None:
        """End the attempt with `error`: record the written bytes and wake every worker."""
        with self._lock:
            if self._failure is None:
                self._failure = error
            self._recorded_more.notify_all()
            for room in self._waiting.values():
                room.notify()
            self._wake_hash()
        self.cancellation.cancel()

    # --- recording -------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        with self._lock:
            self._record_queued = False
            if self._failure is not None or self._finished:
                return
            written = list(self._written)
            self._recording += 1  # so that the files stay open
        try:
            self._ingest.record(written)
        except HoldfastError as error:
            self.fail(error)
        finally:
            with self._lock:
                self._recording -= 1
                self._recorded_bytes = sum(end - start for start, end in written)
                self._recorded_more.notify_all()
                self._wake_hash()

    def _idle(self) -> bool:
        """Return whether no thread uses the files; call with the lock held."""
        return self._users == 0 and self._recording == 0

    # --- segments --------------------------------------------------------------------------------------------------

    def _take(self, segment: Segment, *, joins: bool) -> Segment:
        """Take a segment, where it `joins` others together with those after it that one request may ask for; call with
        the lock held."""
        at = self._unassigned.index(segment)
        most = self._count_joined() if joins else 1
        end = segment.end
        del self._unassigned[at]
        while most > 1 and at < len(self._unassigned) and self._unassigned[at].start == end:
            end, most = self._unassigned[at].end, most - 1
            del self._unassigned[at]
        self._users += 1
        return Segment(segment.start, end)

    def _count_joined(self) -> int:
        """Return how many segments the next request may ask for. More than one only where a request costs more time
        than it could save: every processor has a blob of its own, and the bytes come fast. Half of the segments stay
        for others."""
        if self.stream or self._users or not self._shared.fills_processors():
            return 1
        swift = int(self._rate * _REQUEST_S / SEGMENT_BYTES)
        return max(1, min(_MAX_JOINED, swift, len(self._unassigned) // 2))

    def _segments(self) -> list[Segment]:
        if self.stream or self.size is None:
            return [] if self.size == 0 else [Segment(0, self.size)]
        return [part for start, end in self._written.missing(self.size) for part in _cut(Segment(start, end))]

    # --- hashing ---------------------------------------------------------------------------------------------------

    def _take_front(self, offset: int) -> BlobHashes | None:
        """Return the hashes if the caller is to hash the piece at `offset` itself, which it has written: where every
        processor has a blob of its own, another thread for it only costs switches. Call with the lock held, before the
        piece counts as written; afterwards call `_leave_front`."""
        waits = not self._hashing and not self._has_front()
        if self._failure is not None or self._hashes is None or offset != self._front or not waits:
            return None
        self._hashing = self._worker_hashes = True
        return self._hashes

    def _leave_front(self, length: int) -> None:
        """Move the front over the piece that the caller has hashed."""
        with self._lock:
            self._hashing = self._worker_hashes = False
            self._advance(length)
            self._wake_hash()

    def _advance(self, length: int) -> None:
        """Move the front, and wake the worker whose piece is needed first; call with the lock held."""
        self._front += length
        self._moved_at = time.monotonic()
        self._wake_first_waiting()

    def _wake_first_waiting(self) -> None:
        if self._waiting:
            self._waiting[min(self._waiting)].notify()

    def _wake_hash(self) -> None:
        """Wake the hash if it has something to do; call with the lock held."""
        if (self._has_front() and not self._worker_hashes) or self._failure is not None or self._idle():
            self._for_hash.notify()

    def _hold(self, buffer: memoryview, length: int, offset: int, patience_s: float) -> bool:
        """Keep a written piece in memory for the hash; call with the lock held. While the hash works on this blob, wait
        for room: it is the bottleneck, and reading back would cost more. Where it has been waiting for a missing piece
        for `patience_s`, do not wait: free the buffer and read the piece back later."""
        while self._failure is None and offset >= self._front and offset not in self._held:
            is_first = offset == self._front  # the hash takes it at once: it needs no slot
            if is_first or self._shared.hold_slots.acquire(blocking=False):
                self._held[offset] = _Held(buffer, length, has_slot=not is_first)
                return True
            works = self._hashing or self._has_front()
            left_s = None if works else self._moved_at + patience_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            self._wait_for_room(offset, left_s)
        return False

    def _wait_for_room(self, offset: int, timeout_s: float | None) -> None:
        """Wait until the piece at `offset` is the next one of those that wait, and the front moves."""
        room = self._waiting[offset] = threading.Condition(self._lock)
        try:
            room.wait(timeout_s)
        finally:
            del self._waiting[offset]

    def _has_front(self) -> bool:
        """Return whether the piece at the front is there; call with the lock held."""
        return self._written.end_at(self._front) > self._front

    def _follow(self) -> None:
        try:
            hashes = BlobHashes(self.spec, self.size, keeps_chain=self._keeps_chain)
            with self._lock:
                self._hashes = hashes
            while (piece := self._next_piece()) is not None:
                held, offset, length = piece
                if held is None:
                    length = self._skip_checked(hashes, offset) or self._hash_from_disk(hashes, offset, length)
                else:
                    try:
                        hashes.update(held.buffer[:length])
                    finally:
                        self._free(held)
                with self._lock:
                    self._advance(length)
            if hashes.lacks_git_id:
                self._read_git_id(hashes)
            verified = self._commit(hashes.compare())
            self.chain = hashes.states
        except BaseException as error:  # noqa: BLE001 - every error becomes the outcome
            self._abandon(error)
        else:
            self.outcome.set_result(verified)

    def _free(self, held: _Held) -> None:
        self._shared.buffers.give(held.buffer)
        if held.has_slot:
            self._shared.hold_slots.release()

    def _next_piece(self) -> tuple[_Held | None, int, int] | None:
        """Wait for the piece at the front; return (None for the disk, offset, length), or None at the end."""
        with self._lock:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._worker_hashes:
                    self._for_hash.wait()
                    continue
                held = self._held.pop(self._front, None)
                if held is not None:
                    self._hashing = True
                    return held, self._front, held.length
                end = self._written.end_at(self._front)
                if end > self._front:
                    self._hashing = True
                    upto = min([end, *(offset for offset in self._held if offset > self._front)])
                    return None, self._front, upto - self._front
                if self._hashing:
                    self._hashing = False
                    self._wake_first_waiting()
                if self.size is not None and self._front >= self.size and self._idle():
                    self._finished = True
                    return None
                self._for_hash.wait()

    def _skip_checked(self, hashes: BlobHashes, offset: int) -> int:
        """Go over a piece at the front that was checked as a step of the chain, if that is the chain so far; return its
        bytes, 0 if it must be hashed."""
        with self._lock:
            step, length = self._checked.pop(offset, (None, 0))
        return length if step is not None and hashes.skip(step, length) else 0

    def _hash_from_disk(self, hashes: BlobHashes | Hasher, offset: int, length: int) -> int:
        with self._shared.buffers.lent() as buffer:
            wanted = min(length, len(buffer))
            aligned = min(len(buffer), (wanted + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
            found = min(wanted, self._ingest.read(buffer[:aligned], offset))
            if found <= 0:
                raise Transient("disk", f"{self._ingest.folder}: written bytes cannot be read back", "check the disk")
            if found % ALIGNMENT and offset + found != self.size:
                found -= found % ALIGNMENT
            hashes.update(buffer[:found])
            return found

    def _read_git_id(self, hashes: BlobHashes) -> None:
        """Hash a file for its Git blob id whose size was not known before its last byte: it is read once more."""
        assert self.size is not None
        git, offset = hashes.begin_git_id(self.size), 0
        while offset < self.size:
            offset += self._hash_from_disk(git, offset, self.size - offset)

    def _commit(self, sha256: str) -> Verified:
        assert self.size is not None
        if self._shared.sealing is not Sealing.NONE and not self.stream and self.size >= RECORD_FROM_BYTES:
            self._ingest.record([(0, self.size)])  # sealing takes long: a crash during it must not cost the bytes
        finished = self._ingest.finish(self.size)
        if seal(finished, self._shared.sealing):
            read_back(self.spec.name, finished, sha256, lambda _size: self.cancellation.check())
        if self.spec.sha256 is None:
            self._shared.journal.record({self.spec.key.id: sha256})
        fresh = blobs.place(self._shared.layout, finished, sha256)
        self.placed = Verified(sha256, self.size, fresh)
        if fresh:
            self._shared.notes.note(self._shared.layout, [sha256])
        blobs.sync(self._shared.layout, finished, sha256)
        forget(self._shared.layout, self.spec.key.id)
        return self.placed

    def _abandon(self, error: BaseException) -> None:
        """Stop the workers, wait until no thread uses the files, keep or delete the bytes, and set the outcome."""
        self.fail(error)
        with self._lock:
            while not self._idle():
                self._for_hash.wait()
            for held in self._held.values():
                self._free(held)
            self._held.clear()
            written = list(self._written)
        resumable = not self.stream and (self.size or 0) >= RECORD_FROM_BYTES and bool(written)
        try:
            worthless = isinstance(error, NoRanges) or (isinstance(error, HoldfastError) and error.code in _WORTHLESS)
            if resumable and not worthless:
                self._ingest.record(written)
                self._ingest.close()
            else:
                self._ingest.discard()
        except HoldfastError:  # the disk refuses this too: earlier records stay
            self._ingest.close()
        finally:
            self.left_bytes = allocated_bytes(self._ingest.folder)
            self.outcome.set_exception(error)


def _cut(part: Segment) -> list[Segment]:
    """Return the segments of a range, cut where those of a whole blob are: another node has only such ones."""
    if part.end is None:
        return [part]
    cuts = range((part.start // SEGMENT_BYTES + 1) * SEGMENT_BYTES, part.end, SEGMENT_BYTES)
    edges = [part.start, *cuts, part.end]
    return [Segment(start, end) for start, end in itertools.pairwise(edges) if start < end]
