"""Copy the bytes of a plan onto a device: threads read chunks, the device copies them, ranges are returned in order.

Law: no memory is freed while a copy may use it, also after an error, a cancellation, or a consumer that stops. A copy
stream first waits for the stream that the target was allocated on, where the block's last user may still run. The
consumer's stream waits for the copies before it gets a range, so that a later free comes after them in that stream's
order, and `record_stream` is not needed.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from cached.contract.errors import Transient
from cached.contract.program import limits
from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.runtime import CudaError, RowCopy
from server.weights.cuda.staging import Staged, Staging
from server.weights.plan import Chunk, LoadPlan, Range

_INLINE_CHUNKS = 2  # up to so many run in the caller's own thread: starting threads would cost more


class LoadCancelled(Transient):
    """The load was cancelled by its caller."""

    def __init__(self) -> None:
        super().__init__("load_cancelled", "the load was cancelled", "")


@dataclass(slots=True)
class Tally:
    """The threads' seconds and bytes, summed over all of them."""

    read_s: float = 0.0
    copy_s: float = 0.0
    wait_s: float = 0.0
    cold: int = 0
    direct: int = 0

    def add(self, other: Tally, threads: int = 1) -> None:
        """Add the mean over `threads` of the seconds of `other`, and all its bytes."""
        self.read_s += other.read_s / threads
        self.copy_s += other.copy_s / threads
        self.wait_s += other.wait_s / threads
        self.cold += other.cold
        self.direct += other.direct


@dataclass(slots=True)
class _Filling:
    """A range in progress: `left` chunks are not queued on the device yet."""

    range: Range
    buffer: torch.Tensor
    address: int
    left: int


@dataclass(frozen=True, slots=True)
class Carriage:
    """How a plan is copied. `ahead`: ranges in progress beyond the requested one, None for all of them."""

    staging: Callable[[], Staging]
    cancel: threading.Event | None
    ahead: int | None


@dataclass(slots=True)
class LoadTotals:
    """Totals of a load so far: wall-clock seconds, those of the threads as a mean."""

    tally: Tally = field(default_factory=Tally)
    allocate_s: float = 0.0


def carry(
    accelerator: Accelerator, plan: LoadPlan, carriage: Carriage, outcome: LoadTotals
) -> Iterator[tuple[Range, torch.Tensor]]:
    """Yield each range with its bytes, in order; raises `HoldfastError`. Close the iterator to stop early."""
    flow = _Flow(accelerator, carriage, plan.chunk_count(accelerator.settings.threads + _INLINE_CHUNKS))
    pending = 0
    try:
        for wanted in plan.ranges:
            began = time.perf_counter()
            buffer = accelerator.memory.allocate(wanted.nbytes)
            outcome.allocate_s += time.perf_counter() - began
            flow.begin(wanted, buffer)
            del buffer  # owned by the flow until it is handed over: no reference here keeps a range that was dropped
            pending += 1
            while carriage.ahead is not None and pending > carriage.ahead:
                pending -= 1
                yield flow.finish()
        while pending:
            pending -= 1
            yield flow.finish()
    except BaseException:
        flow.drain()
        raise
    else:
        error = flow.drain()
        if error is not None:
            raise error
    finally:
        outcome.tally.add(flow.tally, flow.threads)


class _Flow:
    """Distributes chunks to threads, and collects ranges."""

    def __init__(self, accelerator: Accelerator, carriage: Carriage, chunks: int) -> None:
        self.tally = Tally()
        self._accelerator = accelerator
        self._runtime = accelerator.runtime
        self._carriage = carriage
        self._consumer = accelerator.memory.stream()
        self._streams = accelerator.streams()
        self._jobs: queue.SimpleQueue[tuple[Chunk, _Filling] | None] = queue.SimpleQueue()
        self._fillings: deque[_Filling] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._wanted = 0 if chunks <= _INLINE_CHUNKS else min(accelerator.settings.threads, chunks)

    @property
    def threads(self) -> int:
        """The number of threads that copied chunks."""
        return max(1, len(self._threads))

    def begin(self, wanted: Range, buffer: torch.Tensor) -> None:
        """Start to fill `buffer`."""
        if self._carriage.cancel is not None and self._carriage.cancel.is_set():
            raise LoadCancelled
        filling = _Filling(wanted, buffer, buffer.data_ptr(), len(wanted.chunks))
        self._fillings.append(filling)
        for stream in self._streams:
            self._accelerator.follow(stream, self._consumer)
        for chunk in wanted.chunks:
            self._jobs.put((chunk, filling))
        if self._wanted == 0:
            self._jobs.put(None)
            with self._accelerator.memory.current():
                self._work(self._streams[0])
        while len(self._threads) < self._wanted:
            stream = self._streams[len(self._threads) % len(self._streams)]
            thread = threading.Thread(target=self._thread, args=(stream,), name="holdfast-load", daemon=True)
            if not self._threads:
                limits.start_thread(thread, "loading")
            elif not limits.start_threads([thread]):
                self._wanted = len(self._threads)  # no more threads available: these copy everything
                break
            self._threads.append(thread)

    def finish(self) -> tuple[Range, torch.Tensor]:
        """Return the oldest range, once the consumer's stream waits for the last of its bytes."""
        filling = self._fillings[0]
        with self._changed:
            self._changed.wait_for(lambda: filling.left == 0 or self._error is not None)
            if self._error is not None:
                raise self._error
        for stream in self._streams:
            self._accelerator.follow(self._consumer, stream)
        self._fillings.popleft()
        return filling.range, filling.buffer

    def drain(self) -> CudaError | None:
        """Stop the threads and wait for every copy, after which buffers may be freed. Return an error of that."""
        self._stopped = True
        for _ in self._threads:
            self._jobs.put(None)
        interrupt: KeyboardInterrupt | None = None
        for thread in self._threads:
            while thread.is_alive():
                try:
                    thread.join()
                except KeyboardInterrupt as error:
                    interrupt = error
        failed: CudaError | None = None
        for stream in self._streams:
            try:
                self._runtime.drain(stream)
            except CudaError as error:  # the context is lost, and with it every copy in progress
                failed = error
        # An exception holds the threads' frames, and those hold the buffers: kept, it would keep them until the next
        # garbage collection.
        self._fillings.clear()
        self._error = None
        if interrupt is not None:
            raise interrupt
        return failed

    def _thread(self, stream: int) -> None:
        with suppress(OSError):  # a container may forbid it
            os.sched_setaffinity(0, self._accelerator.processors)
        try:
            self._runtime.set_device()
            self._work(stream)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the load
            with self._changed:
                self._error = self._error or error
                self._stopped = True
                self._changed.notify_all()

    def _work(self, stream: int) -> None:
        tally = Tally()
        staging = self._carriage.staging()
        try:
            while (job := self._jobs.get()) is not None and not self._stopped:
                chunk, filling = job
                if self._carriage.cancel is not None and self._carriage.cancel.is_set():
                    raise LoadCancelled
                with staging.staged(chunk) as staged:
                    self._submit(chunk, staged, filling.address, stream, tally)
                with self._changed:
                    filling.left -= 1
                    if filling.left == 0:
                        self._changed.notify_all()
                # A waiting thread must not keep a range that the consumer has dropped.
                del job, chunk, filling
        finally:
            staging.close()
            with self._changed:
                self.tally.add(tally)

    def _submit(self, chunk: Chunk, staged: Staged, target: int, stream: int, tally: Tally) -> None:
        began = time.perf_counter()
        runtime = self._runtime
        try:
            for copy in chunk.copies:
                if copy.rows == 1:
                    runtime.copy(target + copy.target, staged.base + copy.slot, copy.width, stream)
                else:
                    source = staged.base + copy.slot
                    runtime.copy_rows(RowCopy(target + copy.target, source, copy.width, copy.rows, copy.pitch), stream)
            runtime.record(staged.event, stream)
        except BaseException:
            # Without its event the slot would look free while earlier copies still read it.
            with suppress(CudaError):
                runtime.drain(stream)
            raise
        tally.copy_s += time.perf_counter() - began
        tally.read_s += staged.read_s
        tally.wait_s += staged.wait_s
        tally.cold += staged.taken.cold
        tally.direct += staged.taken.direct
