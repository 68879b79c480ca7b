"""The bandwidth limit: over any stretch of time, no more than the rate and one short burst."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.transport.connection.bandwidth import BandwidthLimit
from cached.transport.connection.cancel import Cancellation, Cancelled
from tests.support.clocks import ManualClock

_BURST_S = 0.1


@given(
    rate=st.integers(1, 10**9),
    takes=st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), min_size=1, max_size=40),
)
def test_no_more_than_the_rate(rate: int, takes: list[tuple[float, float]]) -> None:
    """From any receive to any later one, what was received before the later one fits the time between, and a burst.
    Sizes are in seconds of the rate: a wait looks at its cancellation ten times a second."""
    clock = ManualClock()
    limit = BandwidthLimit(rate, clock, clock.sleep)
    passed: list[tuple[float, int]] = []
    for worth_s, idle_s in takes:
        size = max(1, int(worth_s * rate))
        clock.now_s += idle_s
        limit.take(size, Cancellation())
        passed.append((clock.now_s, size))
    for first in range(len(passed)):
        received = 0
        for at, size in passed[first:]:
            assert received <= rate * (at - passed[first][0] + _BURST_S) * 1.001 + 1
            received += size


def test_an_idle_limit_saves_up_little() -> None:
    """However long nothing was received, what follows is at most a burst ahead of the rate."""
    clock = ManualClock()
    limit = BandwidthLimit(1000, clock, clock.sleep)
    clock.now_s += 3600
    started = clock.now_s
    for _ in range(100):
        limit.take(100, Cancellation())
    assert clock.now_s - started == pytest.approx(100 * 100 / 1000 - 2 * _BURST_S)


def test_without_a_rate_nobody_waits() -> None:
    """No limit: nothing waits, and everything may be asked for at once."""
    clock = ManualClock()
    limit = BandwidthLimit(None, clock, clock.sleep)
    limit.take(1 << 40, Cancellation())
    assert (clock.now_s, limit.chunk(1 << 30)) == (1000.0, 1 << 30)


@pytest.mark.parametrize(("rate", "chunk"), [(1, 16384), (10**6, 100_000), (10**9, 4 << 20)])
def test_a_slow_rate_comes_in_small_pieces(rate: int, chunk: int) -> None:
    """What is asked for at once is a tenth of a second's worth, at least 16 KiB and never more than there is room."""
    clock = ManualClock()
    limit = BandwidthLimit(rate, clock, clock.sleep)
    assert limit.chunk(4 << 20) == chunk
    assert limit.chunk(10) == 10


def test_whoever_is_cancelled_waits_no_longer() -> None:
    """A cancelled caller comes back at its next look."""
    clock, cancellation = ManualClock(), Cancellation()
    limit = BandwidthLimit(10, clock, clock.sleep)
    limit.take(1000, Cancellation())
    cancellation.cancel()
    with pytest.raises(Cancelled):
        limit.take(10, cancellation)


def test_callers_share_the_rate() -> None:
    """Eight threads together get what one would."""
    clock = ManualClock()
    limit = BandwidthLimit(1000, clock, clock.sleep)

    def take_some() -> None:
        for _ in range(25):
            limit.take(10, Cancellation())

    threads = [threading.Thread(target=take_some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.now_s - 1000 >= (8 * 25 - 1) * 10 / 1000 - 2 * _BURST_S
