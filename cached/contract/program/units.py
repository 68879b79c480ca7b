"""Sizes, rates, durations and counts in text: `512MiB`, `2TB`, `200MiB/s`, `15m`, `3 files`.

Law: pure. IEC prefixes are powers of 1024, SI prefixes powers of 1000.
"""

from __future__ import annotations

import re
from fractions import Fraction

_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kKMGTP]?)(i?)(B?)")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_size(text: str) -> int:
    """Parse a size in bytes. Raises ValueError with an example."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"expected a size such as 512MiB, 2TB or 1048576 (bytes), found {text!r}")
    return int(Fraction(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].upper()])


def parse_rate(text: str) -> int:
    """Parse a rate in bytes a second, as `200MiB/s`. Raises ValueError with an example."""
    size, slash, second = text.strip().partition("/")
    if slash and second != "s":
        raise ValueError(f"expected a rate such as 200MiB/s, found {text!r}")
    return parse_size(size)


def parse_duration(text: str) -> float:
    """Parse a duration above 0, as `90s`, `15m`, `6h` or `1d`, in seconds. Raises ValueError with an example."""
    match = _DURATION.fullmatch(text.strip())
    seconds = 0.0 if match is None else float(match[1]) * _SECONDS[match[2]]
    if seconds <= 0:
        raise ValueError(f"expected a duration above 0 such as 90s, 15m, 6h or 1d, found {text!r}")
    return seconds


def format_size(size: float) -> str:
    """Format bytes for a person: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Format seconds for a person: `8s`, `3m05s`, `2h10m`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Format a number of things for a person: `1 file`, `2 files`; `plural` where an s is not enough."""
    return f"{count} {noun if count == 1 else plural or f'{noun}s'}"
