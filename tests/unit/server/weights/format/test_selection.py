from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.weights.format.selection import Box, ByteRun, clip, find_box, iterate_runs

_ITEM = (
    st.integers(-5, 5)
    | st.slices(6)
    | st.just(...)
    | st.none()
    | st.booleans()
    | st.lists(st.integers(0, 1), min_size=1).map(torch.tensor)
)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(SHAPES, _ITEM | st.lists(_ITEM, max_size=4).map(tuple))
def test_the_bytes_of_a_box_are_those_torch_would_take(shape: tuple[int, ...], index: Any) -> None:
    """For any index torch accepts, reading the box's runs and applying the residue gives what torch gives."""
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)
    try:
        expected = tensor[index]
    except (IndexError, ValueError, TypeError):
        assert find_box(shape, index) is None
        return
    part = find_box(shape, index)
    if part is None:
        return
    flat = tensor.flatten()
    found = torch.zeros(torch.Size(part.shape).numel(), dtype=torch.int32)
    position = 0
    for run in iterate_runs(0, shape, 4, part):
        assert run.target == position * 4
        for row in range(run.rows):
            start, count = (run.begin + row * run.pitch) // 4, run.width // 4
            found[position : position + count] = flat[start : start + count]
            position += count
    assert position == len(found)
    result = found.view(part.shape)
    assert torch.equal(result[part.residue] if part.residue else result, expected)


@pytest.mark.parametrize(
    ("shape", "index", "expected"),
    [
        ((8, 16), slice(2, 4), [ByteRun(64, 0, 64)]),
        ((8, 16), (slice(None), slice(4, 8)), [ByteRun(8, 0, 8, 8, 32)]),
        ((2, 8, 16), (slice(None), slice(None), slice(4, 8)), [ByteRun(8, 0, 8, 16, 32)]),
        ((4, 8, 16), (slice(1, 3), slice(2, 4)), [ByteRun(320, 0, 64, 2, 256)]),
        ((8, 16), 3, [ByteRun(96, 0, 32)]),
    ],
)
def test_tensor_parallel_shares_are_few_runs(shape: tuple[int, ...], index: Any, expected: list[ByteRun]) -> None:
    """A share of rows is one stretch, a share of columns one strided run, of experts too."""
    part = find_box(shape, index)
    assert part is not None
    assert list(iterate_runs(0, shape, 2, part)) == expected


@given(st.integers(0, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.lists(st.integers(0, 130)))
def test_clipping_loses_nothing(begin: int, width: int, rows: int, gap: int, cuts: list[int]) -> None:
    """Cut anywhere, a run's bytes are all in the pieces, once."""
    run = ByteRun(begin, 0, width, rows, width + gap)
    whole_bytes = {run.begin + r * run.pitch + c: r * width + c for r in range(rows) for c in range(width)}
    found: dict[int, int] = {}
    for low, high in pairwise(sorted({0, run.end, *cuts})):
        for part in clip(run, low, high):
            for row in range(part.rows):
                for column in range(part.width):
                    at = part.begin + row * part.pitch + column
                    assert low <= at < high
                    assert at not in found
                    found[at] = part.target + row * part.width + column
    assert {at: target for at, target in found.items() if at in whole_bytes} == found
    assert found == {at: t for at, t in whole_bytes.items() if at < max([run.end, *cuts])}


def test_the_whole_tensor_is_one_run() -> None:
    """Without an index all axes collapse."""
    assert list(iterate_runs(10, (3, 4, 5), 2, Box((0, 0, 0), (3, 4, 5), ()))) == [ByteRun(10, 0, 120)]
