"""Run a job for many items in parallel, a bounded number at a time.

Law: every task is in a TaskGroup; the first failure ends the others and is raised itself, not as a group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cached.contract.errors import HoldfastError

_Item = TypeVar("_Item")


async def in_parallel(limit: int, job: Callable[[_Item], Awaitable[None]], items: Iterable[_Item]) -> None:
    """Run the job for every item, at most `limit` at a time; raises the first error."""
    slots = asyncio.Semaphore(limit)

    async def run(item: _Item) -> None:
        async with slots:
            await job(item)

    with ungrouped():
        async with asyncio.TaskGroup() as tasks:
            for item in items:
                tasks.create_task(run(item))


@contextmanager
def ungrouped() -> Iterator[None]:
    """Raise the first `HoldfastError` of a TaskGroup's exception group alone; a group without one stays as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException | None = group.subgroup(HoldfastError)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is not None:
            raise error from group
        raise
