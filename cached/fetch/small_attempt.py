"""One attempt at a small blob: received into memory, hashed there, and written once, in a group with others.

Law: the interface of `attempt.Attempt`, without its thread, folder and record: after a crash a small blob is fetched
again. Only a verified blob is committed.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future

from cached.contract.errors import HoldfastError
from cached.fetch.attempt import AttemptResources
from cached.fetch.blob import BlobHashes, BlobSpec, NoRanges, Segment, Verified
from cached.fetch.supply import Assignment, Supply
from cached.peers.chaining import ChainStep
from cached.store.blob.group_commit import PendingBlob
from cached.store.disk import durable
from cached.transport.connection.cancel import Cancellation

SMALL_BYTES = 1024 * 1024  # up to here a file's fixed costs on the disk exceed those of its bytes


def is_small(spec: BlobSpec) -> bool:
    """Return whether the blob's size is known and at most `SMALL_BYTES`."""
    return spec.key.size is not None and spec.key.size <= SMALL_BYTES


class SmallAttempt:
    """The state of one attempt. One worker at a time feeds it; the committing thread ends it."""

    resumed_bytes = left_bytes = 0  # as in `Attempt`: no bytes are resumed, or left
    chain: bytes | None = None  # as in `Attempt`

    def __init__(self, spec: BlobSpec, shared: AttemptResources, *, stream: bool) -> None:
        assert spec.key.size is not None
        self.spec = spec
        self.size: int = spec.key.size
        self.stream = stream
        self.cancellation = Cancellation()
        self.outcome: Future[Verified] = Future()
        self.placed: Verified | None = None  # the blob, once it has its name, also if the disk failed after that
        self.has_peer_bytes = self.has_proxied_bytes = False  # as in `Attempt`
        self._shared = shared
        self._lock = threading.Lock()
        self._data = bytearray()
        self._rest: Segment | None = Segment(0, self.size) if self.size else None
        self._receiving = False
        self.committing = False  # whether all bytes were received, and only the disk is waited for
        self._failure: BaseException | None = None
        self._ended = False
        if not self.size:
            self._complete()

    def take_segment(self) -> Segment | None:
        """Return the range to request; None while another worker receives it, and at the end."""
        with self._lock:
            if self._failure is not None or self._rest is None:
                return None
            segment, self._rest = self._rest, None
            self._receiving = True
            return segment

    def take_assignment(self, supply: Supply) -> Assignment | None:
        """Return what `supply` chooses next, with its place: the rest, or the whole blob again."""
        with self._lock:
            if self._failure is not None or self._rest is None:
                return None
            assignment = supply.choose((self._rest,))
            if assignment is not None:
                self._rest = None
                self._receiving = True
                del self._data[assignment.segment.start :]
            return assignment

    def has_work(self) -> bool:
        """Return whether `take_segment` would return a segment."""
        with self._lock:
            return self._failure is None and self._rest is not None

    def has_work_of(self, supply: Supply) -> bool:
        """Return whether `take_assignment` would return one."""
        with self._lock:
            return self._failure is None and self._rest is not None and supply.has_work((self._rest,))

    def receiving(self) -> bool:
        """Return whether bytes are still to be received, requested or not."""
        with self._lock:
            return self._failure is None and (self._rest is not None or self._receiving)

    def hash_is_behind(self) -> bool:
        """Return False: it is hashed after its last byte."""
        return False

    def become_stream(self, segment: Segment) -> None:
        """Continue as one stream from the start; raises `NoRanges` if there are bytes already."""
        if segment.start != 0 or self._data:
            raise NoRanges
        self.stream = True

    def accept(self, buffer: memoryview, length: int, offset: int, received_s: float) -> None:  # noqa: ARG002
        """Copy a received piece; returns `buffer` to the pool."""
        try:
            assert offset == len(self._data)
            self._data += buffer[:length]
        finally:
            self._shared.buffers.give(buffer)

    def write_provisional(self, buffer: memoryview, length: int, offset: int) -> None:
        """Copy bytes that are not checked: they count once their segment has ended without a rest."""
        assert offset == len(self._data)
        self._data += buffer[:length]

    def accept_piece(self, segment: Segment, step: ChainStep | None) -> None:  # noqa: ARG002 - it is the whole blob
        """Note that the bytes are another node's, whose sha256 was right."""
        self.has_peer_bytes = True

    def end_of_stream(self, size: int) -> None:
        """Do nothing: the size is known."""

    def record_soon(self, ahead: int) -> None:
        """Do nothing: a small blob has no record."""

    def end_segment(self, rest: Segment | None) -> None:
        """End a worker's segment, and requeue its unreceived rest."""
        with self._lock:
            self._receiving = False
            failure = self._failure
            if rest is not None:
                del self._data[rest.start :]  # of a node whose bytes did not check
            whole = failure is None and len(self._data) == self.size
            if failure is None and not whole and rest is not None:
                self._rest = rest
        if failure is not None:
            self._end(failure)
        elif whole:
            self._complete()

    def fail(self, error: BaseException) -> None:
        """End the attempt with `error`, unless it is being committed."""
        with self._lock:
            if self._failure is None and not self.committing:
                self._failure = error
            ends = self._failure is error and not self._receiving
        self.cancellation.cancel()
        if ends:
            self._end(error)

    def _complete(self) -> None:
        """Verify, write and submit the blob: on the worker's thread, so that several blobs are hashed in parallel."""
        with self._lock:
            if self._failure is not None:
                return
            self.committing = True
        try:
            hashes = BlobHashes(self.spec, self.size)
            hashes.update(memoryview(self._data))
            sha256 = hashes.compare()
            temporary = durable.temporary_beside(self._shared.layout.ingest / "any")
            with durable.disk_errors(f"writing {temporary}"):
                durable.write_volatile(temporary, self._data, durable.READ_ONLY_MODE)
        except HoldfastError as error:
            self._end(error)
            return
        self._data = bytearray()
        journal_id = self.spec.key.id if self.spec.sha256 is None else None
        self._shared.group_commit.submit(PendingBlob(self.spec.name, temporary, sha256, journal_id, self._committed))

    def _committed(self, pending: PendingBlob, failure: BaseException | None) -> None:
        verified = Verified(pending.sha256, self.size, pending.fresh)
        self.placed = verified if pending.placed else None
        if failure is not None:
            self._end(failure)
        else:
            self.outcome.set_result(verified)

    def _end(self, error: BaseException) -> None:
        """Set the outcome to `error`, once: `leave` and `fail` may run at the same moment."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._data = bytearray()
        self.outcome.set_exception(error)
