"""One lazily opened file, as `safetensors.safe_open` has it, on any device, for torch or numpy.

Law: any order, any number of times, from any thread; tensors and slices outlive the handle. An index that torch refuses
raises torch's error, an index into a numpy slice is checked as safetensors checks it, an invalid file raises ours.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any, TypeAlias

import torch

from server.weights.cuda.accelerator import Accelerator, DeviceLike, find_accelerator
from server.weights.errors import WeightsError
from server.weights.files import read_backend
from server.weights.format import dtypes
from server.weights.format.array_index import check_array_index
from server.weights.format.checkpoint import Checkpoint, open_checkpoint
from server.weights.format.safetensors import Header, TensorEntry
from server.weights.format.selection import find_box
from server.weights.host.arrays import import_numpy, make_array, make_tensor
from server.weights.host.mapping import open_host_files
from server.weights.load import LoadOptions, deliver
from server.weights.settings import Backend

_TORCH = ("pt", "torch", "pytorch")
_NUMPY = ("np", "numpy")


class safe_open:
    """Open a safetensors file; `with` closes it. Raises `Permanent`.

    `framework` is `pt`, or `np` for numpy arrays, which are on the CPU. `device` is `cpu`, `cuda`, `cuda:N`, a number,
    a torch device, or None for the CPU. On the CPU tensors are views of the page cache, or with the `backend` `pread`
    copies of it; on a GPU each call reads the bytes it needs.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str = "pt",
        device: DeviceLike | None = "cpu",
        *,
        backend: str = "mmap",
    ) -> None:
        chosen = read_backend(backend)
        if framework not in (*_TORCH, *_NUMPY):
            raise WeightsError(
                "unsupported_framework",
                f"expected the framework pt or np, found {framework!r}",
                "ask for np, and hand the arrays to your framework, or use the safetensors package",
            )
        accelerator = find_accelerator("cpu" if device is None else device)
        if accelerator is not None and framework in _NUMPY:
            raise WeightsError(
                "unsupported_device", f"expected the device cpu for numpy arrays, found {device!r}", "ask for pt"
            )
        if framework in _NUMPY:
            import_numpy()
        if Path(filename).is_dir():
            raise WeightsError("unreadable", f"{filename}: expected a file, found a folder", "name one of its files")
        checkpoint = open_checkpoint(filename)
        self._path = Path(filename)
        self._header = checkpoint.files[0].header
        self._tensors: _Tensors | None = _tensors(checkpoint, framework, accelerator, chosen)

    def __enter__(self) -> safe_open:
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors = None

    def keys(self) -> list[str]:
        """Return the tensors' names, sorted."""
        return sorted(self._open()[0].tensors)

    def offset_keys(self) -> list[str]:
        """Return the tensors' names, in byte order."""
        return list(self._open()[0].tensors)

    def metadata(self) -> dict[str, str] | None:
        """Return the header's metadata, None where it has none."""
        metadata = self._open()[0].metadata
        return None if metadata is None else dict(metadata)

    def get_tensor(self, name: str) -> Any:
        """Return the whole tensor, or the array; raises `Permanent` where the file has none of that name."""
        self._entry(name)
        return self._open()[1].load([name])[name]

    def get_tensors(self) -> dict[str, Any]:
        """Return every tensor by name, in byte order."""
        header, tensors = self._open()
        return dict(tensors.load(list(header.tensors)))

    def get_slice(self, name: str) -> TensorSlice:
        """Return an unread tensor, to be indexed; raises `Permanent` where the file has none of that name."""
        return TensorSlice(name, self._entry(name), self._open()[1])

    def _open(self) -> tuple[Header, _Tensors]:
        if self._tensors is None:
            raise WeightsError("closed", f"{self._path} is closed", "use it within its `with` block")
        return self._header, self._tensors

    def _entry(self, name: str) -> TensorEntry:
        entry = self._open()[0].tensors.get(name)
        if entry is None:
            raise WeightsError(
                "no_tensor", f"{self._path}: expected the tensor {name!r}, found no such name", "see keys()"
            )
        return entry


class TensorSlice:
    """A tensor whose index reads only the selected bytes."""

    def __init__(self, name: str, entry: TensorEntry, tensors: _Tensors) -> None:
        self._name = name
        self._entry = entry
        self._tensors = tensors

    def get_shape(self) -> list[int]:
        """Return the shape in the file."""
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        """Return the dtype's name in the format."""
        return self._entry.dtype

    def __getitem__(self, index: Any) -> Any:
        """Read the part of the tensor at `index`; raises torch's own errors, and ours for numpy."""
        return self._tensors.load_part(self._name, index)


class _HostTensors:
    """Tensors on the CPU. A map needs no open file; for copies the file stays open until the last slice is released."""

    def __init__(self, checkpoint: Checkpoint, backend: Backend) -> None:
        self._located = checkpoint.tensors
        self._files = open_host_files(checkpoint, backend)
        if backend is Backend.MMAP:
            checkpoint.close()
        else:
            weakref.finalize(self, checkpoint.close)

    def load(self, names: list[str]) -> dict[str, Any]:
        return {name: self._make(name) for name in names}

    def load_part(self, name: str, index: Any) -> Any:
        return self._make(name)[index]

    def _make(self, name: str) -> Any:
        located = self._located[name]
        return make_tensor(name, located.entry, self._files.find_bytes(located))


class _HostArrays(_HostTensors):
    """As `_HostTensors`, as numpy arrays."""

    def load_part(self, name: str, index: Any) -> Any:
        array = self._make(name)
        return array[check_array_index(array.shape, index)].copy(order="C")

    def _make(self, name: str) -> Any:
        located = self._located[name]
        return make_array(name, located.entry, self._files.find_bytes(located))


class _DeviceTensors:
    """Loads of one or more tensors each; the file stays open until the last slice is released."""

    def __init__(self, checkpoint: Checkpoint, accelerator: Accelerator) -> None:
        self._checkpoint = checkpoint
        self._accelerator = accelerator
        weakref.finalize(self, checkpoint.close)

    def load(self, names: list[str]) -> dict[str, torch.Tensor]:
        return dict(deliver(self._accelerator, self._checkpoint, dict.fromkeys(names), LoadOptions()))

    def load_part(self, name: str, index: Any) -> torch.Tensor:
        _, shape = dtypes.resolve(name, self._checkpoint.tensors[name].entry)
        found = find_box(shape, index)
        if found is None:
            # First on the host: an index beyond a tensor's end on a GPU loses the GPU for the whole process.
            _stand_in(shape, index)[_to_host(index)]
            return self.load([name])[name][index]
        return dict(deliver(self._accelerator, self._checkpoint, {name: found}, LoadOptions()))[name]


def _stand_in(shape: tuple[int, ...], index: Any) -> torch.Tensor:
    """Return a tensor without memory of its own that refuses what a tensor of `shape` refuses, in the same words. Only
    one with values checks the values of an index; the words of some other refusals depend on its strides."""
    if any(isinstance(item, torch.Tensor | list) for item in (index if isinstance(index, tuple) else (index,))):
        return torch.empty((), dtype=torch.uint8).expand(shape)
    return torch.empty(shape, dtype=torch.uint8, device="meta")


def _to_host(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_to_host, index))
    return index.cpu() if isinstance(index, torch.Tensor) else index


# The tensors of a file, for as long as a handle or a slice refers to them.
_Tensors: TypeAlias = _HostTensors | _DeviceTensors


def _tensors(checkpoint: Checkpoint, framework: str, accelerator: Accelerator | None, backend: Backend) -> _Tensors:
    try:
        if accelerator is not None:
            return _DeviceTensors(checkpoint, accelerator)
        made = _HostArrays if framework in _NUMPY else _HostTensors
        return made(checkpoint, backend)
    except BaseException:
        checkpoint.close()
        raise
