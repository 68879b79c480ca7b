"""One load onto a device: selection, plan, copies, dtypes, report.

Law: yields torch's own memory, complete in the order of the stream that was current when the load began; the raw bytes
of a converted range are released before the range after next is allocated.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from server.weights import report
from server.weights.cuda.accelerator import Accelerator
from server.weights.cuda.copier import LoadTotals
from server.weights.cuda.route import MethodChoice
from server.weights.format import dtypes
from server.weights.format.checkpoint import Checkpoint
from server.weights.format.selection import Box, Residue, Run, runs
from server.weights.host.reader import Reader
from server.weights.plan import ALIGNMENT, LoadPlan, Placement, Sizes, WantedTensor, make_plan
from server.weights.report import Bound, LoadReport, Stages

# Ranges in progress beyond the one being consumed, where the consumer drops each: the next is read in that time.
_AHEAD = 1


@dataclass(frozen=True, slots=True)
class Item:
    """A tensor, or a box of one, to deliver: `shape` and `residue` are the box's, `dtype` is the file's."""

    want: WantedTensor
    dtype: torch.dtype
    shape: tuple[int, ...]
    residue: Residue


@dataclass(frozen=True, slots=True)
class Options:
    """`dtype`: the target of plain numbers. `kept`: the consumer keeps all tensors, so all ranges may be in progress.
    `headers_s`: seconds spent on opening, for the report."""

    dtype: torch.dtype | None = None
    cancel: threading.Event | None = None
    kept: bool = True
    headers_s: float = 0.0


def item(checkpoint: Checkpoint, name: str, part: Box | None = None) -> Item:
    """Return the tensor `name`, or `part` of it; raises `Permanent` where torch lacks its dtype."""
    file, entry = checkpoint.tensors[name]
    dtype, shape = dtypes.of(name, entry)
    if part is None:
        nbytes = entry.end - entry.begin
        one = (Run(entry.begin, 0, nbytes),) if nbytes else ()
        return Item(WantedTensor(name, file, nbytes, one), dtype, shape, ())
    nbytes = math.prod(part.shape) * dtype.itemsize
    found = tuple(runs(entry.begin, shape, dtype.itemsize, part))
    return Item(WantedTensor(name, file, nbytes, found), dtype, part.shape, part.residue)


def deliver(
    accelerator: Accelerator, checkpoint: Checkpoint, items: Iterable[Item], options: Options
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors, in the order of the files and of their bytes; raises `HoldfastError`."""
    began = time.perf_counter()
    by_name = {found.want.name: found for found in items}
    accelerator.check_room(_need(accelerator, by_name.values(), options))
    plan = _plan(accelerator, by_name.values(), options)
    planned_s = time.perf_counter() - began
    outcome, convert_s = LoadTotals(), 0.0
    ahead = None if options.kept and not _converts(by_name.values(), options) else _AHEAD
    with ExitStack() as stack:
        readers = []
        for file in checkpoint.files:
            readers.append(Reader(file, accelerator.settings))
            stack.callback(readers[-1].close)
        route = MethodChoice(accelerator, checkpoint.files, readers, options.cancel)
        for wanted, buffer in route.carry(plan, ahead, outcome):
            for placement in wanted.placements:
                found = by_name[placement.name]
                tensor = _view(buffer, placement, found)
                at = time.perf_counter()
                tensor = tensor.to(dtypes.wanted(found.dtype, options.dtype))
                convert_s += time.perf_counter() - at
                yield placement.name, tensor
                del tensor
            del buffer
        checkpoint.check()
    seconds = time.perf_counter() - began + options.headers_s
    tally = outcome.tally
    report.publish(
        LoadReport(
            path=str(checkpoint.files[0].path if len(checkpoint.files) == 1 else checkpoint.files[0].path.parent),
            device=str(accelerator.device),
            method=route.method,
            files=len(checkpoint.files),
            tensors=len(by_name),
            bytes=plan.nbytes,
            cold_bytes=tally.cold,
            direct_bytes=tally.direct,
            device_bytes=plan.device_bytes,
            seconds=seconds,
            stages=Stages(
                options.headers_s, planned_s, outcome.allocate_s, convert_s, tally.read_s, tally.copy_s, tally.wait_s
            ),
            bound=_bound(outcome, plan.nbytes),
        )
    )


def _view(buffer: torch.Tensor, placement: Placement, found: Item) -> torch.Tensor:
    if placement.nbytes == 0:
        tensor = torch.empty(found.shape, dtype=found.dtype, device=buffer.device)
    else:
        tensor = buffer[placement.offset : placement.offset + placement.nbytes].view(found.dtype).view(found.shape)
    return tensor[found.residue] if found.residue else tensor


def _plan(accelerator: Accelerator, items: Iterable[Item], options: Options) -> LoadPlan:
    settings = accelerator.settings
    end = settings.convert_range_bytes if _converts(items, options) else settings.range_bytes
    return make_plan([found.want for found in items], Sizes(settings.slot_bytes, end, settings.merge_gap))


def _need(accelerator: Accelerator, items: Collection[Item], options: Options) -> int:
    """Return the most bytes of the device that the loader itself keeps at once."""
    converts = _converts(items, options)
    raw = [found.want.nbytes + ALIGNMENT for found in items]
    settings = accelerator.settings
    end = settings.convert_range_bytes if converts else settings.range_bytes
    under_way = (_AHEAD + 2) * (end + max(raw, default=0))
    if not options.kept:
        return min(sum(raw), under_way)
    if not converts:
        return sum(raw)
    kept = sum(math.prod(i.shape) * dtypes.wanted(i.dtype, options.dtype).itemsize for i in items)
    return kept + min(sum(raw), under_way)


def _converts(items: Iterable[Item], options: Options) -> bool:
    return any(dtypes.wanted(found.dtype, options.dtype) != found.dtype for found in items)


def _bound(outcome: LoadTotals, nbytes: int) -> Bound:
    tally = outcome.tally
    if tally.wait_s >= max(tally.read_s, tally.copy_s):
        return Bound.PCIE
    return Bound.DISK if tally.cold * 2 > nbytes else Bound.COPY
