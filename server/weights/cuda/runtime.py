"""What the loader needs of CUDA's runtime, and nothing more.

Law: a Protocol, its names and numbers; no implementation. The real one is `cudart`; tests bring one that behaves as
the documentation says and looks for misuse. Streams and events are plain handles, 0 is the default stream.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cached.contract.errors import Permanent

# https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html#group__CUDART__TYPES: cudaDeviceAttr
HOST_REGISTER_READ_ONLY_SUPPORTED = 113


class Rows(NamedTuple):
    """`rows` rows of `width` bytes: one every `pitch` bytes from `source`, packed from `target`."""

    target: int
    source: int
    width: int
    rows: int
    pitch: int


class CudaError(Permanent):
    """A call of CUDA's runtime that failed: `call` is its name, `number` its cudaError_t."""

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
        """Make the device the calling thread's: without it a thread's first call makes a context on device 0."""
        ...

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        """Pin host memory. `read_only` for pages this process may not write, where the device can (attribute 113)."""
        ...

    def unregister(self, address: int) -> None: ...

    def new_stream(self) -> int:
        """A stream that does not wait for the default stream."""
        ...

    def new_event(self) -> int:
        """An event without timing, whose `synchronize` sleeps and does not spin."""
        ...

    def destroy_stream(self, stream: int) -> None: ...

    def destroy_event(self, event: int) -> None: ...

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Queue a copy from registered host memory to the device: `source` is read until the copy is done."""
        ...

    def copy_rows(self, rows: Rows, stream: int) -> None:
        """The same for rows."""
        ...

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, stream: int, event: int) -> None:
        """Have `stream` wait for what `event` recorded last; returns at once."""
        ...

    def synchronize(self, event: int) -> None:
        """Wait for what `event` recorded last; at once where it recorded nothing."""
        ...

    def drain(self, stream: int) -> None:
        """Wait until nothing is left on `stream`."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        ...

    def attribute(self, number: int) -> int: ...

    def pci_bus_id(self) -> str:
        """As sysfs has it, in lower case: `0000:3b:00.0`."""
        ...
