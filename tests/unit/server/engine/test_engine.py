from __future__ import annotations

import asyncio
import threading

from server.engine.engine import Job


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
