"""Run Python's full garbage collections between fetches.

Law: a full collection stops every thread, for a quarter of a second while a version of 10,000 files is fetched. So
young generations are collected as usual, all objects only while nothing is fetched, or after ten minutes; the
survivors are then exempt (`gc.freeze`). A start collects nothing: the first collection comes with the first check.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import time
from collections.abc import Callable

_YOUNG = 5_000  # new objects, and ten times as many for the second generation: 10 ms at most
_NEVER = 1_000_000_000
_FIRST_S = 5.0
_CHECK_S = 30.0
_OVERDUE_S = 600.0


async def collect_when_quiet(busy: Callable[[], bool]) -> None:
    """Collect garbage until cancelled; `busy` returns whether a version is being fetched."""
    gc.set_threshold(_YOUNG, 10, _NEVER)
    collected, is_first = time.monotonic(), True
    gc.freeze()
    gc.enable()
    while True:
        await asyncio.sleep(_FIRST_S if is_first else _CHECK_S)
        grown = is_first or gc.get_count()[2] > 0  # collections of the second generation since, each with survivors
        if grown and (not busy() or time.monotonic() - collected > _OVERDUE_S):
            if is_first:
                gc.unfreeze()  # the garbage of the imports too
            is_first = False
            gc.collect()
            gc.freeze()
            give_back()
            collected = time.monotonic()


def give_back() -> None:
    """Return the free pages of the C library's heaps to the system, where it can (malloc_trim(3) is glibc's): each
    thread has a heap of its own, and what a start or a fetch took there would stay."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
