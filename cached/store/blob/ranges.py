"""A set of byte ranges, half-open, kept sorted and merged.

Law: pure; not thread-safe: its owner holds a lock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """Byte ranges `[start, end)` of one file."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Add `[start, end)`; overlapping and touching ranges merge."""
        if start >= end:
            return
        low = bisect_right(self._starts, start)
        if low and self._ends[low - 1] >= start:
            low -= 1
            start = self._starts[low]
        high = low
        while high < len(self._starts) and self._starts[high] <= end:
            end = max(end, self._ends[high])
            high += 1
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]

    def end_at(self, offset: int) -> int:
        """Return the end of the range that contains `offset`, or `offset` if none does."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._ends[index]) if index >= 0 else offset

    def missing(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of `[0, size)` that are not covered, in order."""
        position = 0
        for start, end in self:
            if position >= size:
                return
            if position < start:
                yield position, min(start, size)
            position = end
        if position < size:
            yield position, size

    def total(self) -> int:
        """Return the number of bytes covered."""
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __len__(self) -> int:
        return len(self._starts)
