"""Blocking checks beside the event loop. Law: a thread that a disk or a library keeps does not keep the command."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from cached.contract.program import limits

T = TypeVar("T")


async def run_in_thread(work: Callable[[], T], timeout_s: float) -> T:
    """Return what `work` returns; raises what it raises, and TimeoutError after `timeout_s` seconds. Its thread is not
    waited for at the end of the process, as asyncio's own are."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            finish = partial(ended.set_result, work())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            _end(loop, ended, partial(ended.set_exception, error))
        else:
            _end(loop, ended, finish)

    limits.start_thread(threading.Thread(target=run, name="check", daemon=True), "a check")
    async with asyncio.timeout(timeout_s):
        return await ended


def _end(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[Any], finish: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: None if ended.done() else finish())
