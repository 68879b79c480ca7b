"""CUDA's runtime, called through ctypes: torch's own library, so that one copy is loaded and it fits the driver.

Law: checks every return code, and clears the error that the runtime keeps for the thread, which would otherwise appear
in an unrelated call of torch's. ctypes releases the interpreter's lock during every call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import torch

from cached.contract.errors import Permanent
from server.weights.cuda.runtime import CudaError

_HOST_TO_DEVICE = 1  # cudaMemcpyHostToDevice
_STREAM_NON_BLOCKING = 1  # cudaStreamNonBlocking
_EVENT_FLAGS = 1 | 2  # cudaEventBlockingSync | cudaEventDisableTiming
_REGISTER_PORTABLE = 1  # cudaHostRegisterPortable
_REGISTER_READ_ONLY = 8  # cudaHostRegisterReadOnly
_BUS_ID_BYTES = 32

_ptr, _size, _int, _uint = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint
_SIGNATURES: dict[str, list[type]] = {
    "cudaSetDevice": [_int],
    "cudaHostRegister": [_ptr, _size, _uint],
    "cudaHostUnregister": [_ptr],
    "cudaStreamCreateWithFlags": [_ptr, _uint],
    "cudaStreamDestroy": [_ptr],
    "cudaStreamSynchronize": [_ptr],
    "cudaStreamWaitEvent": [_ptr, _ptr, _uint],
    "cudaEventCreateWithFlags": [_ptr, _uint],
    "cudaEventDestroy": [_ptr],
    "cudaEventRecord": [_ptr, _ptr],
    "cudaEventSynchronize": [_ptr],
    "cudaMemcpyAsync": [_ptr, _ptr, _size, _int, _ptr],
    "cudaMemcpy2DAsync": [_ptr, _size, _ptr, _size, _size, _size, _int, _ptr],
    "cudaMemGetInfo": [_ptr, _ptr],
    "cudaDeviceGetAttribute": [_ptr, _int, _int],
    "cudaDeviceGetPCIBusId": [_ptr, _int, _int],
    "cudaGetLastError": [],
}


class CudaRuntime:
    """The runtime for one device; see `Runtime`."""

    def __init__(self, library: ctypes.CDLL, device: int) -> None:
        self._device = device
        self._library = library
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, ctypes.c_int
        library.cudaGetErrorString.argtypes, library.cudaGetErrorString.restype = [_int], ctypes.c_char_p
        self.set_device()

    def set_device(self) -> None:
        self._call("cudaSetDevice", self._device)

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        flags = _REGISTER_PORTABLE | (_REGISTER_READ_ONLY if read_only else 0)
        self._call("cudaHostRegister", address, nbytes, flags)

    def unregister(self, address: int) -> None:
        self._call("cudaHostUnregister", address)

    def new_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), _STREAM_NON_BLOCKING)
        return stream.value or 0

    def new_event(self) -> int:
        event = ctypes.c_void_p()
        self._call("cudaEventCreateWithFlags", ctypes.byref(event), _EVENT_FLAGS)
        return event.value or 0

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def copy(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cudaMemcpyAsync", target, source, nbytes, _HOST_TO_DEVICE, stream)

    def copy_rows(self, target: int, source: int, width: int, rows: int, pitch: int, stream: int) -> None:
        self._call("cudaMemcpy2DAsync", target, width, source, pitch, width, rows, _HOST_TO_DEVICE, stream)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize(self, event: int) -> None:
        self._call("cudaEventSynchronize", event)

    def drain(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def get_memory(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def get_attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def get_pci_bus_id(self) -> str:
        text = ctypes.create_string_buffer(_BUS_ID_BYTES)
        self._call("cudaDeviceGetPCIBusId", text, _BUS_ID_BYTES, self._device)
        return text.value.decode().lower()

    def _call(self, name: str, *arguments: object) -> None:
        number = getattr(self._library, name)(*arguments)
        if number != 0:
            self._library.cudaGetLastError()
            text = self._library.cudaGetErrorString(number)
            raise CudaError(name, number, text.decode(errors="replace") if text else "unknown error", self._device)


def load_library() -> ctypes.CDLL:
    """Return the runtime library of this process, else torch's own, else the system's; raises `Permanent`."""
    tried = []
    for name in _candidates():
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            tried.append(str(error))
    raise Permanent(
        "no_cuda_runtime",
        f"expected libcudart next to torch {torch.__version__}, found none: {'; '.join(tried) or 'nothing to try'}",
        "install a CUDA build of torch: its wheels bring the runtime",
    )


def _candidates() -> Iterator[str]:
    with Path("/proc/self/maps").open() as maps:
        mapped = {line.split(maxsplit=5)[5].strip() for line in maps if "/libcudart.so" in line}
    yield from sorted(mapped)
    major = (torch.version.cuda or "").partition(".")[0]
    packages = Path(torch.__file__).parent.parent
    for folder in (f"nvidia/cu{major}/lib", "nvidia/cuda_runtime/lib", "torch/lib"):
        yield from map(str, sorted(packages.glob(f"{folder}/libcudart*.so*")))
    for number in dict.fromkeys((major, "13", "12")):
        if number:
            yield f"libcudart.so.{number}"
