"""Files of JSON objects, one a line, which are appended to without care for what a crash left of the last line.

Law: reads only. A line that is no JSON object is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file, none where it is missing. Raises OSError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.splitlines():
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            yield document
