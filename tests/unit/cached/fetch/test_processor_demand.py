"""How many processors threads need, by the kernel's own counts of real threads and a clock of the test's own."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator

import pytest

from cached.fetch.processor_demand import ProcessorDemand
from tests.support.clocks import ManualClock

_DATA = bytes(1024 * 1024)
_DEADLINE_S = 60


class Worker:
    """A thread that is counted, and takes processor time only in `use`."""

    def __init__(self, demand: ProcessorDemand) -> None:
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, args=(demand,))
        self._thread.start()
        assert self._done.acquire(timeout=_DEADLINE_S)

    def use(self) -> None:
        """Let it hash for a while, and wait until it has."""
        self._turn.release()
        assert self._done.acquire(timeout=_DEADLINE_S)

    def stop(self) -> None:
        self._stopping = True
        self._turn.release()
        self._thread.join()

    def counted_s(self) -> float:
        """What the kernel says of it."""
        with open(f"/proc/self/task/{self._thread.native_id}/schedstat") as file:
            ran, queued, _ = file.read().split()
        return (int(ran) + int(queued)) / 1e9

    def _run(self, demand: ProcessorDemand) -> None:
        with demand.count_this_thread():
            self._done.release()
            while self._turn.acquire() and not self._stopping:
                for _ in range(50):
                    hashlib.sha256(_DATA)
                self._done.release()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def demand(clock: ManualClock) -> ProcessorDemand:
    return ProcessorDemand(clock)


@pytest.fixture
def workers(demand: ProcessorDemand) -> Iterator[list[Worker]]:
    workers = [Worker(demand) for _ in range(2)]
    yield workers
    for worker in workers:
        worker.stop()


def test_it_is_the_time_that_the_threads_ran_or_were_ready(
    clock: ManualClock, demand: ProcessorDemand, workers: list[Worker]
) -> None:
    """The demand is the sum of the threads' time on processors and in their queues, by the time between two looks; that
    of a thread which only waits is nothing."""
    assert demand.measure(2) is None  # nothing to compare with
    before = sum(worker.counted_s() for worker in workers)
    workers[0].use()
    clock.now_s += 10
    found = demand.measure(2)
    after = sum(worker.counted_s() for worker in workers)
    assert found is not None
    assert 0 < found <= (after - before) / 10 + 0.001
    clock.now_s += 1e6
    assert demand.measure(2) == pytest.approx(0, abs=1e-3)


def test_it_stays_the_same_for_a_while(clock: ManualClock, demand: ProcessorDemand, workers: list[Worker]) -> None:
    """Between two looks less than 50 ms apart nothing is read, and the answer is the last one."""
    demand.measure(2)
    workers[0].use()
    clock.now_s += 1
    found = demand.measure(2)
    workers[0].use()
    clock.now_s += 0.04
    assert demand.measure(2) == found


def test_those_who_joined_count_as_the_others(
    clock: ManualClock, demand: ProcessorDemand, workers: list[Worker]
) -> None:
    """Until the next look a thread that was given something to do is taken to need what the others do; one that has
    left is not taken off, because the others may need what it had."""
    demand.measure(2)
    workers[0].use()
    clock.now_s += 1
    found = demand.measure(2)
    assert found is not None
    assert demand.measure(3) == pytest.approx(found * 1.5)
    assert demand.measure(1) == found


def test_what_was_before_a_pause_is_forgotten(
    clock: ManualClock, demand: ProcessorDemand, workers: list[Worker]
) -> None:
    """Once no thread has anything to do, nothing is said of the next ones until two more looks."""
    demand.measure(2)
    workers[0].use()
    clock.now_s += 1
    assert demand.measure(2)
    assert demand.measure(0) == 0
    assert demand.measure(2) is None
    clock.now_s += 1
    assert demand.measure(2) is not None


def test_a_kernel_that_does_not_count_holds_no_one_back(
    clock: ManualClock, demand: ProcessorDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thread's counts cannot be opened (a sandbox, or no free descriptor) it works all the same, and the demand
    is nothing from the beginning."""

    def refuse(path: str, flags: int) -> int:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "open", refuse)
    worker = Worker(demand)
    worker.use()
    assert demand.measure(1) == 0
    clock.now_s += 1
    assert demand.measure(1) == 0
    worker.stop()


def test_a_thread_that_has_ended_counts_no_more(clock: ManualClock, demand: ProcessorDemand) -> None:
    """The end of a thread gives back what was opened for it, and what it took is no part of a later demand."""
    before = os.listdir("/proc/self/fd")
    one, other = Worker(demand), Worker(demand)
    demand.measure(2)
    other.use()
    other.stop()
    clock.now_s += 1
    assert demand.measure(1) is None
    clock.now_s += 1
    assert demand.measure(1) == pytest.approx(0, abs=0.01)
    one.stop()
    assert demand.measure(0) == 0
    assert os.listdir("/proc/self/fd") == before
