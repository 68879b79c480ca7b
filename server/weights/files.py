"""Whole checkpoints: a file, several files, or a model's folder, as a dictionary or tensor by tensor.

Law: returned tensors are the caller's and outlive the load; no byte is read that was not asked for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Iterator

import torch

from server.weights import report
from server.weights.cuda.accelerator import Accelerator, DeviceLike, find_accelerator
from server.weights.errors import WeightsError
from server.weights.format import dtypes
from server.weights.format.checkpoint import Checkpoint, Source, open_checkpoint
from server.weights.format.selection import Box
from server.weights.format.shards import Shards
from server.weights.host.arrays import make_tensor
from server.weights.host.mapping import HostMap, open_host_files
from server.weights.load import LoadOptions, Wanted, deliver
from server.weights.report import Bound, LoadReport, Stages
from server.weights.settings import Backend


def load_file(
    source: Source,
    device: DeviceLike = "cpu",
    *,
    dtype: torch.dtype | None = None,
    keys: Collection[str] | None = None,
    cancel: threading.Event | None = None,
    shards: Shards | None = None,
    backend: str = "mmap",
) -> dict[str, torch.Tensor]:
    """Load every tensor of a file, of several files, or of a model's folder, by name, in byte order.

    On the CPU tensors are views of the page cache, or, with `backend` "pread", copies in this process's memory; onto a
    GPU bytes are read either way. `dtype` converts float64, float32, float16 and bfloat16 tensors
    only. `keys` selects tensors, each of which must exist. `shards` selects this rank's part of each and reads no more:
    contiguous on a GPU, a view on the CPU. Setting `cancel` from another thread ends a load onto a GPU with `Transient`
    (`load_cancelled`). Raises `HoldfastError`.
    """
    began = time.perf_counter()
    chosen = read_backend(backend)
    accelerator = find_accelerator(device)
    with open_checkpoint(source) as checkpoint:
        wanted = choose_tensors(checkpoint, keys, shards)
        options = LoadOptions(dtype, cancel, backend=chosen, headers_s=time.perf_counter() - began)
        return dict(load_open(checkpoint, accelerator, wanted, options))


def iter_tensors(
    source: Source,
    device: DeviceLike = "cpu",
    *,
    dtype: torch.dtype | None = None,
    keys: Collection[str] | None = None,
    cancel: threading.Event | None = None,
    shards: Shards | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor with its name, in byte order, for a consumer that keeps no more than it needs.

    At most three allocations of about 256 MiB are in use at once; a kept tensor keeps its whole allocation. Close the
    iterator to stop early. Otherwise as `load_file`.
    """
    began = time.perf_counter()
    accelerator = find_accelerator(device)
    with open_checkpoint(source) as checkpoint:
        wanted = choose_tensors(checkpoint, keys, shards)
        options = LoadOptions(dtype, cancel, kept=False, headers_s=time.perf_counter() - began)
        yield from load_open(checkpoint, accelerator, wanted, options)


def load_open(
    checkpoint: Checkpoint, accelerator: Accelerator | None, wanted: Wanted, options: LoadOptions
) -> Iterable[tuple[str, torch.Tensor]]:
    """Load from open files; `accelerator` is None for the CPU."""
    if accelerator is None:
        return _load_on_host(checkpoint, wanted, options).items()
    return deliver(accelerator, checkpoint, wanted, options)


def read_backend(name: str) -> Backend:
    """Return the backend of this name; raises `Permanent`."""
    try:
        return Backend(name)
    except ValueError as error:
        raise WeightsError(
            "invalid_backend", f"expected one of {', '.join(Backend)}, found {name!r}", "omit it, or name one of these"
        ) from error


def choose_tensors(checkpoint: Checkpoint, keys: Collection[str] | None, shards: Shards | None) -> Wanted:
    """Select `keys`, None for every tensor; raises `Permanent` where one is missing or cannot be sharded."""
    wanted = checkpoint.tensors.keys() if keys is None else set(keys)
    missing = sorted(wanted - checkpoint.tensors.keys())
    if missing:
        raise WeightsError(
            "no_tensor",
            f"{checkpoint.files[0].path}: expected the tensor {missing[0]!r}, found {len(checkpoint.tensors)} others",
            "ask for a name that the checkpoint has",
        )
    names = [name for name in checkpoint.tensors if name in wanted]
    if shards is None:
        return dict.fromkeys(names)
    shards.check(checkpoint.tensors)
    return {name: shards.select_part(name, dtypes.resolve(name, checkpoint.tensors[name].entry)[1]) for name in names}


def _load_on_host(checkpoint: Checkpoint, wanted: Wanted, options: LoadOptions) -> dict[str, torch.Tensor]:
    began = time.perf_counter()
    found = open_host_files(checkpoint, options.backend)
    mapped = isinstance(found, HostMap)
    if isinstance(found, HostMap) and wanted and not any(wanted.values()):  # with parts, not all bytes are wanted
        found.read_ahead(checkpoint.tensors[name] for name in wanted)
    tensors = {}
    for name, part in wanted.items():
        located = checkpoint.tensors[name]
        whole = make_tensor(name, located.entry, found.find_bytes(located))
        tensors[name] = _part(whole, part) if part is None or mapped else _part(whole, part).clone()
    if not mapped:
        checkpoint.check()
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    mapped_s = time.perf_counter() - began
    if options.dtype is not None:
        for name in wanted:
            tensors[name] = tensors[name].to(dtypes.convert(tensors[name].dtype, options.dtype))
    seconds = time.perf_counter() - began
    report.publish(
        LoadReport(
            path=str(checkpoint.path),
            device="cpu",
            method="mapped" if mapped else "read",
            files=len(checkpoint.files),
            tensors=len(tensors),
            bytes=nbytes,
            cold_bytes=0,
            direct_bytes=0,
            device_bytes=0,
            seconds=options.headers_s + seconds,
            stages=Stages(headers=options.headers_s, plan=mapped_s, convert=seconds - mapped_s),
            bound=Bound.NOTHING,
        )
    )
    return tensors


def _part(tensor: torch.Tensor, part: Box | None) -> torch.Tensor:
    if part is None:
        return tensor
    return tensor[tuple(slice(start, start + length) for start, length in zip(part.starts, part.shape, strict=True))]
