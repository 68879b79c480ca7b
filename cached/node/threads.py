"""The one door from the event loop into blocking code: the store, and imports that take long.

Law: a bounded pool; a caller that is cancelled still waits for its step to end, so that no step runs unseen.
A step that was begun with `finish` counts even then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from cached.contract.program.limits import started_pool

P = ParamSpec("P")
T = TypeVar("T")


class Blocking:
    """A pool of `threads` threads; making it raises `Transient` (`no_thread`) where they cannot be had."""

    def __init__(self, threads: int) -> None:
        self._pool = started_pool(threads, "store")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` on a thread of the pool."""
        job = asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            raise

    async def finish(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` on a thread of the pool; what it did is done, so a cancellation meanwhile comes too late.

        Where it failed, the cancellation stands.
        """
        job = asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            if job.cancelled() or job.exception() is not None:
                raise
            return job.result()

    def close(self) -> None:
        """Wait for what runs and end the threads."""
        self._pool.shutdown()
