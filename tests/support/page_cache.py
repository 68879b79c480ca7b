"""Files out of the page cache.

Law: imports nothing of Holdfast. Benchmarks use it, and tests in a virtual machine without `server` and `bench`.
"""

from __future__ import annotations

import os
from pathlib import Path


def drop_pages(path: Path) -> None:
    """Drop a file's clean, unmapped pages from the page cache: the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
