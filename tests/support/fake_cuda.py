"""CUDA's runtime as its documentation has it, on host memory, made to catch code that relies on more than that.

Law: a copy reads its source at the last moment that the documentation allows, when a client waits for it, so that a
slot that is used again too early delivers wrong bytes; whatever is freed, unregistered or destroyed while a copy needs
it is written down in `violations`, and so is what a thread asks of its current device while that is another one. The
consumer's stream is the host itself: having it wait is waiting.
"""

from __future__ import annotations

import bisect
import ctypes
import itertools
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.runtime import HOST_REGISTER_READ_ONLY_SUPPORTED, CudaError
from server.weights.settings import LoaderSettings

ALIGNMENT = 512  # of what a real allocator gives
HOST = 1 << 20  # the handle of the consumer's stream
ILLEGAL = 700  # cudaErrorIllegalAddress
INVALID = 1
ALREADY_REGISTERED = 712
NOT_REGISTERED = 713


@dataclass(frozen=True, slots=True)
class _Copy:
    target: int
    source: int
    nbytes: int


class FakeRuntime:
    """One device. `fail` maps a call's name to which call of that name fails, counted from 1, and with what error."""

    def __init__(self, *, read_only_registration: bool = False, free: int = 1 << 34) -> None:
        self.violations: list[str] = []
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, tuple[int, int]] = {}
        self.on_copy: Callable[[int], None] = lambda number: None
        self.registered_bytes = 0
        self.peak = 0  # of the device's bytes in use
        self.free = free
        self._lock = threading.RLock()
        self._handles = itertools.count(1)
        self._queues: dict[int, deque[_Copy | tuple[int, int]]] = {}
        self._recorded: dict[int, int] = {}  # event → the number of its last record
        self._done: dict[int, int] = {}  # event → the last record that was reached
        self._owner: dict[int, int] = {}  # event → the stream of its last record
        self._records = itertools.count(1)
        self._registered: dict[int, tuple[int, bool]] = {}
        self._allocated: dict[int, int] = {}
        self._read_only = read_only_registration
        self._devices = threading.local()

    # what the loader calls

    def set_device(self) -> None:
        self._count("cudaSetDevice")
        self._devices.is_this = True

    @contextmanager
    def current(self) -> Iterator[None]:
        """The calling thread's device is this one within the block."""
        before = getattr(self._devices, "is_this", False)
        self._devices.is_this = True
        try:
            yield
        finally:
            self._devices.is_this = before

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        self._count("cudaHostRegister")
        self._check_device("cudaHostRegister")
        with self._lock:
            if read_only and not self._read_only:
                raise CudaError("cudaHostRegister", 801, "operation not supported", 0)
            if any(a < address + nbytes and address < a + n for a, (n, _) in self._registered.items()):
                raise CudaError("cudaHostRegister", ALREADY_REGISTERED, "already registered", 0)
            self._registered[address] = (nbytes, read_only)
            self.registered_bytes += nbytes

    def unregister(self, address: int) -> None:
        self._count("cudaHostUnregister")
        with self._lock:
            if address not in self._registered:
                raise CudaError("cudaHostUnregister", NOT_REGISTERED, "not registered", 0)
            nbytes, _ = self._registered.pop(address)
            self.registered_bytes -= nbytes
            for copy in self._pending():
                if copy.source < address + nbytes and address < copy.source + copy.nbytes:
                    self.violations.append("unregistered while a copy reads it")

    def new_stream(self) -> int:
        self._count("cudaStreamCreateWithFlags")
        self._check_device("cudaStreamCreateWithFlags")
        with self._lock:
            stream = next(self._handles)
            self._queues[stream] = deque()
            return stream

    def new_event(self) -> int:
        self._count("cudaEventCreateWithFlags")
        self._check_device("cudaEventCreateWithFlags")
        with self._lock:
            event = next(self._handles)
            self._recorded[event] = self._done[event] = 0
            return event

    def destroy_stream(self, stream: int) -> None:
        self._count("cudaStreamDestroy")
        del self._queues[stream]

    def destroy_event(self, event: int) -> None:
        self._count("cudaEventDestroy")
        del self._recorded[event]

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._count("cudaMemcpyAsync")
        self.on_copy(self.calls["cudaMemcpyAsync"])
        with self._lock:
            self._check_copy(target, source, nbytes)
            self._queues[stream].append(_Copy(target, source, nbytes))

    def copy_rows(self, target: int, source: int, width: int, rows: int, pitch: int, stream: int) -> None:
        self._count("cudaMemcpy2DAsync")
        with self._lock:
            if pitch < width:
                raise CudaError("cudaMemcpy2DAsync", INVALID, "invalid pitch", 0)
            for row in range(rows):
                copy = _Copy(target + row * width, source + row * pitch, width)
                self._check_copy(copy.target, copy.source, width)
                self._queues[stream].append(copy)

    def record(self, event: int, stream: int) -> None:
        self._count("cudaEventRecord")
        if stream == HOST:
            self._check_device("cudaEventRecord")
        with self._lock:
            number = next(self._records)
            self._recorded[event] = number
            self._owner[event] = stream
            if stream == HOST:
                self._done[event] = number
            else:
                self._queues[stream].append((event, number))

    def wait(self, stream: int, event: int) -> None:
        self._count("cudaStreamWaitEvent")
        # A copy stream that waits for the host has nothing to wait for: the host is here.
        if stream == HOST:
            self._check_device("cudaStreamWaitEvent")
            self._reach(event)

    def synchronize(self, event: int) -> None:
        self._count("cudaEventSynchronize")
        self._reach(event)

    def drain(self, stream: int) -> None:
        self._count("cudaStreamSynchronize")
        with self._lock:
            while self._queues[stream]:
                self._step(stream)

    def get_memory(self) -> tuple[int, int]:
        self._count("cudaMemGetInfo")
        self._check_device("cudaMemGetInfo")
        with self._lock:
            return self.free - sum(self._allocated.values()), self.free

    def get_attribute(self, number: int) -> int:
        assert number == HOST_REGISTER_READ_ONLY_SUPPORTED
        return int(self._read_only)

    def get_pci_bus_id(self) -> str:
        return "ffff:ff:1f.7"

    # what tests look at

    @property
    def pending(self) -> int:
        """Copies that are queued and not done."""
        with self._lock:
            return len(self._pending())

    @property
    def allocated(self) -> int:
        """Bytes of the device that are in use."""
        with self._lock:
            return sum(self._allocated.values())

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Device memory that notices when it is freed."""
        region = np.zeros(nbytes + ALIGNMENT, np.uint8)
        start = region.ctypes.data
        with self._lock:
            self._allocated[start] = nbytes + ALIGNMENT
            self.peak = max(self.peak, sum(self._allocated.values()))
        weakref.finalize(region, self._freed, start, nbytes + ALIGNMENT)  # before the bytes are gone
        first = -start % ALIGNMENT
        return torch.from_numpy(region)[first : first + nbytes]

    def _freed(self, address: int, nbytes: int) -> None:
        with self._lock:
            self._allocated.pop(address, None)
            if any(c.target < address + nbytes and address < c.target + c.nbytes for c in self._pending()):
                self.violations.append("freed while a copy writes it")

    def _pending(self) -> list[_Copy]:
        return [found for jobs in self._queues.values() for found in jobs if isinstance(found, _Copy)]

    def _count(self, call: str) -> None:
        with self._lock:
            self.calls[call] += 1
            number, error = self.fail.get(call, (0, 0))
            if number == self.calls[call]:
                raise CudaError(call, error, "injected", 0)

    def _check_device(self, call: str) -> None:
        """What is made, counted or done on the default stream is the calling thread's device's."""
        if not getattr(self._devices, "is_this", False):
            self.violations.append(f"{call} while the thread's device is another")

    def _check_copy(self, target: int, source: int, nbytes: int) -> None:
        starts = sorted(self._registered)
        at = bisect.bisect_right(starts, source) - 1
        if at < 0 or source + nbytes > starts[at] + self._registered[starts[at]][0]:
            self.violations.append("copied from memory that is not registered")
        if not any(a <= target and target + nbytes <= a + n for a, n in self._allocated.items()):
            raise CudaError("cudaMemcpyAsync", ILLEGAL, "an illegal memory access was encountered", 0)

    def _reach(self, event: int) -> None:
        with self._lock:
            while self._done[event] < self._recorded[event]:
                self._step(self._owner[event])

    def _step(self, stream: int) -> None:
        job = self._queues[stream].popleft()
        if isinstance(job, _Copy):
            ctypes.memmove(job.target, job.source, job.nbytes)
        else:
            event, number = job
            self._done[event] = max(self._done[event], number)


class FakeMemory:
    """The fake device's memory."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self._runtime = runtime

    def allocate(self, nbytes: int) -> torch.Tensor:
        return self._runtime.allocate(nbytes)

    def stream(self) -> int:
        return HOST

    def reusable(self) -> int:
        return 0

    def current(self) -> AbstractContextManager[object]:
        return self._runtime.current()


def fake_accelerator(runtime: FakeRuntime, settings: LoaderSettings) -> Accelerator:
    """An accelerator whose device is host memory."""
    return Accelerator(torch.device("cpu"), runtime, FakeMemory(runtime), settings)
