"""Sets of piece numbers as integers: bit `n` is piece `n`.

Law: pure. Python's integers join and subtract thousands of bits in a fraction of a microsecond; a bitmap on the wire is
little-endian bytes of a fixed length.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator


def all_bits(count: int) -> int:
    """Return the set of the numbers below `count`."""
    return (1 << count) - 1


def set_of(numbers: Iterable[int]) -> int:
    """Return the set of these numbers."""
    found = 0
    for number in numbers:
        found |= 1 << number
    return found


def numbers_in(bits: int) -> Iterator[int]:
    """Yield the numbers of a set, in order."""
    while bits:
        low = bits & -bits
        yield low.bit_length() - 1
        bits ^= low


def lowest(bits: int) -> int:
    """Return the lowest number of a set that is not empty."""
    return (bits & -bits).bit_length() - 1


def pick(bits: int, rng: random.Random) -> int:
    """Return a number of a set that is not empty: the first one from a random place between its ends."""
    low = lowest(bits)
    rest = bits >> (low + int(rng.random() * (bits.bit_length() - low)))
    return bits.bit_length() - rest.bit_length() + lowest(rest)


def encode(bits: int, count: int) -> bytes:
    """Return the bitmap of a set of numbers below `count`."""
    return bits.to_bytes((count + 7) // 8, "little")


def decode(data: bytes, count: int) -> int:
    """Return the set of a bitmap. Raises ValueError if its length is not that of `count` pieces, or a bit beyond is
    set."""
    if len(data) != (count + 7) // 8:
        raise ValueError(f"expected a bitmap of {(count + 7) // 8} bytes for {count} pieces, found {len(data)} bytes")
    bits = int.from_bytes(data, "little")
    if bits >> count:
        raise ValueError(f"expected {count} pieces, found a bit for piece {bits.bit_length() - 1}")
    return bits
