from __future__ import annotations

import asyncio
import threading

import pytest

from cached.contract.errors import Transient
from server.engine.engine import Job, ThreadedEngine
from tests.support.generating import Watched


class Full:
    """A model that admits no job."""

    room = 0
    busy = False

    def prepare(self, request: int) -> int:
        return request

    def step(self, arrived: list[Job[int, int]]) -> None:
        raise AssertionError("there is no room for a job")

    def reset(self) -> None:
        """Do nothing: there are no jobs."""


async def test_events_from_a_thread_that_goes_on_all_arrive() -> None:
    """Events that are emitted while others are delivered are neither lost nor reordered."""
    jobs: list[Job[int, int]] = [Job(number) for number in range(3)]

    def run() -> None:
        for event in range(5000):
            for job in jobs:
                job.emit(event)
        for job in jobs:
            job.finish()

    thread = threading.Thread(target=run)
    thread.start()
    async with asyncio.timeout(100):
        for job in jobs:
            assert [event async for event in job.stream()] == list(range(5000))
    thread.join()


def test_a_job_of_a_closed_loop_has_ended() -> None:
    """A step that is under way while the server stops ends its jobs, and raises nothing in the model's thread."""

    async def made() -> list[Job[int, int]]:
        return [Job(1), Job(2)]

    jobs = asyncio.run(made())
    for job in jobs:
        job.emit(1)
    assert all(job.ended for job in jobs)


async def test_a_health_check_takes_no_clients_place() -> None:
    """A job of the server's own waits beside the limit: as many clients wait as the limit allows, and are counted."""
    engine: ThreadedEngine[int, int, int] = ThreadedEngine(Full(), 1, Watched())
    with engine.submit_prepared(0):
        assert engine.capacity().waiting == 0
        async with engine.submit(1):
            assert engine.capacity().waiting == 1
            with pytest.raises(Transient, match="1 requests are waiting already"):
                async with engine.submit(2):
                    pass
            with pytest.raises(Transient, match="1 requests are waiting already"), engine.submit_prepared(3):
                pass
    engine.close()
    engine.join()
