"""The sums that sources promise beside or in place of sha256, computed as the bytes arrive.

Law: pure. They find damage, and resist no forger. A pure Python CRC is no way: it would take minutes a GB.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from typing import Protocol

from cached.contract.errors import Permanent
from cached.core.listing import Algorithm

_PIECE_BYTES = 256 * 1024  # google_crc32c takes no writable memory: a piece is copied, within the processor's cache


class Hasher(Protocol):
    """The part of `hashlib`'s interface that a download needs."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


def new_hasher(algorithm: Algorithm) -> Hasher:
    """Return a hasher of nothing yet. Raises `Permanent` (`no_checksum_library`) where the library is missing."""
    if algorithm is Algorithm.SHA1:
        return hashlib.sha1(usedforsecurity=False)
    if algorithm is Algorithm.MD5:
        return hashlib.md5(usedforsecurity=False)
    if algorithm is Algorithm.CRC32:
        return _Crc(zlib.crc32, 8)
    return _Crc(_crc64nvme(), 16) if algorithm is Algorithm.CRC64NVME else _Crc(_crc32c(), 8)


class _Crc:
    def __init__(self, extend: Callable[[memoryview, int], int], digits: int) -> None:
        self._extend = extend
        self._digits = digits
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._extend(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:0{self._digits}x}"


def _crc32c() -> Callable[[memoryview, int], int]:
    try:
        import google_crc32c
    except ImportError as error:
        raise _missing("crc32c", "google-crc32c") from error
    if google_crc32c.implementation != "c":
        raise _missing("crc32c", "google-crc32c with its C part")
    extend: Callable[[int, bytes], int] = google_crc32c.extend

    def crc32c(data: memoryview, value: int) -> int:
        for at in range(0, len(data), _PIECE_BYTES):
            value = extend(value, bytes(data[at : at + _PIECE_BYTES]))
        return value

    return crc32c


def _crc64nvme() -> Callable[[memoryview, int], int]:
    try:
        from awscrt import checksums
    except ImportError as error:
        raise _missing("CRC64NVME", "awscrt") from error
    crc64nvme: Callable[[memoryview, int], int] = checksums.crc64nvme
    return crc64nvme


def _missing(algorithm: str, package: str) -> Permanent:
    return Permanent(
        "no_checksum_library",
        f"expected the Python package {package} to verify a {algorithm}, found none",
        f"install it: `pip install {package.partition(' ')[0]}`",
    )
