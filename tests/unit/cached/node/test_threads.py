"""The way into blocking code: a step that was begun is seen to its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cached.node.threads import Blocking


@contextmanager
def _held_up(outcome: Callable[[], str]) -> Iterator[tuple[Callable[[], str], threading.Event, threading.Event]]:
    """A step that has begun (the first event) and ends when it may (the second)."""
    begun, may_end = threading.Event(), threading.Event()

    def step() -> str:
        begun.set()
        assert may_end.wait(120)
        return outcome()

    try:
        yield step, begun, may_end
    finally:
        may_end.set()


def _fail() -> str:
    raise OSError("the disk")


@pytest.mark.parametrize("kind", ["run", "finish"])
async def test_a_cancelled_step_ends_before_its_caller(kind: str) -> None:
    """Cancelled, the caller waits for the step: nothing runs on unseen. With `finish` what was done counts."""
    blocking = Blocking(1)
    with _held_up(lambda: "done") as (step, begun, may_end):
        caller = asyncio.ensure_future(getattr(blocking, kind)(step))
        await asyncio.to_thread(begun.wait)
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
        may_end.set()
        await asyncio.wait([caller])
    if kind == "run":
        assert caller.cancelled()
    else:
        assert caller.result() == "done"
    blocking.close()


async def test_a_cancelled_step_that_fails_stays_cancelled() -> None:
    """A failure is no reason to go on for a caller that was cancelled since."""
    blocking = Blocking(1)
    with _held_up(_fail) as (step, begun, may_end):
        caller = asyncio.ensure_future(blocking.finish(step))
        await asyncio.to_thread(begun.wait)
        caller.cancel()
        may_end.set()
        await asyncio.wait([caller])
    assert caller.cancelled()
    blocking.close()
