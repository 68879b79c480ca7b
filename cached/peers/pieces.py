"""The pieces of one version: its large blobs, cut into 32 MiB, under one running number.

Law: pure. The numbers and the key follow from the blobs' digests and sizes alone, so that all nodes agree on them
without asking each other. A piece is also a segment of the byte engine: one ranged request.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from cached.contract.digest import is_hex
from cached.peers.bits import all_bits

PIECE_BYTES = 32 * 1024 * 1024
MAX_PIECES = 1 << 17  # 4 TiB: a bitmap of 16 KiB
MAX_BLOBS = 4096
_KEY_PREFIX = b"holdfast.dev/pieces/v1\n"


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes `[start, end)` of the blob with this sha256."""

    sha256: str
    start: int
    end: int


class PieceMap:
    """The pieces of a set of blobs. `key` names the set, `count` is the number of pieces."""

    def __init__(self, blobs: Iterable[tuple[str, int]]) -> None:
        """`blobs`: (sha256 as 64 hex digits, size in bytes above 0), in any order. Raises ValueError beyond the
        bounds."""
        self.blobs = tuple(sorted(set(blobs)))
        self._numbers: dict[str, tuple[int, int]] = {}
        self._firsts: list[int] = []
        digest = hashlib.sha256(_KEY_PREFIX)
        count = 0
        for sha256, size in self.blobs:
            if not is_hex(sha256) or size < 1 or sha256 in self._numbers:
                raise ValueError(f"expected blobs by sha256, each with one size above 0, found {sha256!r}, {size}")
            digest.update(f"{sha256} {size}\n".encode())
            pieces = -(-size // PIECE_BYTES)
            self._numbers[sha256] = count, pieces
            self._firsts.append(count)
            count += pieces
        if not 0 < count <= MAX_PIECES or len(self.blobs) > MAX_BLOBS:
            raise ValueError(
                f"expected 1 to {MAX_PIECES} pieces of at most {MAX_BLOBS} blobs, found {count} of {len(self.blobs)}"
            )
        self.count = count
        self.key = digest.hexdigest()

    def find(self, number: int) -> Piece:
        """Return the bytes of a piece; raises IndexError beyond the last."""
        if not 0 <= number < self.count:
            raise IndexError(number)
        at = bisect_right(self._firsts, number) - 1
        sha256, size = self.blobs[at]
        start = (number - self._firsts[at]) * PIECE_BYTES
        return Piece(sha256, start, min(start + PIECE_BYTES, size))

    def number_at(self, sha256: str, offset: int) -> int:
        """Return the number of the piece with this byte of a blob; raises KeyError for another blob."""
        first, pieces = self._numbers[sha256]
        number = offset // PIECE_BYTES
        if not 0 <= number < pieces:
            raise KeyError(offset)
        return first + number

    def pieces_of(self, sha256: str) -> int:
        """Return the set of a blob's pieces; raises KeyError for another blob."""
        first, pieces = self._numbers[sha256]
        return all_bits(pieces) << first
