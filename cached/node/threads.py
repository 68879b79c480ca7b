"""The only way from the event loop into blocking code: the store, and slow imports.

Law: a bounded pool; a cancelled caller still waits for its call to end, so that no call runs unobserved. A call made
with `finish` returns its result even then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from cached.contract.program.thread_pool import start_pool

P = ParamSpec("P")
T = TypeVar("T")


class Blocking:
    """A pool of `threads` threads, all started at once; raises `Transient` (`no_thread`)."""

    def __init__(self, threads: int) -> None:
        self._pool = start_pool(threads, "store")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` on a thread of the pool and return its result."""
        job = asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            raise

    async def finish(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` on a thread of the pool and return its result, also if cancelled during a successful call."""
        job = asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            if job.cancelled() or job.exception() is not None:
                raise
            return job.result()

    def close(self) -> None:
        """Wait for running calls and end the threads."""
        self._pool.shutdown()
