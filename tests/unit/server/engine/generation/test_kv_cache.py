from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from server.engine.generation.kv_cache import SPARE_COLUMNS, RoomLimit, RoomyLayer
from server.engine.generation.schedule import place_survivors

_HEADS, _SIZE = 2, 3
_LIMIT = RoomLimit(rows=6, tokens=6 * (SPARE_COLUMNS + 300))


@dataclass(eq=False)
class _Row:
    """The tokens that a row must hold, (heads, tokens, size)."""

    states: torch.Tensor


def _drawn(chance: random.Random, tokens: int) -> torch.Tensor:
    return torch.tensor([chance.random() for _ in range(_HEADS * tokens * _SIZE)]).view(_HEADS, tokens, _SIZE)


def _prefilled(chance: random.Random, lengths: list[int]) -> tuple[RoomyLayer, list[_Row]]:
    """A layer that read prompts together, padded on the left with other numbers."""
    rows = [_Row(_drawn(chance, length)) for length in lengths]
    width = max(lengths)
    states = torch.full((len(rows), _HEADS, width, _SIZE), 7.0)
    for number, row in enumerate(rows):
        states[number, :, width - lengths[number] :] = row.states
    layer = RoomyLayer()
    layer.update(states, -states)
    return layer, rows


def _decode(chance: random.Random, layer: RoomyLayer, rows: list[_Row]) -> None:
    added = torch.stack([_drawn(chance, 1) for _ in rows])
    layer.update(added, -added)
    for number, row in enumerate(rows):
        row.states = torch.cat([row.states, added[number]], dim=-2)


def _assert_holds(layer: RoomyLayer, rows: list[_Row]) -> None:
    assert layer.keys.shape[0] == len(rows)
    assert bool(layer.keys.isfinite().all()) and bool(layer.values.isfinite().all())
    for number, row in enumerate(rows):
        length = int(row.states.shape[-2])
        torch.testing.assert_close(layer.keys[number, :, -length:], row.states)
        torch.testing.assert_close(layer.values[number, :, -length:], -row.states)


@pytest.mark.parametrize("seed", range(8))
def test_rows_keep_their_numbers_while_others_join_and_leave(seed: int) -> None:
    """After any joins, leaves and steps each row ends with its own keys and values, padding is finite, and the buffers
    stay within their limit."""
    chance = random.Random(seed)
    layer, rows = RoomyLayer(), list[_Row]()
    for _ in range(60):
        stay = [number for number in range(len(rows)) if chance.random() > 0.15]
        most = _LIMIT.rows - len(stay)
        group = [chance.choice((1, 3, 9, 40, 150)) for _ in range(chance.randint(0, most))]
        if not stay and not group:
            continue
        joining = [_prefilled(chance, group)] if group else []
        joined = [chance.sample(range(len(new)), chance.randint(1, len(new))) for _, new in joining]
        kept = place_survivors(stay)
        rows = [rows[number] for number in kept]
        rows += [new[number] for (_, new), numbers in zip(joining, joined, strict=True) for number in numbers]
        width = max(int(row.states.shape[-2]) for row in rows)
        layers = [(other, numbers) for (other, _), numbers in zip(joining, joined, strict=True)]
        layer.compose(kept, layers, width, _LIMIT)
        assert layer.get_seq_length() == width
        assert layer.room_tokens <= _LIMIT.tokens
        for _ in range(chance.randint(0, 20)):
            _assert_holds(layer, rows)
            _decode(chance, layer, rows)
        if width > 250:
            layer, rows = RoomyLayer(), []


def test_a_row_that_leaves_moves_no_other() -> None:
    """Rows join and leave in the buffers that are there: nothing is copied but the row that fills the gap."""
    chance = random.Random(1)
    layer, (first, rows) = RoomyLayer(), _prefilled(chance, [9, 5, 7, 8])
    layer.compose([], [(first, [0, 1, 2, 3])], 9, _LIMIT)
    buffer = layer.keys.untyped_storage().data_ptr()
    layer.compose([0, 3, 2], [], 9, _LIMIT)
    joining, [new] = _prefilled(chance, [4])
    layer.compose([0, 1, 2], [(joining, [0])], 9, _LIMIT)
    assert layer.keys.untyped_storage().data_ptr() == buffer
    _assert_holds(layer, [rows[0], rows[3], rows[2], new])


def test_memory_of_many_long_rows_is_given_back() -> None:
    """Where one short row is left of several long ones, it gets buffers of its own size."""
    chance = random.Random(2)
    layer, (first, rows) = RoomyLayer(), _prefilled(chance, [2000, 2000, 2000, 10])
    layer.compose([], [(first, [0, 1, 2, 3])], 2000, RoomLimit(8, 20_000))
    assert layer.room_tokens >= 8000
    layer.compose([3], [], 10, RoomLimit(8, 20_000))
    assert layer.room_tokens <= 2 * (10 + SPARE_COLUMNS)
    _assert_holds(layer, [rows[3]])
