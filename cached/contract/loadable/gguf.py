"""Where the tensors of a GGUF file end, by its header.

Law: reads the header in pieces and keeps none of it; what it does not know (another version, another byte order, a
newer type of value or tensor) it does not judge. Format: GGUF 2 and 3, ggml's docs/gguf.md;
sizes of tensor types: gguf-py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import prod

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_PIECE_BYTES = 1 << 20
_MAX_HEADER_BYTES = 256 << 20
_MAX_ITEMS = 8_000_000  # strings, which are walked one by one: a vocabulary has some 100,000
_ALIGNMENT = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_UINT32, _STRING, _ARRAY = 4, 8, 9
# Bytes of the values that have a size of their own, by type.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
# Numbers in a block, and its bytes, by tensor type.
_BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82)},
    **{23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)},
    **{34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18)},
}


class _Unknown(Exception):
    """A header that is not judged."""


class _Cut(Exception):
    """A header that goes beyond the file's end."""


def find_end(size: int, read: Callable[[int, int], bytes]) -> int | None:
    """Return how many bytes a file of `size` needs at least, None where that is not known. `read(offset, length)` gives
    its bytes. A header that does not end within the file needs one byte more than there are."""
    try:
        return _end(_Cursor(size, read))
    except _Unknown:
        return None
    except _Cut:
        return size + 1


class _Cursor:
    """A place in the header, and the piece of the file around it."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._read = read
        self._piece = b""
        self._start = 0  # of the piece in the file
        self.at = 0

    def take(self, length: int) -> bytes:
        offset = self.at - self._start
        if offset + length > len(self._piece):
            self._fill(length)
            offset = 0
        self.at += length
        return self._piece[offset : offset + length]

    def skip(self, length: int) -> None:
        self.at += length
        self._check()

    def number(self, layout: str) -> int:
        found: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return found

    def string(self) -> bytes:
        length = self.number("<Q")
        if length > 1 << 16:  # of names; longer values are skipped
            raise _Unknown
        return self.take(length)

    def skip_string(self) -> None:
        self.skip(self.number("<Q"))

    def _fill(self, length: int) -> None:
        if self.at + length > self._size:
            raise _Cut
        self._check()
        self._start = self.at
        self._piece = self._read(self.at, min(max(length, _PIECE_BYTES), self._size - self.at))
        if len(self._piece) < length:  # the file changes while it is read
            raise _Unknown

    def _check(self) -> None:
        if self.at > self._size:
            raise _Cut
        if self.at > _MAX_HEADER_BYTES:
            raise _Unknown


def _end(cursor: _Cursor) -> int:
    if cursor.take(4) != _MAGIC or cursor.number("<I") not in _VERSIONS:
        raise _Unknown
    tensors, values = cursor.number("<Q"), cursor.number("<Q")
    if max(tensors, values) > _MAX_ITEMS:
        raise _Unknown
    alignment = _DEFAULT_ALIGNMENT
    for _ in range(values):
        name, kind = cursor.string(), cursor.number("<I")
        if name == _ALIGNMENT.encode() and kind == _UINT32:
            alignment = cursor.number("<I")
        else:
            _skip_value(cursor, kind)
    ends = [_tensor_end(cursor) for _ in range(tensors)]
    if alignment < 1 or alignment & (alignment - 1):
        raise _Unknown
    return -(-cursor.at // alignment) * alignment + max(ends) if ends else cursor.at


def _skip_value(cursor: _Cursor, kind: int) -> None:
    if kind in _SCALARS:
        return cursor.skip(_SCALARS[kind])
    if kind == _STRING:
        return cursor.skip_string()
    if kind != _ARRAY:
        raise _Unknown
    inner, count = cursor.number("<I"), cursor.number("<Q")
    if inner in _SCALARS:
        return cursor.skip(count * _SCALARS[inner])
    if inner != _STRING or count > _MAX_ITEMS:
        raise _Unknown
    for _ in range(count):
        cursor.skip_string()
    return None


def _tensor_end(cursor: _Cursor) -> int:
    """Return where a tensor ends, from the first tensor's beginning."""
    cursor.skip_string()
    dimensions = cursor.number("<I")
    if dimensions > 8:
        raise _Unknown
    count = prod(cursor.number("<Q") for _ in range(dimensions))
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if kind not in _BLOCKS:
        return offset
    numbers, length = _BLOCKS[kind]
    return offset + count // numbers * length
