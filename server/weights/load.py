"""One load onto a device: selection, plan, copies, dtypes, report.

Law: yields torch's own memory, complete in the order of the stream that was current when the load began; the raw bytes
of a converted range are released before the range after next is allocated.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TypeAlias

import torch

from server.weights import report
from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.copier import LoadTotals
from server.weights.cuda.route import MethodChoice
from server.weights.format import dtypes
from server.weights.format.checkpoint import Checkpoint
from server.weights.format.selection import Box, ByteRun, iterate_runs
from server.weights.host.reader import Reader
from server.weights.plan import ALIGNMENT, Sizes, WantedTensor, make_plan
from server.weights.report import Bound, LoadReport, Stages
from server.weights.settings import Backend

# Ranges in progress beyond the one being consumed, where the consumer drops each: the next is read in that time.
_AHEAD = 1


# The tensors to load, in byte order; the part of each, None for all of it.
Wanted: TypeAlias = Mapping[str, Box | None]


@dataclass(frozen=True, slots=True)
class _Item:
    """A tensor, or a box of one, to deliver: `shape` and `residue` are the box's, `dtype` is the file's."""

    want: WantedTensor
    dtype: torch.dtype
    shape: tuple[int, ...]
    residue: tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """`dtype`: the target of plain numbers. `kept`: the consumer keeps all tensors, so all ranges may be in progress.
    `backend`: on the CPU, mapped or read. `headers_s`: seconds spent on opening, for the report."""

    dtype: torch.dtype | None = None
    cancel: threading.Event | None = None
    kept: bool = True
    backend: Backend = Backend.MMAP
    headers_s: float = 0.0


def deliver(
    accelerator: Accelerator, checkpoint: Checkpoint, wanted: Wanted, options: LoadOptions
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors, in the order of the files and of their bytes; raises `HoldfastError`."""
    began = time.perf_counter()
    settings = accelerator.settings
    items = {name: _item(checkpoint, name, part) for name, part in wanted.items()}
    converts = any(dtypes.convert(item.dtype, options.dtype) != item.dtype for item in items.values())
    range_bytes = settings.convert_range_bytes if converts else settings.range_bytes
    accelerator.check_room(_needed_bytes(items.values(), options, range_bytes, converts=converts))
    plan = make_plan(
        [item.want for item in items.values()], Sizes(settings.slot_bytes, range_bytes, settings.merge_gap)
    )
    planned_s = time.perf_counter() - began
    totals, convert_s = LoadTotals(), 0.0
    ahead = len(plan.ranges) if options.kept and not converts else _AHEAD
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(Reader(file, settings))) for file in checkpoint.files]
        choice = MethodChoice(accelerator, readers, options.cancel)
        for filled, buffer in choice.copy(plan, ahead, totals):
            for want, offset in filled.placements:
                item = items[want.name]
                tensor = _view(buffer, offset, item)
                at = time.perf_counter()
                tensor = tensor.to(dtypes.convert(item.dtype, options.dtype))
                convert_s += time.perf_counter() - at
                yield want.name, tensor
                del tensor
            del buffer
        checkpoint.check()
    report.publish(
        LoadReport(
            path=str(checkpoint.path),
            device=str(accelerator.device),
            method=choice.method,
            files=len(checkpoint.files),
            tensors=len(items),
            bytes=plan.nbytes,
            cold_bytes=totals.cold,
            direct_bytes=totals.direct,
            device_bytes=plan.device_bytes,
            seconds=time.perf_counter() - began + options.headers_s,
            stages=Stages(
                options.headers_s, planned_s, totals.allocate_s, convert_s, totals.read_s, totals.copy_s, totals.wait_s
            ),
            bound=_bound(totals, plan.nbytes),
        )
    )


def _item(checkpoint: Checkpoint, name: str, part: Box | None) -> _Item:
    file, entry = checkpoint.tensors[name]
    dtype, shape = dtypes.resolve(name, entry)
    if part is None:
        nbytes = entry.end - entry.begin
        whole = (ByteRun(entry.begin, 0, nbytes),) if nbytes else ()
        return _Item(WantedTensor(name, file, nbytes, whole), dtype, shape, ())
    nbytes = math.prod(part.shape) * dtype.itemsize
    found = tuple(iterate_runs(entry.begin, shape, dtype.itemsize, part))
    return _Item(WantedTensor(name, file, nbytes, found), dtype, part.shape, part.residue)


def _view(buffer: torch.Tensor, offset: int, item: _Item) -> torch.Tensor:
    if item.want.nbytes == 0:
        tensor = torch.empty(item.shape, dtype=item.dtype, device=buffer.device)
    else:
        tensor = buffer[offset : offset + item.want.nbytes].view(item.dtype).view(item.shape)
    return tensor[item.residue] if item.residue else tensor


def _needed_bytes(items: Collection[_Item], options: LoadOptions, range_bytes: int, *, converts: bool) -> int:
    """Return the most bytes of the device that the loader itself keeps at once."""
    raw = [item.want.nbytes + ALIGNMENT for item in items]
    in_progress = (_AHEAD + 2) * (range_bytes + max(raw, default=0))
    if not options.kept:
        return min(sum(raw), in_progress)
    if not converts:
        return sum(raw)
    kept = sum(math.prod(item.shape) * dtypes.convert(item.dtype, options.dtype).itemsize for item in items)
    return kept + min(sum(raw), in_progress)


def _bound(totals: LoadTotals, nbytes: int) -> Bound:
    if totals.wait_s >= max(totals.read_s, totals.copy_s):
        return Bound.PCIE
    return Bound.DISK if totals.cold * 2 > nbytes else Bound.COPY
