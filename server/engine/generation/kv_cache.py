"""The KV cache of a batch whose rows join and leave: transformers' cache layers with spare columns.

Law: rows end at the same column; a shorter row has zero padding on the left, which the caller masks. A step writes one
column in place, where transformers' own layer copies everything. Every layer keeps all positions, also where the model
has a sliding window: the model's mask limits what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_DynamicLayer: Any = DynamicLayer  # its hook for subclasses is untyped

SPARE_COLUMNS = 128  # tokens that a batch can grow by before its cache is copied


class RoomyLayer(_DynamicLayer):  # type: ignore[misc]  # transformers' layers are untyped
    """One layer's keys and values, (rows, heads, columns, size), in the left part of larger buffers."""

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
            columns = end + SPARE_COLUMNS
            self._hold(_grown(self._key_room, begin, columns), _grown(self._value_room, begin, columns), begin)
        self._key_room[:, :, begin:end] = key_states
        self._value_room[:, :, begin:end] = value_states
        self._show(end)
        return self.keys, self.values

    def compose(self, kept: list[int], joining: Sequence[RoomyLayer], width: int) -> None:
        """Keep these rows and append those of `joining`, all `width` columns wide, cut or padded on the left."""
        parts = [(layer.keys, layer.values) for layer in joining]
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
    """A KV cache of roomy layers."""

    layers: list[RoomyLayer]  # type: ignore[assignment]  # narrower than the base class's

    def token_bytes(self) -> int:
        """Return the bytes of one more token of one row in all layers that hold tokens."""
        return sum(
            int(states.shape[1] * states.shape[3]) * states.element_size()
            for layer in self.layers
            if layer.is_initialized
            for states in (layer.keys, layer.values)
        )


def empty_cache(config: Any) -> RowCache | None:
    """Return a cache for a model of this config; None where no cache of several rows can be correct: layers hold more
    than keys and values (state spaces, convolutions), attention works on chunks of absolute columns, or the longest row
    decides the rotary positions of all rows."""
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
