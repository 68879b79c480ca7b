"""Ranges are the set of bytes that was added, whatever the order."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cached.store.blob.ranges import Ranges

_pairs = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)))


def _bytes_of(pairs: list[tuple[int, int]]) -> set[int]:
    return {byte for start, end in pairs for byte in range(start, end)}


@given(_pairs)
def test_they_are_the_union_of_what_was_added(pairs: list[tuple[int, int]]) -> None:
    """Sorted, merged and never touching, they cover exactly what was added."""
    ranges = Ranges(pairs)
    found = list(ranges)
    assert _bytes_of(found) == _bytes_of(pairs)
    assert ranges.total() == len(_bytes_of(pairs))
    assert len(ranges) == len(found)
    assert all(start < end for start, end in found)
    assert all(end < start for (_, end), (start, _) in pairwise(found))


@given(_pairs, st.integers(0, 45))
def test_missing_is_the_rest(pairs: list[tuple[int, int]], size: int) -> None:
    """What is covered and what is missing make the whole, and do not overlap."""
    missing = list(Ranges(pairs).missing(size))
    assert _bytes_of(missing) == set(range(size)) - _bytes_of(pairs)
    assert all(start < end for start, end in missing)


@given(_pairs, st.integers(0, 45))
def test_end_at_follows_the_contiguous_front(pairs: list[tuple[int, int]], offset: int) -> None:
    """From a byte on, everything up to `end_at` is there, and the next byte is not."""
    covered = _bytes_of(pairs)
    end = Ranges(pairs).end_at(offset)
    assert set(range(offset, end)) <= covered
    assert end not in covered
