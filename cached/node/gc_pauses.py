"""When Python looks for garbage in cycles: never through all there is while bytes are fetched.

Law: a look through everything stops every thread for as long as it takes, a quarter of a second while a version of
10,000 files is fetched. So the young are looked through as ever, and everything only in a quiet moment, after which
what is left is looked through no more (`gc.freeze`); at the latest after ten minutes.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

_YOUNG = 5_000  # new objects, and ten times as many for those that have survived one look: 10 ms at most
_NEVER = 1_000_000_000
_LOOK_S = 30.0
_OVERDUE_S = 600.0


async def collect_when_quiet(busy: Callable[[], bool]) -> None:
    """Look for garbage until cancelled; `busy` tells whether a version is being fetched."""
    gc.set_threshold(_YOUNG, 10, _NEVER)
    collected = time.monotonic()
    gc.collect()
    gc.freeze()
    while True:
        await asyncio.sleep(_LOOK_S)
        grown = gc.get_count()[2] > 0  # looks through the young since, each of which has left some that live on
        if grown and (not busy() or time.monotonic() - collected > _OVERDUE_S):
            gc.collect()
            gc.freeze()
            collected = time.monotonic()
