"""Pinned host memory, allocated once and lent slot by slot, through which all bytes pass on their way to a device.

Law: one anonymous mapping in huge pages, touched by several threads near the device and registered once, as pinning
per load costs more than the load (0.1 s a GB). A slot is lent again only after the device has finished with it. Slots
are lent in the order in which they were returned, which is the order in which the device finishes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from cached.contract.errors import Permanent
from cached.contract.program import limits
from server.weights.cuda.runtime import Runtime

_HUGE_PAGE = 2 * 1024 * 1024
_FAULT_THREADS = 8


@dataclass(slots=True)
class Slot:
    """`view` lies at `address`. `event` was recorded after the last copy out of it."""

    address: int
    view: memoryview
    event: int


class Ring:
    """`slots` slots of `slot_bytes`, a multiple of the page size."""

    def __init__(self, runtime: Runtime, slots: int, slot_bytes: int, processors: frozenset[int]) -> None:
        self._runtime = runtime
        self._slots = slots
        nbytes = slots * slot_bytes
        self._region = _map(nbytes + _HUGE_PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._region))
        first = -start % _HUGE_PAGE
        self._address = start + first
        whole = memoryview(self._region)[first : first + nbytes]
        _touch(self._address, nbytes, processors)
        self._free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        with ExitStack() as undo:
            runtime.register(self._address, nbytes, read_only=False)
            undo.callback(runtime.unregister, self._address)
            for at in range(0, nbytes, slot_bytes):
                event = runtime.new_event()
                undo.callback(runtime.destroy_event, event)
                self._free.put(Slot(self._address + at, whole[at : at + slot_bytes], event))
            undo.pop_all()

    @property
    def lent_slots(self) -> int:
        return self._slots - self._free.qsize()

    @contextmanager
    def lend(self) -> Iterator[tuple[Slot, float]]:
        """Lend a slot that no copy reads any more, and the seconds waited for it. The caller records its event after
        the copies that it queues, within the block."""
        began = time.perf_counter()
        slot = self._free.get()
        try:
            self._runtime.synchronize(slot.event)
            yield slot, time.perf_counter() - began
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Unpin the memory, once every slot is returned and the device has finished."""
        for _ in range(self._slots):
            slot = self._free.get()
            self._runtime.synchronize(slot.event)
            self._runtime.destroy_event(slot.event)
        self._runtime.unregister(self._address)


def _map(nbytes: int) -> mmap.mmap:
    try:
        region = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise Permanent(
            "no_memory",
            f"{nbytes} bytes of host memory for the loader's ring: {error.strerror}",
            "raise the pod's memory limit, or lower HOLDFAST_LOADER_SLOTS",
        ) from error
    with suppress(OSError):  # without huge pages small ones are pinned
        region.madvise(mmap.MADV_HUGEPAGE)
    return region


def _touch(address: int, nbytes: int, processors: frozenset[int]) -> None:
    """Touch the pages from threads near the device: the kernel allocates a page on the node of its first access."""

    def touch(number: int) -> None:
        with suppress(OSError):  # a container may forbid it
            os.sched_setaffinity(0, processors)
        for at in range(number * _HUGE_PAGE, nbytes, count * _HUGE_PAGE):
            ctypes.memset(address + at, 0, min(_HUGE_PAGE, nbytes - at))

    count = min(_FAULT_THREADS, max(1, len(processors)))
    threads = [threading.Thread(target=touch, args=(number,), name="holdfast-touch") for number in range(count)]
    for thread in limits.start_threads(threads):  # untouched pages are allocated on first use
        thread.join()
