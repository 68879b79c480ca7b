"""Blocking network calls from the event loop.

Law: each call has its own thread that neither the loop's end nor the process's waits for. A caller that is cancelled,
or out of time, cancels the call and continues at once; a few hung calls (of a silent name server, say) never delay
others, as they would on a pool.
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
    """Return the result of `call`; its argument is cancelled when the caller is. Raises `Transient` (`no_thread`) if no
    thread can start."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()
    cancellation = Cancellation()

    def settle(result: T | None, error: BaseException | None) -> None:
        if outcome.done():
            return  # the caller was cancelled
        if error is None:
            outcome.set_result(result)  # type: ignore[arg-type]  # None only if T includes it
        else:
            outcome.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = call(cancellation)
        except BaseException as error:  # noqa: BLE001 - every end becomes the outcome, none is lost
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(settle, result, failure)

    limits.start(threading.Thread(target=run, name="aside", daemon=True), "a call to a source")
    try:
        return await outcome
    finally:
        cancellation.cancel()
