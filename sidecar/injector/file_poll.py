"""Detect changed files by polling.

Law: reports that something may have changed, never what. No inotify: the files come from ConfigMaps and Secrets, which
take the kubelet up to a minute, and a poll a second costs nothing and misses nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

_EVERY_S = 1.0


async def changes(*files: Path) -> AsyncIterator[None]:
    """Yield at once, and then whenever one of `files` (or the target of a symlink there) has changed."""
    before = None
    while True:
        now = [_signature(file) for file in files]
        if now != before:
            before = now
            yield
        await asyncio.sleep(_EVERY_S)


def _signature(file: Path) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
