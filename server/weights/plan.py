"""Plan a load before a byte is read: which bytes are read from where, and where on the device they go.

Law: pure; no I/O, no torch. The target is a few large ranges of adjacent tensors, each at a multiple of 16 bytes (as
vector loads and cuBLAS need), whatever their offset in the file; where the file's spacing equals that, tensors are
copied in one go. A range ends at a tensor's end. Files are cut on a grid of the slot's size, so that O_DIRECT reads are
aligned and no byte is read twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple

from server.weights.format.selection import ByteRun, clip
from server.weights.settings import PAGE

ALIGNMENT = 16


@dataclass(frozen=True, slots=True)
class WantedTensor:
    """A tensor of `nbytes` to load as `name`: `runs` of the file number `file`, packed."""

    name: str
    file: int
    nbytes: int
    runs: tuple[ByteRun, ...]


class Read(NamedTuple):
    """Read the bytes `begin` to `end` of the file to `slot` in the slot, which is `begin` modulo the page size."""

    begin: int
    end: int
    slot: int


class Copy(NamedTuple):
    """Copy `rows` rows of `width` bytes, one every `pitch` from `slot` in the slot, packed to `target` in the range."""

    slot: int
    target: int
    width: int
    rows: int
    pitch: int


class Chunk(NamedTuple):
    """The content of one slot."""

    file: int
    reads: tuple[Read, ...]
    copies: tuple[Copy, ...]


class Placement(NamedTuple):
    """A tensor's place in its range."""

    want: WantedTensor
    offset: int


@dataclass(frozen=True)
class DeviceRange:
    """One allocation on the device, and how it is filled."""

    nbytes: int
    placements: tuple[Placement, ...]
    sizes: Sizes

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """The chunks that fill it, planned on first use: the first bytes move before the last are planned."""
        return tuple(_chunks(_segments(self.placements, self.sizes.gap_bytes), self.sizes.slot_bytes))


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`nbytes` is the sum of the tensors; the ranges together are slightly larger."""

    ranges: tuple[DeviceRange, ...]
    nbytes: int

    @property
    def device_bytes(self) -> int:
        return sum(each.nbytes for each in self.ranges)

    def count_chunks(self, most: int) -> int:
        """Count the chunks, up to `most`."""
        chunks = chain.from_iterable(each.chunks for each in self.ranges)
        return sum(1 for _ in islice(chunks, most))


@dataclass(frozen=True, slots=True)
class Sizes:
    """The size of a slot, the size at which a range ends, and the largest gap between reads that is read too."""

    slot_bytes: int
    range_bytes: int
    gap_bytes: int


class _Segment(NamedTuple):
    """A contiguous read of one file, and the runs it serves, with targets in the range."""

    file: int
    begin: int
    end: int
    runs: list[ByteRun]


def make_plan(wants: Iterable[WantedTensor], sizes: Sizes) -> LoadPlan:
    """Plan for `wants`, which are in the order of the files and of their bytes."""
    ranges: list[DeviceRange] = []
    placements: list[Placement] = []
    nbytes = total = 0
    for want in wants:
        offset = -(-nbytes // ALIGNMENT) * ALIGNMENT
        placements.append(Placement(want, offset))
        nbytes = offset + want.nbytes
        total += want.nbytes
        if nbytes >= sizes.range_bytes:
            ranges.append(DeviceRange(nbytes, tuple(placements), sizes))
            placements, nbytes = [], 0
    if placements:
        ranges.append(DeviceRange(nbytes, tuple(placements), sizes))
    return LoadPlan(tuple(ranges), total)


def _segments(placements: Iterable[Placement], gap: int) -> Iterator[_Segment]:
    current: _Segment | None = None
    for want, offset in placements:
        for run in chain.from_iterable(_readable(run, gap) for run in want.runs):
            moved = run._replace(target=run.target + offset)
            if current is not None and current.file == want.file and 0 <= run.begin - current.end <= gap:
                _append(current.runs, moved)
                current = current._replace(end=run.end)
            else:
                if current is not None:
                    yield current
                current = _Segment(want.file, run.begin, run.end, [moved])
    if current is not None:
        yield current


def _readable(run: ByteRun, gap: int) -> Iterator[ByteRun]:
    """Split rows that are far apart into reads of their own; keep close rows in one read with the bytes between."""
    if run.rows == 1 or run.pitch - run.width <= gap:
        yield run
    else:
        for row in range(run.rows):
            yield ByteRun(run.begin + row * run.pitch, run.target + row * run.width, run.width)


def _append(runs: list[ByteRun], run: ByteRun) -> None:
    last = runs[-1]
    behind = last.begin + last.width == run.begin and last.target + last.width == run.target
    if behind and last.rows == run.rows == 1:
        runs[-1] = last._replace(width=last.width + run.width)
    else:
        runs.append(run)


def _chunks(segments: Iterable[_Segment], size: int) -> Iterator[Chunk]:
    file, used = -1, 0
    reads: list[Read] = []
    copies: list[Copy] = []
    for piece in chain.from_iterable(_cut(segment, size) for segment in segments):
        slot = -(-used // PAGE) * PAGE + piece.begin % PAGE
        length = piece.end - piece.begin
        if reads and (piece.file != file or -(-(slot + length) // PAGE) * PAGE > size):
            yield Chunk(file, tuple(reads), tuple(copies))
            reads, copies, slot = [], [], piece.begin % PAGE
        file, used = piece.file, slot + length
        reads.append(Read(piece.begin, piece.end, slot))
        copies.extend(
            Copy(slot + run.begin - piece.begin, run.target, run.width, run.rows, run.pitch) for run in piece.runs
        )
    if reads:
        yield Chunk(file, tuple(reads), tuple(copies))


def _cut(segment: _Segment, size: int) -> Iterator[_Segment]:
    """Cut a segment on the grid in one pass over its runs, of which there may be 100 000."""
    only = segment.runs[0]
    if len(segment.runs) == 1 and only.rows == 1:  # adjacent tensors: nearly all of most checkpoints
        for at in range(segment.begin - segment.begin % size, segment.end, size):
            begin, end = max(at, segment.begin), min(at + size, segment.end)
            yield _Segment(segment.file, begin, end, [ByteRun(begin, only.target + begin - only.begin, end - begin)])
        return
    position, waiting = 0, []
    low = segment.begin
    while low < segment.end:
        high = min(segment.end, (low // size + 1) * size)
        while position < len(segment.runs) and segment.runs[position].begin < high:
            waiting.append(segment.runs[position])
            position += 1
        yield _Segment(segment.file, low, high, [part for run in waiting for part in clip(run, low, high)])
        waiting = [run for run in waiting if run.end > high]
        low = high
