"""Digests: `sha256:` and 64 lower-case hexadecimal digits, as the OCI image specification writes them. Law: pure."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple, Self

from cached.contract.errors import InvalidReference

_HEX = re.compile(r"[0-9a-f]{64}")
_PREFIX = "sha256:"
_REMEDY = "copy the digest that `holdfast publish` printed"


class _Digits(NamedTuple):
    hex: str


class Digest(_Digits):
    """A sha256 as 64 hexadecimal digits; `str()` returns the form with the prefix. A tuple for what `ModelRef` is one
    for."""

    __slots__ = ()

    def __new__(cls, hex: str) -> Self:
        if not _HEX.fullmatch(hex):
            raise InvalidReference(f"expected 64 lower-case hexadecimal digits, found {hex[:80]!r}", _REMEDY)
        return tuple.__new__(cls, (hex,))

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse `sha256:<64 hex>`. Raises `InvalidReference`."""
        if not text.startswith(_PREFIX):
            raise InvalidReference(f"expected a digest `sha256:<64 hexadecimal digits>`, found {text[:80]!r}", _REMEDY)
        return cls(text[len(_PREFIX) :])

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the digest of `data`."""
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def log_fields(self) -> dict[str, str]:
        """What an event of the log says of it."""
        return {"digest": str(self)}

    def __str__(self) -> str:
        return _PREFIX + self.hex


def is_hex(text: str) -> bool:
    """Return whether `text` is 64 lower-case hexadecimal digits."""
    return _HEX.fullmatch(text) is not None
