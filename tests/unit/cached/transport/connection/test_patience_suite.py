"""What every `WaitLimit` promises: a limit on silence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cached.contract.errors import Transient
from cached.transport.connection.stream import Deadline, StallClock, WaitLimit

LIMIT_S = 2.0
CASES: dict[str, Callable[[], WaitLimit]] = {
    "deadline": lambda: Deadline(LIMIT_S, "http://origin/f"),
    "stall clock": lambda: StallClock(LIMIT_S, 100, "http://origin/f"),
}


@pytest.fixture(params=CASES)
def patience(request: pytest.FixtureRequest) -> WaitLimit:
    return CASES[request.param]()


def test_silence_up_to_the_limit_is_waited_out(patience: WaitLimit) -> None:
    """Waits that are shorter in all than the limit are no error, however many."""
    for _ in range(19):
        patience.record_wait(LIMIT_S / 20, 0)


def test_silence_is_a_stall(patience: WaitLimit) -> None:
    """Waits without a byte add up: at the limit it is `stalled`, transient, and says where."""
    with pytest.raises(Transient) as caught:
        for _ in range(30):
            patience.record_wait(LIMIT_S / 10, 0)
    assert caught.value.code == "stalled"
    assert "http://origin/f" in caught.value.message and f"{LIMIT_S:g} s" in caught.value.message
    assert caught.value.remedy


def test_a_trickle_is_a_stall_too(patience: WaitLimit) -> None:
    """A byte now and then does not keep an answer alive."""
    with pytest.raises(Transient):
        for _ in range(30):
            patience.record_wait(LIMIT_S / 10, 1)


def test_once_it_has_been_enough_it_stays_so(patience: WaitLimit) -> None:
    """More silence after a stall is a stall again."""
    for _ in range(2):
        with pytest.raises(Transient):
            patience.record_wait(LIMIT_S, 0)


def test_bytes_that_come_at_once_cost_nothing(patience: WaitLimit) -> None:
    """What needed no waiting is never a stall, however little it is."""
    for _ in range(1000):
        patience.record_wait(0.0, 1)
