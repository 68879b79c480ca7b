"""Which workers use a processor, by a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cached.fetch.busy_workers import AtWork


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def waiting_elsewhere(at_work: AtWork) -> Iterator[None]:
    """Another thread that waits for a server during the block."""
    begun, done = threading.Event(), threading.Event()

    def wait() -> None:
        at_work.begin_wait()
        begun.set()
        done.wait()
        at_work.end_wait()

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_only_a_long_wait_counts() -> None:
    """A receive that finds its bytes there is work; one that takes long is a wait, until it ends."""
    clock = Clock()
    at_work = AtWork(clock)
    at_work.begin_wait()
    clock.now_s += 0.001
    assert at_work.count_waiting() == 0
    clock.now_s += 1
    assert at_work.count_waiting() == 1
    at_work.end_wait()
    assert at_work.count_waiting() == 0


def test_each_thread_counts_for_itself() -> None:
    """The end of one thread's wait leaves another's."""
    clock = Clock()
    at_work = AtWork(clock)
    with waiting_elsewhere(at_work):
        at_work.begin_wait()
        clock.now_s += 1
        assert at_work.count_waiting() == 2
        at_work.end_wait()
        assert at_work.count_waiting() == 1
    assert at_work.count_waiting() == 0
