"""A block of a test as an ordinary user, whom file modes bind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Run as an ordinary user for a `with` block; as who this is already, unless that is root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@contextmanager
def hidden_from_others(folder: Path) -> Iterator[None]:
    """Run as a user who may not look into `folder` for a `with` block."""
    mode = folder.stat().st_mode
    folder.chmod(0)
    try:
        with as_ordinary_user():
            yield
    finally:
        folder.chmod(mode)
