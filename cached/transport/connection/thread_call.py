"""Make blocking network calls beside the event loop.

Law: each call has a thread of its own that nothing waits for, neither the loop's end nor the process's. A caller that
is cancelled, or out of time, cancels the call and goes on at once; a few calls that hang (a name server that says
nothing, say) never keep those of others waiting, as they would on a pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from cached.contract.program import limits
from cached.transport.connection.cancel import Cancellation

T = TypeVar("T")


async def aside(call: Callable[[Cancellation], T]) -> T:
    """Return what `call` does; its argument is cancelled when the caller is. Raises `Transient` (`no_thread`) where no
    thread can be had for it."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    cancellation = Cancellation()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return  # nobody waits any more
        if error is None:
            outcome.set_result(result)  # type: ignore[arg-type]  # None only where T has it
        else:
            outcome.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = call(cancellation)
        except BaseException as error:  # noqa: BLE001 - every ending becomes the outcome, none is lost
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(settle, result, failure)

    limits.start(threading.Thread(target=run, name="aside", daemon=True), "a call to a source")
    try:
        return await outcome
    finally:
        cancellation.cancel()
