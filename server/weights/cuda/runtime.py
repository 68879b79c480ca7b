"""The calls of CUDA's runtime that the loader needs.

Law: a Protocol, its names and numbers; no implementation. `cudart` is the real one; the tests' own behaves as CUDA's
documentation says and checks for misuse. Streams and events are plain handles, 0 is the default stream.
"""

from __future__ import annotations

from typing import Protocol

from cached.contract.errors import Permanent

# https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html#group__CUDART__TYPES: cudaDeviceAttr
HOST_REGISTER_READ_ONLY_SUPPORTED = 113


class CudaError(Permanent):
    """A failed call of CUDA's runtime: `call` is its name, `number` its cudaError_t."""

    def __init__(self, call: str, number: int, text: str, device: int) -> None:
        super().__init__(
            "cuda_error",
            f"{call} on GPU {device}: {text} (error {number})",
            "see nvidia-smi and the node's kernel log for Xid errors; a process whose CUDA context is lost restarts",
        )
        self.call = call
        self.number = number


class Runtime(Protocol):
    """One device. Every method may be called from any thread; all raise `CudaError`."""

    def set_device(self) -> None:
        """Make the device the calling thread's: without it a thread's first call creates a context on device 0."""

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        """Pin host memory. `read_only` for pages this process may not write, where the device can (attribute 113)."""

    def unregister(self, address: int) -> None: ...

    def new_stream(self) -> int:
        """Create a stream that does not wait for the default stream."""

    def new_event(self) -> int:
        """Create an event without timing, whose `synchronize` sleeps instead of spinning."""

    def destroy_stream(self, stream: int) -> None: ...

    def destroy_event(self, event: int) -> None: ...

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy from registered host memory to the device; `source` must stay until the copy is done."""

    def copy_rows(self, target: int, source: int, width: int, rows: int, pitch: int, stream: int) -> None:
        """Queue a copy of `rows` rows of `width` bytes: one every `pitch` bytes from `source`, packed from `target`."""

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, stream: int, event: int) -> None:
        """Make `stream` wait for the last record of `event`; returns at once."""

    def synchronize(self, event: int) -> None:
        """Block until the last record of `event` is reached; returns at once where it has none."""

    def drain(self, stream: int) -> None:
        """Block until `stream` is empty."""

    def get_memory(self) -> tuple[int, int]:
        """Return the free and total bytes of the device."""

    def get_attribute(self, number: int) -> int: ...

    def get_pci_bus_id(self) -> str:
        """Return the bus id as sysfs has it, in lower case: `0000:3b:00.0`."""
