"""The bytes of a tensor that an index needs: a box, as runs of rows, and the index that remains for the box.

Law: pure arithmetic on shapes; no I/O, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple


class ByteRun(NamedTuple):
    """`rows` rows of `width` bytes, one every `pitch` bytes from `begin` in the file, packed from `target` on."""

    begin: int
    target: int
    width: int
    rows: int = 1
    pitch: int = 0

    @property
    def end(self) -> int:
        """The end of the last row in the file."""
        return self.begin + (self.rows - 1) * self.pitch + self.width


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular part of a tensor: from `starts`, of `shape`. `residue` indexes it to give the requested part."""

    starts: tuple[int, ...]
    shape: tuple[int, ...]
    residue: tuple[int | slice, ...]


def find_box(shape: tuple[int, ...], index: object) -> Box | None:
    """Return the smallest box that contains `index` of a tensor of `shape`; None where the tensor must be indexed.

    Supports integers, slices with positive steps and `...`. What torch refuses, and its other indexes, need the tensor.
    """
    items = _expand(len(shape), index if isinstance(index, tuple) else (index,))
    if items is None or not all(_fits(length, item) for length, item in zip(shape, items, strict=True)):
        return None
    starts: list[int] = []
    lengths: list[int] = []
    residue: list[int | slice] = []
    for length, item in zip(shape, items, strict=True):
        if isinstance(item, slice):
            start, stop, step = item.indices(length)
            count = max(0, -(-(stop - start) // step))
            starts.append(start if count else 0)
            lengths.append((count - 1) * step + 1 if count else 0)
            residue.append(slice(None, None, step))
        else:
            starts.append(item % length)
            lengths.append(1)
            residue.append(0)
    plain = all(isinstance(item, slice) and item.step == 1 for item in residue)
    return Box(tuple(starts), tuple(lengths), () if plain else tuple(residue))


def _expand(rank: int, items: tuple[object, ...]) -> tuple[int | slice, ...] | None:
    """Return one integer or slice for each of `rank` axes."""
    dots = [at for at, item in enumerate(items) if item is ...]
    missing = rank - len(items) + len(dots)
    if len(dots) > 1 or missing < 0:
        return None
    at = dots[0] if dots else len(items)
    full: tuple[object, ...] = (*items[:at], *(slice(None),) * missing, *items[at + len(dots) :])
    plain = tuple(item for item in full if type(item) is int or type(item) is slice)
    return plain if len(plain) == rank else None


def _fits(length: int, item: int | slice) -> bool:
    if isinstance(item, int):
        return -length <= item < length
    if not all(value is None or type(value) is int for value in (item.start, item.stop, item.step)):
        return False
    return item.step is None or item.step > 0


def iterate_runs(begin: int, shape: tuple[int, ...], itemsize: int, part: Box) -> Iterator[ByteRun]:
    """Yield the bytes of `part` of a tensor that begins at byte `begin`, in file order."""
    if math.prod(part.shape) == 0:
        return
    strides = [itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = begin + sum(start * stride for start, stride in zip(part.starts, strides, strict=True))
    width = itemsize
    levels: list[tuple[int, int]] = []  # (count, stride in bytes), the innermost first
    for count, stride in zip(reversed(part.shape), reversed(strides), strict=True):
        if count == 1:
            continue
        if not levels and stride == width:
            width *= count
        elif levels and stride == levels[-1][0] * levels[-1][1]:
            levels[-1] = (levels[-1][0] * count, levels[-1][1])
        else:
            levels.append((count, stride))
    rows, pitch = levels[0] if levels else (1, 0)
    target = 0
    for place in product(*(range(count) for count, _ in reversed(levels[1:]))):
        offset = sum(number * stride for number, (_, stride) in zip(place, reversed(levels[1:]), strict=True))
        yield ByteRun(first + offset, target, width, rows, pitch)
        target += width * rows


def clip(run: ByteRun, low: int, high: int) -> Iterator[ByteRun]:
    """Yield the parts of `run` between the bytes `low` and `high` of the file: at most three."""
    if run.rows == 1:
        begin, end = max(run.begin, low), min(run.begin + run.width, high)
        if begin < end:
            yield ByteRun(begin, run.target + begin - run.begin, end - begin)
        return
    first = max(0, -(-(low - run.begin) // run.pitch))  # the first row that begins at or after `low`
    last = min(run.rows, max(0, (high - run.begin - run.width) // run.pitch + 1))  # the first that does not fit
    if 0 < first <= run.rows:
        yield from clip(_rows(run, first - 1, first), low, high)
    if last > first:
        yield _rows(run, first, last)
    if max(first, last) < run.rows:
        yield from clip(_rows(run, max(first, last), max(first, last) + 1), low, high)


def _rows(run: ByteRun, first: int, last: int) -> ByteRun:
    begin, target = run.begin + first * run.pitch, run.target + first * run.width
    if last - first == 1:
        return ByteRun(begin, target, run.width)
    return ByteRun(begin, target, run.width, last - first, run.pitch)
