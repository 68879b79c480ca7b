"""Run jobs in parallel, a bounded number at a time.

Law: every task is in a TaskGroup; the first failure ends the others and is raised itself, not as a group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager

from cached.contract.errors import HoldfastError

Job = Callable[[], Awaitable[None]]


async def in_parallel(limit: int, jobs: Iterable[Job]) -> None:
    """Run every job, at most `limit` at a time; raises the first error."""
    slots = asyncio.Semaphore(limit)

    async def run(job: Job) -> None:
        async with slots:
            await job()

    with ungrouped():
        async with asyncio.TaskGroup() as tasks:
            for job in jobs:
                tasks.create_task(run(job))


@contextmanager
def ungrouped() -> Iterator[None]:
    """Raise the first `HoldfastError` of a TaskGroup's exception group alone; a group without one stays as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        for error in _leaves(group):
            if isinstance(error, HoldfastError):
                raise error from group
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
