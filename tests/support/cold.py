"""Files out of the page cache, and how much of one is in it."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import pytest

from server.weights.host.page_cache import count_cached
from server.weights.settings import PAGE

_TRIES = 30


def drop(path: Path) -> None:
    """Take the file out of the page cache; skips where that does not work."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # dirty pages cannot be dropped
        for _ in range(_TRIES):  # nor pages that are mapped, or on their way from the disk
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            if count_cached(descriptor, 0, path.stat().st_size) == 0:
                return
            gc.collect()
            time.sleep(0.1)
        pytest.skip("this file system keeps its pages")
    except OSError as error:
        pytest.skip(f"cachestat: {error.strerror}")
    finally:
        os.close(descriptor)


def cached(path: Path) -> float:
    """The share of the file that is in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return count_cached(descriptor, 0, path.stat().st_size) * PAGE / path.stat().st_size
    finally:
        os.close(descriptor)
