"""The keys and values of a batch whose rows come and go: transformers' cache layers with room to spare.

Law: rows end at the same column; a shorter row's columns on the left are padding, zero, and masked by whoever calls.
A step writes one column in place: transformers' own layer copies everything at each. Every layer keeps all positions,
also where the model looks at a window of them: the model's mask says what it sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_DynamicLayer: Any = DynamicLayer  # its hook for subclasses is untyped

SPARE_COLUMNS = 128  # tokens a batch can grow by before it is copied once


class RoomyLayer(_DynamicLayer):  # type: ignore[misc]  # transformers' layers are untyped
    """One layer's keys and values, (rows, heads, columns, size), at the left of larger buffers."""

    keys: torch.Tensor
    values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        rows = key_states.shape[0]
        self._hold(_room(key_states, rows, SPARE_COLUMNS), _room(value_states, rows, SPARE_COLUMNS), 0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin = self._columns
        end = begin + key_states.shape[-2]
        if end > self._key_room.shape[-2]:
            self._hold(
                _grown(self._key_room, begin, end + SPARE_COLUMNS),
                _grown(self._value_room, begin, end + SPARE_COLUMNS),
                begin,
            )
        self._key_room[:, :, begin:end] = key_states
        self._value_room[:, :, begin:end] = value_states
        self._show(end)
        return self.keys, self.values

    def compose(self, kept: list[int], newcomers: Sequence[RoomyLayer], width: int) -> None:
        """Keep these rows, add the newcomers' after them, all `width` columns wide, cut or padded on the left."""
        parts = [(layer.keys, layer.values) for layer in newcomers]
        if kept:
            parts.insert(0, (self.keys[kept], self.values[kept]))
        rows = sum(int(keys.shape[0]) for keys, _ in parts)
        key_room = _room(parts[0][0], rows, width + SPARE_COLUMNS)
        value_room = _room(parts[0][1], rows, width + SPARE_COLUMNS)
        row = 0
        for keys, values in parts:
            columns = min(width, keys.shape[-2])
            below = row + keys.shape[0]
            key_room[row:below, :, width - columns : width] = keys[:, :, keys.shape[-2] - columns :]
            value_room[row:below, :, width - columns : width] = values[:, :, values.shape[-2] - columns :]
            row = below
        self._hold(key_room, value_room, width)

    def get_seq_length(self) -> int:
        return self._columns if self.is_initialized else 0

    def _hold(self, key_room: torch.Tensor, value_room: torch.Tensor, columns: int) -> None:
        self._key_room, self._value_room = key_room, value_room
        self.dtype, self.device = key_room.dtype, key_room.device
        self._show(columns)
        self.is_initialized = True

    def _show(self, columns: int) -> None:
        self._columns = columns
        self.keys = self._key_room[:, :, :columns]
        self.values = self._value_room[:, :, :columns]


class RowCache(Cache):
    """A cache of roomy layers."""

    layers: list[RoomyLayer]  # type: ignore[assignment]  # narrower than any cache's

    def token_bytes(self) -> int:
        """Bytes that one more token of one row takes in all layers that were read into."""
        return sum(
            int(states.shape[1] * states.shape[3]) * states.element_size()
            for layer in self.layers
            if layer.is_initialized
            for states in (layer.keys, layer.values)
        )


def empty_cache(config: Any) -> RowCache | None:
    """A cache for a model of this config, or None where one for several rows cannot be right.

    That is so where layers hold other things than keys and values (state spaces, convolutions), where attention goes
    by chunks of absolute columns, and where the longest row decides how all rows' positions are turned.
    """
    text_config = config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    chunked = getattr(text_config, "attention_chunk_size", None) is not None
    if not layers or not plain or chunked or _by_longest(getattr(text_config, "rope_parameters", None)):
        return None
    return RowCache(layers=[RoomyLayer() for _ in layers])


def _by_longest(rope: Any) -> bool:
    if not isinstance(rope, dict):
        return False
    return rope.get("rope_type") in ("dynamic", "longrope") or any(map(_by_longest, rope.values()))


def _room(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return like.new_zeros((rows, like.shape[1], columns, like.shape[3]))


def _grown(room: torch.Tensor, used: int, columns: int) -> torch.Tensor:
    grown = _room(room, room.shape[0], columns)
    grown[:, :, :used] = room[:, :, :used]
    return grown
