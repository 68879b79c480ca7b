"""A folder in memory, for tests that write thousands of small files and are not about the disk.

Law: on a disk each such file costs a sync or two and a deletion, and other tests' syncs are waited for too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = "/dev/shm"
_LEAST_BYTES = 512 << 20  # a container may have 64 MiB: the disk is used there


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Return a new folder for the block: in memory where there is enough, else with the other temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-", dir=_MEMORY if _has_room() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _has_room() -> bool:
    try:
        found = os.statvfs(_MEMORY)
    except FileNotFoundError:
        return False
    return os.access(_MEMORY, os.W_OK) and found.f_bavail * found.f_frsize >= _LEAST_BYTES
