"""The loaders that are compared: how each is asked for every tensor of some files, on a device.

Law: each is called as its own documentation says is fastest for keeping all tensors, from its own package, found by
import; none is changed or patched. One that goes past the page cache unless it is told not to is told whether the files
are `cached`. A loader that this machine lacks, or that cannot do the device, says so.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]
    Load = Callable[[Sequence[Path], str, bool], Tensors]

OURS = "holdfast"
INSTANTTENSOR = "instanttensor"
# fastsafetensors gives a thread so much at a time; with its default of 16 GiB a file would be read by one thread.
_FAST_BLOCK = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Loader:
    """One row. `module` is what must be importable; `distribution` what it is installed as, for its version."""

    name: str
    module: str
    distribution: str
    devices: tuple[str, ...]
    load: Load

    def missing(self, device: str) -> str | None:
        """Why this loader has no row here; None where it has one."""
        if find_spec(self.module) is None:
            return f"{self.distribution} is not installed"
        kind = device.partition(":")[0]
        return None if kind in self.devices else f"{self.distribution} does not load onto {kind}"

    @property
    def version(self) -> str:
        try:
            return version(self.distribution)
        except PackageNotFoundError:  # ours, run out of its repository
            return "of this tree"


def _ours(files: Sequence[Path], device: str, cached: bool) -> Tensors:  # noqa: ARG001 - it sees for itself
    from server import load_file

    return load_file(list(files), device)


def _safetensors(files: Sequence[Path], device: str, cached: bool) -> Tensors:  # noqa: ARG001 - always through it
    load_file = importlib.import_module("safetensors.torch").load_file
    tensors: Tensors = {}
    for path in files:
        tensors.update(load_file(path, device=device))
    return tensors


def _fastsafetensors(files: Sequence[Path], device: str, cached: bool) -> Tensors:
    opened = importlib.import_module("fastsafetensors").fastsafe_open
    paths = [str(path) for path in files]
    if cached:
        os.environ["FASTSAFETENSORS_ODIRECT"] = "0"
    with opened(paths, device=device, nogds=True, max_copy_block_size=_FAST_BLOCK) as found:
        return {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118 no mapping


def _runai(files: Sequence[Path], device: str, cached: bool) -> Tensors:
    if cached:
        os.environ["RUNAI_STREAMER_FS_STRATEGY"] = "sync_buffered"
    streamer = importlib.import_module("runai_model_streamer").SafetensorsStreamer
    with streamer() as stream:
        stream.stream_files([str(path) for path in files], device=device)
        return dict(stream.get_tensors())


def _instanttensor(files: Sequence[Path], device: str, cached: bool) -> Tensors:
    package = importlib.import_module("instanttensor")
    backend = package.BackendPolicy.BUFFERED if cached else None
    with package.safe_open([str(path) for path in files], framework="pt", device=device, backend=backend) as found:
        return dict(found.tensors())


LOADERS = (
    Loader(OURS, "server", "holdfast", ("cpu", "cuda"), _ours),
    Loader("safetensors", "safetensors", "safetensors", ("cpu", "cuda"), _safetensors),
    Loader("fastsafetensors", "fastsafetensors", "fastsafetensors", ("cpu", "cuda"), _fastsafetensors),
    Loader("runai streamer", "runai_model_streamer", "runai-model-streamer", ("cpu", "cuda"), _runai),
    Loader(INSTANTTENSOR, "instanttensor", "instanttensor", ("cuda",), _instanttensor),
)
BY_NAME = {loader.name: loader for loader in LOADERS}
PEERS = tuple(loader.name for loader in LOADERS if loader.name != OURS)
