"""Calls from the event loop reuse idle threads, and none waits for another."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread


def _thread(_: Cancellation) -> int:
    return threading.get_ident()


async def test_successive_calls_share_a_thread() -> None:
    """A thread whose call has ended takes the next one."""
    first = await call_in_thread(_thread)
    for _ in range(100):
        await asyncio.sleep(0.001)
        if await call_in_thread(_thread) == first:
            return
    raise AssertionError("each call got a new thread")


async def test_hung_calls_delay_no_other() -> None:
    """However many calls hang, another one is made; a cancelled caller continues at once."""
    release, hanging = threading.Event(), threading.Barrier(41)

    def hang(_: Cancellation) -> None:
        hanging.wait(30)
        release.wait(30)

    tasks = [asyncio.create_task(call_in_thread(hang)) for _ in range(40)]
    await asyncio.to_thread(hanging.wait, 30)
    assert await call_in_thread(_thread) != threading.get_ident()
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*tasks, return_exceptions=True)
    )
    release.set()


async def test_an_idle_thread_keeps_no_result() -> None:
    """The result of a call, a listing of thousands of files, say, lives no longer than its caller needs it."""

    class Result:
        pass

    result = await call_in_thread(lambda _: Result())
    gone = weakref.ref(result)
    del result
    for _ in range(100):
        await asyncio.sleep(0.01)
        gc.collect()
        if gone() is None:
            return
    raise AssertionError("the result is kept")
