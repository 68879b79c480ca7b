"""One blob's download: attempts until the blob is verified, fails permanently, or is no longer wanted.

Law: one download per blob, for all versions. Network errors are retried here with jittered backoff; errors that need a
new listing or more disk end the download, and the version fetch decides. Blocking; runs on the workers' threads.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.program import limits
from cached.core.retries import BlobFailures, hopeless
from cached.fetch.attempt import Attempt, AttemptResources
from cached.fetch.blob import SEGMENT_BYTES, BlobSpec, NoRanges, Segment, Verified
from cached.fetch.origin import AnyBody, FailureMetrics, Origin, OriginWorkers
from cached.fetch.progress import DownloadProgress
from cached.fetch.small_attempt import SmallAttempt, is_small
from cached.fetch.supply import Assignment, OriginSupply, PeerPiece, Receipt, Supply, SupplyMaker
from cached.store.blob.ingest import ALIGNMENT, allocated_bytes
from cached.store.disk.durable import disk_error
from cached.transport.body import Body
from cached.transport.checksums import Hasher
from cached.transport.client import HttpClient
from cached.transport.connection.bandwidth import BandwidthLimit
from cached.transport.connection.cancel import Cancellation, Cancelled
from cached.transport.target import Target

_PEER = "peer"  # the metric label of bytes that come from other nodes
_PROXY = "dragonfly"  # of those that the origin proxy sends
_ENDS_DOWNLOAD = frozenset({"source_changed", "no_space", "not_writable", "disk"})


class DownloadMetrics(FailureMetrics, Protocol):
    """The metrics of downloads."""

    def received(self, kind: str, size: int) -> None: ...

    def fetched(self, kind: str, seconds: float) -> None: ...

    def verify_failed(self, where: str) -> None: ...


class Space(Protocol):
    """The disk space that a download may fill."""

    def grow(self, size: int) -> None:
        """Reserve `size` bytes in all, before they are written. Raises `Transient` (`no_space`) or `Permanent`.

        0: a partial blob was opened, whose file may have blocks already; they are counted as its own from now on. Any
        thread of the download calls it."""


class DownloadWorkers(AttemptResources, OriginWorkers, Protocol):
    """The workers, as a download uses them."""

    peer_client: HttpClient
    limit: BandwidthLimit
    metrics: DownloadMetrics

    def outranked(self, download: Download) -> bool:
        """Return whether a more urgent download could use this worker now."""

    def changed(self, download: Download) -> None:
        """Requeue a download that has new work, or ended."""


AnyAttempt = Attempt | SmallAttempt


class Download:
    """The download of one blob. `result` is its outcome; `priority` may change at any time (lower is sooner)."""

    def __init__(
        self,
        spec: BlobSpec,
        locate: Callable[[Cancellation], Target],
        space: Space,
        workers: DownloadWorkers,
        priority: int,
        make_supply: SupplyMaker | None = None,
    ) -> None:
        """`make_supply` makes where the segments of a blob of known sha256 come from; None: its origin."""
        self.spec = spec
        self._supply: Supply = OriginSupply() if make_supply is None else make_supply(lambda: workers.changed(self))
        self._space = space
        self.priority = priority
        self.result: Future[Verified] = Future()
        self.progress = DownloadProgress()
        self.not_before = 0.0  # monotonic seconds: no place can be asked before
        self.last_error: HoldfastError | None = None
        self.placed: Verified | None = None  # as in `Attempt`, once there is a result
        self.left_bytes: int | None = None  # as in `Attempt`; None if no attempt opened the partial blob
        self._workers = workers
        self._origin = Origin(spec, locate, workers)
        self._lock = threading.Lock()
        self._attempt: AnyAttempt | None = None
        self._stream = not spec.is_bound
        self._failures = BlobFailures()
        self._started: float | None = None
        self._cancelled = False
        self._settled = False

    @property
    def opened(self) -> bool:
        """Whether an attempt is open and not yet committing."""
        attempt = self._attempt
        return attempt is not None and not attempt.committing

    @property
    def started_at(self) -> float | None:
        """When the first attempt was opened, in monotonic seconds; None before."""
        return self._started

    @property
    def bytes_from_peers(self) -> int:
        """Of the written bytes, those that other nodes sent."""
        return self.progress.written if self.spec.kind == _PEER else self.progress.from_peers

    def has_work(self) -> bool:
        """Return whether another worker could help now."""
        attempt = self._attempt
        if self.result.done() or attempt is None:
            return not self.result.done()
        return attempt.has_work_of(self._supply) if self._asks_supply(attempt) else attempt.has_work()

    @property
    def is_starved(self) -> bool:
        """Whether there are bytes to receive, and no place to ask for them now: other nodes are waited for."""
        attempt = self._attempt
        if attempt is None or not self._asks_supply(attempt) or not attempt.has_work():
            return False
        return not attempt.has_work_of(self._supply)

    @property
    def is_waited_for(self) -> bool:
        """Whether other nodes wait for a part of it that this one is to fetch first."""
        attempt = self._attempt
        return attempt is not None and self._supply.is_waited_for() and attempt.has_work()

    @property
    def is_small(self) -> bool:
        """Whether the blob takes hardly any processor time, but a request."""
        return is_small(self.spec)

    def hash_is_behind(self) -> bool:
        """Return whether bytes wait for the hash: then another worker does not help."""
        attempt = self._attempt
        return attempt is not None and attempt.hash_is_behind()

    def receiving(self) -> bool:
        """Return whether bytes are still to be received."""
        attempt = self._attempt
        return not self.result.done() and (attempt is None or attempt.receiving())

    def receive_once(self) -> None:
        """Receive one segment, if there is one. Errors change the download's state; none is raised."""
        try:
            attempt = self._open_attempt()
            if attempt is None:
                return
            assignment = self._take_assignment(attempt)
            if assignment is None:
                return
        except OSError as error:
            self._finish_with(disk_error(error, f"opening a partial blob for {self.spec.name}"))
            return
        except HoldfastError as error:
            self._finish_with(error)
            return
        segment = assignment.segment
        rest: Segment | None = segment
        try:
            if assignment.piece is not None:
                rest = self._receive_piece(attempt, assignment, assignment.piece)
            else:
                rest = self._receive_from_origin(attempt, assignment)
        except _Interrupted as interrupted:
            rest = interrupted.rest
            if interrupted.error is not None:  # before `leave`, which commits an attempt that has all its bytes
                self._retry_or_fail(attempt, interrupted.error)
        finally:
            self.progress.end_watch()
            attempt.end_segment(rest)

    def crash(self, cause: BaseException) -> None:
        """Fail with an unexpected error of a worker."""
        error = limits.find_limit_error(cause, self.spec.name) or Permanent(
            "internal", f"{self.spec.name}: {cause!r}", "report this with the daemon's log"
        )
        error.__cause__ = cause
        self._fail(error)

    def cancel(self) -> None:
        """Stop with `Cancelled`, keeping durable bytes."""
        self._cancelled = True  # before `_fail` takes the lock: no attempt is opened after that
        self._fail(Cancelled())

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            attempt = self._attempt
        if attempt is not None:
            attempt.fail(error)
        else:
            self._settle(error)

    # --- receiving -------------------------------------------------------------------------------------------------

    def _open_attempt(self) -> AnyAttempt | None:
        with self._lock:
            if self._cancelled or self.result.done():
                return None
            if self._attempt is not None:
                return self._attempt
            self._started = self._started or time.monotonic()
            attempt: AnyAttempt
            if is_small(self.spec):
                attempt = SmallAttempt(self.spec, self._workers, stream=self._stream)
            else:
                keeps_chain = self._supply.keeps_chain
                attempt = Attempt(self.spec, self._workers, stream=self._stream, keeps_chain=keeps_chain)
                self._space.grow(0)  # the file has its blocks, and the first byte may be long in coming
            self._attempt = attempt
            self.progress.begin(attempt.resumed_bytes)
        # Not within the lock: the callback of an attempt that has ended runs at once.
        attempt.outcome.add_done_callback(self._attempt_ended)
        self._workers.changed(self)  # it has segments for other workers now
        return attempt

    def _asks_supply(self, attempt: AnyAttempt) -> bool:
        """Return whether the supply chooses the attempt's segments: only content that is known can come from peers."""
        return self.spec.sha256 is not None and not attempt.stream

    def _take_assignment(self, attempt: AnyAttempt) -> Assignment | None:
        if self._asks_supply(attempt):
            return attempt.take_assignment(self._supply)
        segment = attempt.take_segment()
        return None if segment is None else Assignment(segment, None)

    # --- receiving from peers --------------------------------------------------------------------------------------

    def _receive_piece(self, attempt: AnyAttempt, assignment: Assignment, piece: PeerPiece) -> Segment | None:
        """Receive a piece from a peer; return it as the rest if it did not come, or did not check: it is asked for
        again, here or elsewhere. An error of the peer is none of the source's; one of this disk ends the attempt."""
        began = time.monotonic()
        try:
            body = self._receive_checked(attempt, assignment.segment, piece)
        except _DiskFailed as failure:
            self._supply.failed(assignment, None)
            raise _Interrupted(assignment.segment, failure.error) from failure
        except Cancelled as error:
            self._supply.failed(assignment, None)
            raise _Interrupted(assignment.segment, None) from error
        except HoldfastError as error:
            if error.code == "digest_mismatch":
                self._workers.metrics.verify_failed("peer")
            self._supply.failed(assignment, error)
            return assignment.segment
        if body is None:  # preempted
            self._supply.failed(assignment, None)
            return assignment.segment
        attempt.accept_piece(assignment.segment, piece.step if piece.extent is None else None)
        self._count_written(assignment.segment.size, streaming=False, from_peer=True)
        seconds = time.monotonic() - began
        self._supply.received(assignment, Receipt(piece.sha256, seconds, body.load, body.pieces))
        attempt.record_soon(SEGMENT_BYTES)
        return None

    def _receive_checked(self, attempt: AnyAttempt, segment: Segment, piece: PeerPiece) -> Body | None:
        """Receive and write a piece and compare its sha256; return the response that was read, None if a more urgent
        download preempts it. Raises `HoldfastError` for the peer, `_DiskFailed` for this node's disk."""
        assert segment.end is not None
        extent = segment if piece.extent is None else piece.extent
        assert extent.end is not None
        hasher, offset = piece.make_hasher(), extent.start
        with self._workers.peer_client.get(piece.target, extent.start, extent.size, attempt.cancellation) as body:
            if (body.start, body.length) != (extent.start, extent.size):
                raise Transient("bad_response", f"{self.spec.name}: not the range that was asked for", "")
            self.progress.watch(body, segment.size)
            while offset < extent.end:
                stop = min(each for each in (segment.start, segment.end, extent.end) if each > offset)
                with self._workers.buffers.lent() as buffer:
                    view = buffer[: min(len(buffer), stop - offset)]
                    before = body.received
                    try:
                        self._fill(attempt, body, view)
                    finally:
                        length = body.received - before
                        self._workers.metrics.received(_PEER, length)
                    if length < len(view):
                        raise Transient("bad_response", f"{self.spec.name}: a peer's piece ended early", "")
                    hasher.update(view)
                    if segment.start <= offset < segment.end:
                        try:
                            self._space.grow(segment.end)
                            attempt.write_provisional(buffer, length, offset)
                        except HoldfastError as error:
                            raise _DiskFailed(error) from error
                offset += length
                if offset < extent.end and self._workers.outranked(self):
                    return None
        piece.check(hasher, f"{self.spec.name}: bytes {extent.start} to {extent.end} of a peer")
        return body

    # --- receiving from the origin ---------------------------------------------------------------------------------

    def _receive_from_origin(self, attempt: AnyAttempt, assignment: Assignment) -> Segment | None:
        """Receive a segment from the origin; of one that is told, tell the supply its sha256, or that it failed."""
        if not assignment.is_told:
            return self._receive_segment(attempt, assignment.segment, None)
        digest, began = hashlib.sha256() if assignment.needs_sha256 else None, time.monotonic()
        try:
            rest = self._receive_segment(attempt, assignment.segment, digest)
        except _Interrupted as interrupted:
            self._supply.failed(assignment, interrupted.error)
            raise
        if rest is None and not attempt.stream:
            sha256 = None if digest is None else digest.hexdigest()
            self._supply.received(assignment, Receipt(sha256, time.monotonic() - began, ""))
        else:
            self._supply.failed(assignment, None)
        return rest

    def _receive_segment(self, attempt: AnyAttempt, segment: Segment, digest: Hasher | None) -> Segment | None:
        """Receive a segment, also into `digest`; return its rest if a more urgent download preempts it."""
        at = _Position(segment.start, attempt.stream, digest)
        try:
            with self._origin.request(segment, attempt.cancellation, streaming=at.streaming) as body:
                if not at.streaming and (body.start, body.length) != (segment.start, segment.length):
                    if body.start != 0:
                        raise Transient("bad_response", f"{self.spec.name}: not the range that was asked for", "")
                    attempt.become_stream(segment)
                    at.streaming = True
                end = self._origin.find_end(segment, body, streaming=at.streaming)
                self.progress.watch(body, self._workers.buffers.size)
                while (end is None or at.offset < end) and self._receive_buffer(attempt, body, at, end):
                    if not at.streaming and at.offset < (end or 0) and self._workers.outranked(self):
                        return Segment(at.offset, end)
                self._origin.check_end(body, at.offset, end)
            self._origin.check_after(at.offset, attempt.cancellation)
            if attempt.size is None:
                attempt.end_of_stream(at.offset)
        except NoRanges as stop:
            attempt.fail(stop)
            raise _Interrupted(None, None) from stop
        except (Cancelled, HoldfastError) as error:
            rest = None if at.streaming else Segment(at.offset, segment.end)
            raise _Interrupted(rest, error if isinstance(error, HoldfastError) else None) from error
        return None

    def _receive_buffer(self, attempt: AnyAttempt, body: AnyBody, at: _Position, end: int | None) -> bool:
        """Receive one buffer and pass it on; return False at the end of the body. Bytes before an error are kept."""
        buffer = self._workers.buffers.take()
        wanted = len(buffer) if end is None else min(len(buffer), end - at.offset)
        before, length, received_s = body.received, 0, 0.0
        try:
            if end is not None:
                self._space.grow(at.offset + wanted)
            received_s = self._fill(attempt, body, buffer[:wanted])
        finally:
            length = body.received - before
            is_proxied = isinstance(body, Body) and body.is_proxied
            self._workers.metrics.received(_PROXY if is_proxied else self.spec.kind, length)
            attempt.has_proxied_bytes = attempt.has_proxied_bytes or (is_proxied and length > 0)
            if length < wanted and end is not None:
                length -= length % ALIGNMENT  # the next segment must begin where O_DIRECT can write
            try:
                if end is None:  # its size was unknown until now
                    self._space.grow(at.offset + length)
            except HoldfastError:
                self._workers.buffers.give(buffer)
                raise
            if length:
                if at.digest is not None:
                    at.digest.update(buffer[:length])
                attempt.accept(buffer, length, at.offset, received_s)
                at.offset += length
                self._count_written(length, streaming=at.streaming, from_peer=False)
                attempt.record_soon(len(buffer))
            else:
                self._workers.buffers.give(buffer)
        return length == wanted

    def _fill(self, attempt: AnyAttempt, body: AnyBody, view: memoryview) -> float:
        """Fill `view`, within the bandwidth limit, or less at the end of the body; return the seconds it took."""
        limit, filled, began = self._workers.limit, 0, time.monotonic()
        while filled < len(view):
            chunk = limit.chunk(len(view) - filled)
            limit.take(chunk, attempt.cancellation)
            count = body.readinto(view[filled : filled + chunk])
            filled += count
            if count < chunk:
                break
        attempt.cancellation.check()
        return time.monotonic() - began

    # --- outcomes --------------------------------------------------------------------------------------------------

    def _count_written(self, size: int, *, streaming: bool, from_peer: bool) -> None:
        self.progress.add(size, from_peer=from_peer)
        if not streaming:  # a broken stream starts over: that is no progress
            with self._lock:
                self._failures.record_progress()

    def _retry_or_fail(self, attempt: AnyAttempt, error: HoldfastError) -> None:
        self._workers.metrics.fetch_failed(self.spec.kind, error.code)
        with self._lock:
            self.last_error = error
            failures, jitter = self._failures, random.uniform(0.5, 1.0)  # noqa: S311 - jitter
            if failures.record(error, time.monotonic(), jitter):
                if failures.in_a_row > 1:
                    self._origin.drop_address()  # another address may lead to a healthy server
                if not self._supply.pause_origin(failures.paused_until):
                    self.not_before = failures.paused_until
            given_up = failures.is_hopeless
        if given_up:
            error = hopeless(error)
        if error.permanent or error.code in _ENDS_DOWNLOAD:
            attempt.fail(error)
        elif attempt.stream:
            attempt.fail(NoRanges())
        self._workers.changed(self)

    def _attempt_ended(self, outcome: Future[Verified]) -> None:
        attempt = self._attempt
        assert attempt is not None
        self.placed = attempt.placed
        self.left_bytes = attempt.left_bytes
        from_peers, from_proxy = attempt.has_peer_bytes, attempt.has_proxied_bytes
        error = outcome.exception()
        if error is None:
            if self._started is not None:
                self._workers.metrics.fetched(self.spec.kind, time.monotonic() - self._started)
            self.last_error = None
            if attempt.chain is not None:
                self._supply.note_chain(attempt.chain)
            self._settle(outcome.result())
            self._attempt = None  # breaks a reference cycle: thousands would wait for the garbage collector
            return
        self._supply.lose()  # before another attempt may write in their place
        with self._lock:
            self._attempt = None
            self.progress.begin(0)
            again = False
            if isinstance(error, NoRanges):
                self._stream = again = True
            elif isinstance(error, HoldfastError) and error.code == "digest_mismatch":
                if not (from_peers or from_proxy):  # else it says nothing of the source
                    self._failures.record_wrong_digest()
                self._origin.drop_address()
                again = self._failures.may_start_over
        if from_proxy and isinstance(error, DigestMismatch) and self.spec.sha256 is not None:
            self._workers.metrics.verify_failed(_PROXY)
            self._workers.client.distrust(self.spec.sha256, self.spec.name)
        elif from_peers and isinstance(error, DigestMismatch):
            self._workers.metrics.verify_failed("peer")
            self._supply.distrust()
        elif isinstance(error, HoldfastError) and error.code == "digest_mismatch":
            self._workers.metrics.verify_failed("fetch")
            self._workers.metrics.fetch_failed(self.spec.kind, error.code)
            self.last_error = error
        if self._cancelled:
            self._settle(Cancelled())
        elif again:
            self._workers.changed(self)
        else:
            self._settle(error)

    def _finish_with(self, error: HoldfastError) -> None:
        """Fail without an attempt, after measuring the partial blob on this thread."""
        self.left_bytes = allocated_bytes(self._workers.layout.ingest / self.spec.key.id)
        self._workers.metrics.fetch_failed(self.spec.kind, error.code)
        self._settle(error)

    def _settle(self, outcome: Verified | BaseException) -> None:
        with self._lock:
            if self._settled:
                return
            self._settled = True
        if isinstance(outcome, Verified):
            self.result.set_result(outcome)
        else:
            self.result.set_exception(outcome)
        self._workers.changed(self)


@dataclass(slots=True)
class _Position:
    """A connection's offset, whether it receives the whole object in one stream, and the hash of its bytes, if any."""

    offset: int
    streaming: bool
    digest: Hasher | None = None


class _DiskFailed(Exception):
    """An error of this node's disk or space, while a peer's bytes were written."""

    def __init__(self, error: HoldfastError) -> None:
        super().__init__()
        self.error = error


class _Interrupted(Exception):
    """An incomplete segment: its rest, and the error, if any."""

    def __init__(self, rest: Segment | None, error: HoldfastError | None) -> None:
        super().__init__()
        self.rest = rest
        self.error = error
