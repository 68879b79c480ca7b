"""The shapes of docs/reference/json.md, and the comparison of a document with one.

Law: every key of the shape, and no other, unless the caller names it; null where the shape says so, and for lists and
objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from tests.support.daemon import REPOSITORY

_TYPES: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
}


def read_shapes() -> dict[str, Any]:
    """The shape of each section, by its heading."""
    text = (REPOSITORY / "docs" / "reference" / "json.md").read_text(encoding="utf-8")
    found = re.findall(r"^## (.+?)\n.*?```json\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    return {heading: json.loads(shape) for heading, shape in found}


def find_difference(found: Any, shape: Any, *, absent: Collection[str] = (), where: str = "") -> str | None:
    """What is not as the shape says; `absent`: keys of the top object that need not be there."""
    if isinstance(shape, str):
        allowed = shape.split(" or ")
        if found is None:
            return None if "null" in allowed else f"{where}: null"
        if isinstance(found, bool) and "boolean" not in allowed:
            return f"{where}: {found!r} is no {shape}"
        kinds = [_TYPES[name] for name in allowed if name != "null"]
        return None if any(isinstance(found, kind) for kind in kinds) else f"{where}: {found!r} is no {shape}"
    if found is None:
        return None
    if isinstance(shape, list):
        if not isinstance(found, list):
            return f"{where}: {found!r} is no list"
        return next(filter(None, (find_difference(each, shape[0], where=f"{where}[]") for each in found)), None)
    if not isinstance(found, dict):
        return f"{where}: {found!r} is no object"
    if "*" in shape:
        return next(filter(None, (find_difference(each, shape["*"], where=where) for each in found.values())), None)
    if unknown := found.keys() - shape.keys():
        return f"{where}: {sorted(unknown)} are not documented"
    if missing := shape.keys() - found.keys() - set(absent):
        return f"{where}: {sorted(missing)} are missing"
    differences = (find_difference(found[key], shape[key], where=f"{where}.{key}") for key in found)
    return next(filter(None, differences), None)
