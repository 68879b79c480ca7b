"""A device that weights are loaded onto: its memory, its copy streams, and the ring that its loads share.

Law: one per device and process, created on first use and kept: contexts, streams and pinned memory cost more than a
load. All work is ordered by the stream that is the consumer's own when a load begins.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from functools import cache, cached_property
from typing import Protocol, TypeAlias

import torch

from cached.contract.errors import Permanent
from cached.contract.program.units import format_size
from server.weights.cuda.processors import find_near
from server.weights.cuda.ring import Ring
from server.weights.cuda.runtime import Runtime
from server.weights.errors import WeightsError
from server.weights.settings import LoaderSettings

# What cuBLAS, NCCL and the allocator need besides the weights.
_MARGIN = 256 * 1024 * 1024


class Memory(Protocol):
    """A device's memory as torch allocates it."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Return bytes of the device (uint8), 512-byte aligned; raises `Permanent` where too few are free."""

    def stream(self) -> int:
        """Return the stream of the calling thread's torch operations."""

    def reusable(self) -> int:
        """Return the bytes that torch holds unused."""

    def current(self) -> AbstractContextManager[object]:
        """Make the device the calling thread's own for the block, and restore the previous one afterwards."""


class TorchMemory:
    """torch's caching allocator on one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, nbytes: int) -> torch.Tensor:
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            raise Permanent(
                "gpu_memory", f"{format_size(nbytes)} on {self._device}: {str(error).splitlines()[0]}", _NO_ROOM
            ) from error

    def stream(self) -> int:
        return int(torch.cuda.current_stream(self._device).cuda_stream)

    def reusable(self) -> int:
        return torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)

    def current(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self._device)  # creates no context on the thread's previous device


_NO_ROOM = (
    "serve a smaller model or dtype, share it among several GPUs, or stop the other processes on this one (nvidia-smi)"
)


class Accelerator:
    """A device, ready for loads from any number of threads."""

    def __init__(self, device: torch.device, runtime: Runtime, memory: Memory, settings: LoaderSettings) -> None:
        self.device = device
        self.runtime = runtime
        self.memory = memory
        self.settings = settings
        self._lock = threading.Lock()
        self._spare_events: list[int] = []
        self._streams: tuple[int, ...] = ()
        self._ring: Ring | None = None

    @cached_property
    def processors(self) -> frozenset[int]:
        """The processors near the device."""
        return find_near(self.runtime.get_pci_bus_id())

    def get_streams(self) -> tuple[int, ...]:
        """Return the copy streams, created on first use."""
        with self._lock, self.memory.current():
            if not self._streams:
                self._streams = tuple(self.runtime.new_stream() for _ in range(self.settings.streams))
            return self._streams

    def get_ring(self) -> Ring:
        """Return the pinned memory, allocated on first use."""
        with self._lock, self.memory.current():
            if self._ring is None:
                self._ring = Ring(self.runtime, self.settings.slots, self.settings.slot_bytes, self.processors)
            return self._ring

    def follow(self, later: int, earlier: int) -> None:
        """Make the stream `later` wait for the present work of the stream `earlier`."""
        with self.memory.current():  # the default stream's handle refers to the calling thread's device
            with self._lock:
                event = self._spare_events.pop() if self._spare_events else self.runtime.new_event()
            try:
                self.runtime.record(event, earlier)
                self.runtime.wait(later, event)
            finally:
                # A wait refers to the record at the time it was queued, so the event can be recorded again at once.
                with self._lock:
                    self._spare_events.append(event)

    def check_room(self, nbytes: int) -> None:
        """Raise `Permanent` (`gpu_memory`) where fewer than `nbytes`, and a margin for work, are free."""
        free, total = self.get_free_memory()
        if nbytes + _MARGIN > free:
            raise Permanent(
                "gpu_memory",
                f"{self.device}: expected {format_size(nbytes)} for the weights and {format_size(_MARGIN)} for work, "
                f"found {format_size(free)} free of {format_size(total)}",
                _NO_ROOM,
            )

    def get_free_memory(self) -> tuple[int, int]:
        """Return the bytes that a load may use now, and the device's total."""
        with self.memory.current():
            free, total = self.runtime.get_memory()
        return free + self.memory.reusable(), total

    def close(self) -> None:
        """Release the ring, streams and events; no load may run."""
        with self._lock:
            ring, self._ring = self._ring, None
            if ring is not None:
                ring.close()
            while self._spare_events:
                self.runtime.destroy_event(self._spare_events.pop())
            streams, self._streams = self._streams, ()
            for stream in streams:
                self.runtime.destroy_stream(stream)


# A caller's device: `cpu`, `cuda`, `cuda:1`, a number, torch's own, or an accelerator with settings of its own.
DeviceLike: TypeAlias = "str | int | torch.device | Accelerator"


def find_accelerator(device: DeviceLike, settings: LoaderSettings | None = None) -> Accelerator | None:
    """Return the accelerator for `device`, None for the CPU; raises `Permanent` where there is no such device.
    `settings` default to the environment's; a given accelerator keeps its own."""
    if isinstance(device, Accelerator):
        return device
    try:
        named = torch.device(f"cuda:{device}") if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise _unsupported(device) from error
    if named.type == "cpu":
        return None
    if named.type != "cuda":
        raise _unsupported(device)
    if named.index is None:
        named = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    with _MAKING:
        return _accelerator(named, settings)


_MAKING = threading.Lock()


@cache  # one per device, and per settings that a caller made
def _accelerator(device: torch.device, settings: LoaderSettings | None) -> Accelerator:
    from server.weights.cuda import device as gpu
    from server.weights.cuda.cudart import CudaRuntime, load_library

    gpu.select(str(device))
    memory = TorchMemory(device)
    with memory.current():
        runtime = CudaRuntime(load_library(), device.index)
    return Accelerator(device, runtime, memory, settings or LoaderSettings.from_environment())


def _unsupported(device: object) -> WeightsError:
    return WeightsError(
        "unsupported_device",
        f"expected cpu, cuda or cuda:N, found {device!r}",
        "load onto the CPU and move the tensors",
    )
