"""What an operator is told of the other members. Time is the test's own."""

from __future__ import annotations

import pytest

from cached.contract.errors import Transient
from cached.fetch.pool.peer_states import PeerState, PeerStates
from cached.peers.members import MAX_MEMBERS
from cached.peers.messages import Reason
from tests.support.clocks import ManualClock

ONE, OTHER = "10.0.0.1:9402", "10.0.0.2:9402"


def describe(states: PeerStates, *members: str) -> dict[str, int]:
    """The states that a member is in, with their counts."""
    counts = {state.value: states.count(state, members) for state in PeerState}
    return {state: count for state, count in counts.items() if count}


def test_each_member_is_in_one_state() -> None:
    """The counts add up to the members, whatever was seen of others; a member of whom nothing was seen is idle."""
    states = PeerStates(ManualClock())
    states.note(ONE, PeerState.LIVE)
    states.note("10.9.9.9:9402", PeerState.LIVE)
    assert describe(states, ONE, OTHER) == {"live": 1, "idle": 1}
    states.note(ONE, PeerState.UNREACHABLE)
    assert describe(states, ONE, OTHER) == {"unreachable": 1, "idle": 1}


def test_what_was_seen_long_ago_says_nothing() -> None:
    """Ten minutes after the last exchange a member is idle, not live and not unreachable."""
    clock = ManualClock()
    states = PeerStates(clock)
    states.note(ONE, PeerState.LIVE)
    clock.now_s += 599
    assert describe(states, ONE) == {"live": 1}
    clock.now_s += 1
    assert describe(states, ONE) == {"idle": 1}


@pytest.mark.parametrize(("reason", "state"), [(Reason.SLOW, "slow"), (Reason.WRONG, "wrong")])
def test_a_blamed_member_stays_so_for_its_minute(reason: Reason, state: str) -> None:
    """An answer to another question does not hide that a member was left; that it cannot be reached does."""
    clock = ManualClock()
    states = PeerStates(clock)
    states.note_blames([(ONE, reason), (OTHER, Reason.GONE)])
    states.note(ONE, PeerState.LIVE)
    assert describe(states, ONE, OTHER) == {state: 1, "idle": 1}
    clock.now_s += 61
    states.note(ONE, PeerState.LIVE)
    assert describe(states, ONE) == {"live": 1}
    states.note_blames([(ONE, reason)])
    states.note(ONE, PeerState.UNREACHABLE)
    assert describe(states, ONE) == {"unreachable": 1}


def test_an_error_of_this_nodes_own_says_nothing_of_a_member() -> None:
    """Only errors of the exchange itself change what is known of a member."""
    states = PeerStates(ManualClock())
    states.note(ONE, PeerState.LIVE)
    states.note_failure(ONE, Transient("no_space", "the disk is full", "free some"))
    assert describe(states, ONE) == {"live": 1}
    states.note_failure(ONE, Transient("stalled", "no bytes", "another is asked"))
    assert describe(states, ONE) == {"unreachable": 1}


def test_what_is_remembered_is_bounded() -> None:
    """Addresses that come and go, as those of a name server that answers otherwise each time, take bounded memory: the
    one met longest ago is forgotten."""
    states = PeerStates(ManualClock())
    states.note(ONE, PeerState.LIVE)
    for number in range(MAX_MEMBERS):
        states.note(f"10.1.{number >> 8}.{number & 255}:9402", PeerState.LIVE)
    assert describe(states, ONE, "10.1.0.0:9402") == {"idle": 1, "live": 1}
