"""The compared loaders: how each loads every tensor of some files onto a device.

Law: each runs unpatched from its installed package, in the way its documentation calls fastest for keeping all tensors.
A loader that reads past the page cache by default is told whether the files are `cached`. A missing loader, or one
without support for the device, is skipped with its reason.
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
# The piece of one thread of fastsafetensors; its default of 16 GiB would read a file with one thread.
_FAST_BLOCK = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Loader:
    """One row. `module` must be importable; `distribution` names its package, for the version."""

    name: str
    module: str
    distribution: str
    devices: tuple[str, ...]
    load: Load

    def missing(self, device: str) -> str | None:
        """Return why this loader cannot run here; None where it can."""
        if find_spec(self.module) is None:
            return f"{self.distribution} is not installed"
        kind = device.partition(":")[0]
        return None if kind in self.devices else f"{self.distribution} does not load onto {kind}"

    @property
    def version(self) -> str:
        try:
            return version(self.distribution)
        except PackageNotFoundError:  # ours, from the repository
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
