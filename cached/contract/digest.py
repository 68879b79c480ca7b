"""Digests: `sha256:` and 64 lower-case hexadecimal digits, as the OCI image specification writes them. Law: pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cached.contract.errors import InvalidReference

_HEX = re.compile(r"[0-9a-f]{64}")
_PREFIX = "sha256:"
_REMEDY = "copy the digest that `holdfast publish` printed"


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 as 64 hexadecimal digits; `str()` returns the form with the prefix."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise InvalidReference(f"expected 64 lower-case hexadecimal digits, found {self.hex[:80]!r}", _REMEDY)

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

    def __hash__(self) -> int:
        return hash(self.hex)  # a str caches its hash, a tuple does not

    def __str__(self) -> str:
        return _PREFIX + self.hex


def is_hex(text: str) -> bool:
    """Return whether `text` is 64 lower-case hexadecimal digits."""
    return _HEX.fullmatch(text) is not None
