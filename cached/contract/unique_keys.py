"""JSON objects that name no key twice. Readers take such an object differently: the first value, the last, or none."""

from __future__ import annotations

from typing import Any


class DuplicateKey(ValueError):
    """An object of a JSON document names a key twice."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dict of an object (`json.loads(…, object_pairs_hook=unique_keys)`). Raises `DuplicateKey`."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DuplicateKey(f"the key {name[:200]!r} is there twice")
            seen.add(name)
    return found
