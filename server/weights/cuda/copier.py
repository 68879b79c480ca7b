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
from dataclasses import dataclass
from typing import TypeAlias

import torch

from cached.contract.errors import Transient
from cached.contract.program import limits
from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.runtime import CudaError
from server.weights.cuda.staging import Staged, Staging
from server.weights.plan import Chunk, DeviceRange, LoadPlan

FilledRange: TypeAlias = tuple[DeviceRange, torch.Tensor]

_INLINE_CHUNKS = 2  # up to so many run in the caller's own thread: starting threads would cost more


@dataclass(slots=True)
class LoadTotals:
    """Seconds and bytes of a load so far. The seconds of reading, copying and waiting are means over the threads."""

    allocate_s: float = 0.0
    read_s: float = 0.0
    copy_s: float = 0.0
    wait_s: float = 0.0
    cold: int = 0
    direct: int = 0

    def add(self, other: LoadTotals, threads: int = 1) -> None:
        """Add the mean over `threads` of the threads' seconds in `other`, and all its bytes."""
        self.read_s += other.read_s / threads
        self.copy_s += other.copy_s / threads
        self.wait_s += other.wait_s / threads
        self.cold += other.cold
        self.direct += other.direct


@dataclass(slots=True)
class _Filling:
    """A range in progress: `left` chunks are not queued on the device yet."""

    wanted: DeviceRange
    buffer: torch.Tensor
    left: int


def copy_ranges(
    accelerator: Accelerator,
    plan: LoadPlan,
    staging: Callable[[], Staging],
    totals: LoadTotals,
    *,
    cancel: threading.Event | None,
    ahead: int,
) -> Iterator[FilledRange]:
    """Yield each range with its bytes, in order, while up to `ahead` later ranges are in progress; raises
    `HoldfastError`. Each thread copies from a `staging` of its own. Close the iterator to stop early."""
    chunks = plan.count_chunks(accelerator.settings.threads + _INLINE_CHUNKS)
    flow = _Flow(accelerator, staging, totals, cancel, chunks)
    try:
        for number, wanted in enumerate(plan.ranges):
            flow.begin(wanted)
            if number >= ahead:
                yield flow.finish()
        for _ in plan.ranges[:ahead]:
            yield flow.finish()
    except BaseException:
        flow.drain()
        raise
    error = flow.drain()
    if error is not None:
        raise error


class _Flow:
    """Distributes chunks to threads, and collects ranges."""

    def __init__(
        self,
        accelerator: Accelerator,
        staging: Callable[[], Staging],
        totals: LoadTotals,
        cancel: threading.Event | None,
        chunks: int,
    ) -> None:
        self._accelerator = accelerator
        self._runtime = accelerator.runtime
        self._staging = staging
        self._totals = totals
        self._thread_totals = LoadTotals()  # a sum, until `drain` adds the mean to the load's
        self._cancel = cancel
        self._consumer = accelerator.memory.stream()
        self._streams = accelerator.get_streams()
        self._jobs: queue.SimpleQueue[tuple[Chunk, _Filling] | None] = queue.SimpleQueue()
        self._fillings: deque[_Filling] = deque()
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._stopped = False
        self._threads: list[threading.Thread] = []
        self._wanted = 0 if chunks <= _INLINE_CHUNKS else min(accelerator.settings.threads, chunks)

    def begin(self, wanted: DeviceRange) -> None:
        """Allocate a range and start to fill it."""
        self._check_cancelled()
        began = time.perf_counter()
        buffer = self._accelerator.memory.allocate(wanted.nbytes)
        self._totals.allocate_s += time.perf_counter() - began
        filling = _Filling(wanted, buffer, len(wanted.chunks))
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

    def finish(self) -> FilledRange:
        """Return the oldest range, once the consumer's stream waits for the last of its bytes."""
        filling = self._fillings[0]
        with self._changed:
            self._changed.wait_for(lambda: filling.left == 0 or self._error is not None)
            if self._error is not None:
                raise self._error
        for stream in self._streams:
            self._accelerator.follow(self._consumer, stream)
        self._fillings.popleft()
        return filling.wanted, filling.buffer

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
        self._totals.add(self._thread_totals, max(1, len(self._threads)))
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
        totals = LoadTotals()
        staging = self._staging()
        try:
            while (job := self._jobs.get()) is not None and not self._stopped:
                chunk, filling = job
                self._check_cancelled()
                with staging.stage(chunk) as staged:
                    self._submit(chunk, staged, filling.buffer.data_ptr(), stream, totals)
                with self._changed:
                    filling.left -= 1
                    if filling.left == 0:
                        self._changed.notify_all()
                # A waiting thread must not keep a range that the consumer has dropped.
                del job, chunk, filling
        finally:
            staging.close()
            with self._changed:
                self._thread_totals.add(totals)

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise Transient("load_cancelled", "the load was cancelled", "")

    def _submit(self, chunk: Chunk, staged: Staged, target: int, stream: int, totals: LoadTotals) -> None:
        began = time.perf_counter()
        runtime = self._runtime
        try:
            for copy in chunk.copies:
                to, source = target + copy.target, staged.base + copy.slot
                if copy.rows == 1:
                    runtime.copy(to, source, copy.width, stream)
                else:
                    runtime.copy_rows(to, source, copy.width, copy.rows, copy.pitch, stream)
            runtime.record(staged.event, stream)
        except BaseException:
            # Without its event the slot would look free while earlier copies still read it.
            with suppress(CudaError):
                runtime.drain(stream)
            raise
        totals.copy_s += time.perf_counter() - began
        totals.read_s += staged.read_s
        totals.wait_s += staged.wait_s
        totals.cold += staged.taken.cold
        totals.direct += staged.taken.direct
