"""The KV cache of a batch whose rows join and leave: transformers' cache layers in roomy buffers.

Law: rows end at the same column; a shorter row has padding on the left, which the caller masks and whose numbers are
finite. A step writes one column in place, where transformers' own layer copies everything; a row joins or leaves in
place where the buffers have room, so that the others' keys and values are not copied. Every layer keeps all positions,
also where the model has a sliding window: the model's mask limits what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_DynamicLayer: Any = DynamicLayer  # its hook for subclasses is untyped

SPARE_COLUMNS = 128  # tokens that a batch can grow by before its cache is copied


@dataclass(frozen=True, slots=True)
class RoomLimit:
    """The most rows of a batch, and the most columns of all its rows together."""

    rows: int
    tokens: int


_MOST_SPARE = 4  # times the columns in use, of all rows: beyond it the buffers are given back


class RoomyLayer(_DynamicLayer):  # type: ignore[misc]  # transformers' layers are untyped
    """One layer's keys and values, (rows, heads, columns, size), in the first rows and some columns of larger buffers.
    `columns`: those that the buffers have room for from the start."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, columns: int = 0) -> None:
        super().__init__()
        self._least_columns = columns
        self._begin = self._end = 0  # of the columns in use

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        added = int(key_states.shape[-2])
        if not self.is_initialized:
            if added >= self._least_columns:  # a prompt read at once: its states are the buffers
                self._hold(key_states, value_states, int(key_states.shape[0]), 0, added)
                return self.keys, self.values
            shape = (int(key_states.shape[0]), self._least_columns)
            self._hold(_room(key_states, *shape), _room(value_states, *shape), shape[0], 0, 0)
        rows, begin, end = int(self.keys.shape[0]), self._end, self._end + added
        if end > self._key_room.shape[-2]:
            columns = begin - self._begin
            wide = columns + added + SPARE_COLUMNS
            grown = [_placed(_room(old, rows, wide), old, columns) for old in (self.keys, self.values)]
            self._hold(grown[0], grown[1], rows, 0, columns)
            begin, end = columns, columns + added
        self._key_room[:rows, :, begin:end] = key_states
        self._value_room[:rows, :, begin:end] = value_states
        self._show(rows, self._begin, end)
        return self.keys, self.values

    def compose(self, kept: Sequence[int], joining: Sequence[JoiningLayer], width: int, limit: RoomLimit) -> None:
        """Make row i what row `kept[i]` was, and append those of `joining`; all are then `width` columns wide, cut or
        padded on the left. A row of `kept` stays where it is or comes from behind `kept`. The buffers stay
        within `limit`."""
        rows = len(kept) + sum(len(numbers) for _, numbers in joining)
        if not self._has_room(rows, width, limit):
            self._rebuild(kept, joining, rows, width, limit)
            return
        moved = [row for row, source in enumerate(kept) if row != source]
        begin = self._end - width
        for room in (self._key_room, self._value_room):
            if moved:
                room[moved, :, begin : self._end] = room[[kept[row] for row in moved], :, begin : self._end]
            if begin < self._begin:
                room[: len(kept), :, begin : self._begin] = 0
        self._join(joining, len(kept), begin)
        self._show(rows, begin, self._end)

    def get_seq_length(self) -> int:
        return self._end - self._begin

    @property
    def room_tokens(self) -> int:
        """The columns of all rows that the buffers have."""
        return int(self._key_room.shape[0] * self._key_room.shape[-2]) if self.is_initialized else 0

    def _has_room(self, rows: int, width: int, limit: RoomLimit) -> bool:
        if not self.is_initialized or rows > self._key_room.shape[0] or width > self._end:
            return False
        return self.room_tokens <= min(limit.tokens, _MOST_SPARE * rows * (width + SPARE_COLUMNS))

    def _rebuild(
        self, kept: Sequence[int], joining: Sequence[JoiningLayer], rows: int, width: int, limit: RoomLimit
    ) -> None:
        """Copy the rows into buffers with room for as many again, where `limit` allows it."""
        columns = width + SPARE_COLUMNS
        most_rows = max(rows, min(2 * rows, limit.rows, limit.tokens // columns))
        like = (self.keys, self.values) if kept else (joining[0][0].keys, joining[0][0].values)
        rooms = [_room(states, most_rows, columns) for states in like]
        if kept:
            for room, states in zip(rooms, like, strict=True):
                _pad_left(room[: len(kept), :, :width], _rows(states, kept))
        self._hold(rooms[0], rooms[1], rows, 0, width)
        self._join(joining, len(kept), 0)

    def _join(self, joining: Sequence[JoiningLayer], row: int, begin: int) -> None:
        """Write the rows of `joining` into the columns in use from `begin` on, from row number `row` on."""
        for layer, numbers in joining:
            below = row + len(numbers)
            for room, states in ((self._key_room, layer.keys), (self._value_room, layer.values)):
                _pad_left(room[row:below, :, begin : self._end], _rows(states, numbers))
            row = below

    def _hold(self, key_room: torch.Tensor, value_room: torch.Tensor, rows: int, begin: int, end: int) -> None:
        self._key_room, self._value_room = key_room, value_room
        self.dtype, self.device = key_room.dtype, key_room.device
        self._show(rows, begin, end)
        self.is_initialized = True

    def _show(self, rows: int, begin: int, end: int) -> None:
        self._begin, self._end = begin, end
        self.keys = self._key_room[:rows, :, begin:end]
        self.values = self._value_room[:rows, :, begin:end]


JoiningLayer = tuple[RoomyLayer, Sequence[int]]  # a layer, and the numbers of its rows that join


class RowCache(Cache):
    """A KV cache of roomy layers."""

    layers: list[RoomyLayer]  # type: ignore[assignment]  # narrower than the base class's

    @property
    def room_tokens(self) -> int:
        """The tokens that the buffers have memory for, padding included. Any thread may call it."""
        return self.layers[0].room_tokens

    def token_bytes(self) -> int:
        """Return the bytes of one more token of one row in all layers that hold tokens."""
        return sum(
            int(states.shape[1] * states.shape[3]) * states.element_size()
            for layer in self.layers
            if layer.is_initialized
            for states in (layer.keys, layer.values)
        )


def empty_cache(config: Any, columns: int = 0) -> RowCache | None:
    """Return a cache for a model of this config, with room for `columns` from the start; None where no cache of several
    rows can be correct: layers hold more than keys and values (state spaces, convolutions), attention works on chunks
    of absolute columns, or the longest row decides the rotary positions of all rows."""
    text_config = config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    chunked = getattr(text_config, "attention_chunk_size", None) is not None
    if not layers or not plain or chunked or _by_longest(getattr(text_config, "rope_parameters", None)):
        return None
    return RowCache(layers=[RoomyLayer(columns) for _ in layers])


def _by_longest(rope: Any) -> bool:
    if not isinstance(rope, dict):
        return False
    return rope.get("rope_type") in ("dynamic", "longrope") or any(map(_by_longest, rope.values()))


def _room(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Return a buffer of any numbers: on a CPU zeros would touch, and so take, all of its memory."""
    return like.new_empty((rows, like.shape[1], columns, like.shape[3]))


def _placed(room: torch.Tensor, states: torch.Tensor, columns: int) -> torch.Tensor:
    room[:, :, :columns] = states
    return room


def _rows(states: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """Return these rows; a copy only where they are not the first ones in order."""
    in_order = all(row == number for row, number in enumerate(numbers))
    return states[: len(numbers)] if in_order else states[list(numbers)]


def _pad_left(room: torch.Tensor, states: torch.Tensor) -> None:
    """Write states at the right of a part of a buffer, cut on the left or padded with zeros there."""
    wide, width = int(states.shape[-2]), int(room.shape[-2])
    columns = min(wide, width)
    room[:, :, : width - columns] = 0
    room[:, :, width - columns :] = states[:, :, wide - columns :]
