"""Two kinds of host memory that the device reads at full speed: a slot of the ring, or the file's own pages.

Law: memory is reused or released only after the event that follows its last copy. The ring costs a copy by the
processor, and nothing per load; registered page cache costs no copy, but pinning each time, which was slower where it
was measured (0.1 s a GB). `route` measures which is faster on a device.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import numpy as np

from server.weights.cuda.ring import Ring
from server.weights.cuda.runtime import CudaError, Runtime
from server.weights.format.checkpoint import WeightFile
from server.weights.host.reader import ReadBytes, Reader
from server.weights.plan import Chunk
from server.weights.settings import PAGE

_HELD = 3  # chunks per thread that stay registered while the device may still read them


class Staged(NamedTuple):
    """A chunk where the device can read it: offset 0 of the plan's slot is at `base`. Record `event` after the copies.
    The seconds are those of waiting for the device, and of reading."""

    base: int
    event: int
    taken: ReadBytes
    wait_s: float
    read_s: float


class Staging(Protocol):
    """The source of one thread's chunks. An error may leave `stage` only when the copies are done."""

    def stage(self, chunk: Chunk) -> AbstractContextManager[Staged]: ...

    def close(self) -> None:
        """Release everything, once the device has finished with it."""


class RingStaging:
    """Reads into slots of the ring."""

    def __init__(self, ring: Ring, readers: Sequence[Reader]) -> None:
        self._ring = ring
        self._readers = readers

    @contextmanager
    def stage(self, chunk: Chunk) -> Iterator[Staged]:
        reader = self._readers[chunk.file]
        with self._ring.lend() as (slot, wait_s):
            began = time.perf_counter()
            cold = direct = 0
            for begin, end, offset in chunk.reads:
                taken = reader.read(slot.view, begin, end, offset)
                cold += taken.cold
                direct += taken.direct
            yield Staged(slot.address, slot.event, ReadBytes(cold, direct), wait_s, time.perf_counter() - began)

    def close(self) -> None:
        """Do nothing: the ring outlives every load."""


class FilePages:
    """A file's pages in this process, mapped at `base` while this object lives. The processor never touches them."""

    def __init__(self, file: WeightFile) -> None:
        self._map = mmap.mmap(file.descriptor, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        self.base = int(np.frombuffer(self._map, np.uint8).__array_interface__["data"][0])


class RegisteredStaging:
    """Pins the file's pages chunk by chunk, for one thread; pages that cannot be pinned go through the ring."""

    def __init__(self, runtime: Runtime, pages: Sequence[FilePages], ring: RingStaging) -> None:
        self._runtime = runtime
        self._ring = ring
        self._pages = pages
        self._held: deque[tuple[int, int]] = deque()  # (address, event), the oldest first
        self._spare: list[int] = []

    @contextmanager
    def stage(self, chunk: Chunk) -> Iterator[Staged]:
        if not self._spare:
            self._spare.append(self._runtime.new_event())  # before a page is pinned: an error here leaves none pinned
        pinned = self._pin(chunk)
        if pinned is None:
            with self._ring.stage(chunk) as staged:
                yield staged
            return
        event = self._spare.pop()
        self._held.append((pinned, event))
        began = time.perf_counter()
        if len(self._held) > _HELD:
            self._release()
        wait_s = time.perf_counter() - began
        read = chunk.reads[0]
        yield Staged(self._pages[chunk.file].base + read.begin - read.slot, event, ReadBytes(0, 0), wait_s, 0.0)

    def close(self) -> None:
        while self._held:
            self._release()
        while self._spare:
            self._runtime.destroy_event(self._spare.pop())

    def _pin(self, chunk: Chunk) -> int | None:
        if len(chunk.reads) > 1:
            return None
        begin, end, _ = chunk.reads[0]
        low = begin - begin % PAGE
        address = self._pages[chunk.file].base + low
        try:
            self._runtime.register(address, -(-end // PAGE) * PAGE - low, read_only=True)
        except CudaError:  # a page that another chunk has pinned, or pages that this kernel cannot pin
            return None
        return address

    def _release(self) -> None:
        address, event = self._held[0]
        self._runtime.synchronize(event)
        self._runtime.unregister(address)
        self._held.popleft()  # after both: `close` releases a page that an error leaves pinned
        self._spare.append(event)
