"""Signed URLs: their lifetime, from their own parameters, and the headers that a service gives with one.

Law: pure. Knows S3 and Google Cloud Storage (`X-Amz-`/`X-Goog-Date` with `-Expires`), CloudFront and older S3
(`Expires`, POSIX time) and Azure (`se`, ISO 8601).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")


def is_header(name: object, value: object) -> bool:
    """Return whether a service's answer names a header that can be sent (RFC 9110, 5.1 and 5.5)."""
    if not isinstance(name, str) or not isinstance(value, str) or not _HEADER_NAME.fullmatch(name):
        return False
    return value.isascii() and value.isprintable()


def lifetime_s(url: str, now: float) -> float | None:
    """Return the seconds from `now` (POSIX time, by the signer's clock) until `url` expires; 0 after that, None without
    parameters that state it."""
    try:
        given = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
        ends = [end for end in (_by_date(given), _by_time(given), _by_iso(given)) if end is not None]
    except (ValueError, OverflowError):
        return None
    return max(0.0, min(ends) - now) if ends else None


def _by_date(given: dict[str, str]) -> float | None:
    for prefix in ("x-amz", "x-goog"):
        at, seconds = given.get(f"{prefix}-date"), given.get(f"{prefix}-expires")
        if at is not None and seconds is not None:
            signed = datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return signed.timestamp() + int(seconds)
    return None


def _by_time(given: dict[str, str]) -> float | None:
    at = given.get("expires")
    # Only a number of this century's seconds is a time; the name has other uses.
    return float(at) if at is not None and at.isdecimal() and 10**9 <= int(at) < 10**11 else None


def _by_iso(given: dict[str, str]) -> float | None:
    at = given.get("se")
    if at is None or "sig" not in given:
        return None
    found = datetime.fromisoformat(at)
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
