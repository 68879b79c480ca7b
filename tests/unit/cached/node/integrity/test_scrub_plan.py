"""When the scrub hashes what: no file waits longer than its period, none is hashed early, no two nodes agree."""

from __future__ import annotations

import itertools
import random
from math import inf

import pytest

from cached.contract.digest import Digest
from cached.node.integrity.scrub_plan import EARLIEST, OldestHash, ScrubPlan

DAY_S = 86400.0
PERIOD_S = 7 * DAY_S
NOW = 1_000_000.0
DIGESTS = [Digest.of(bytes([number])) for number in range(100)]


def _hash(age_s: float) -> OldestHash:
    return OldestHash(f"{age_s:.0f} s ago", age_s)


def _plan(ages: dict[Digest, float], node: str = "a", now: float = NOW) -> ScrubPlan:
    plan = ScrubPlan(PERIOD_S, node)
    plan.note({digest: _hash(age_s) for digest, age_s in ages.items()}, now)
    return plan


def _turns(plan: ScrubPlan, now: float = NOW) -> dict[Digest, float]:
    """When each snapshot is due, in the order in which they are."""
    turns: dict[Digest, float] = {}
    while (due := plan.find_next_due()) < inf:
        now = max(now, due)
        digest = plan.find_due(now)
        assert digest is not None
        turns[digest] = now
        plan.forget((digest,))
    return turns


def test_what_was_hashed_lately_is_not_hashed_again() -> None:
    """Snapshots that were hashed in one minute are due at many moments, none early and none after its period."""
    turns = sorted(_turns(_plan(dict.fromkeys(DIGESTS, 0.0))).values())
    assert turns[0] >= NOW + EARLIEST * PERIOD_S
    assert turns[-1] < NOW + PERIOD_S
    assert max(late - early for early, late in itertools.pairwise(turns)) < PERIOD_S / 10


def test_a_restart_keeps_what_is_due_when() -> None:
    """A daemon that starts later, on the same records, has the same turns."""
    later_s = DAY_S
    first = _turns(_plan(dict.fromkeys(DIGESTS, 3600.0)))
    again = ScrubPlan(PERIOD_S, "a")
    again.note({digest: OldestHash(_hash(3600.0).stamp, 3600.0 + later_s) for digest in DIGESTS}, NOW + later_s)
    assert _turns(again) == pytest.approx(first)


def test_nodes_do_not_share_their_turns() -> None:
    """Nodes that were filled at the same moment hash the same snapshot at different ones."""
    first, second = (_turns(_plan(dict.fromkeys(DIGESTS, 0.0), node)) for node in ("a", "b"))
    assert list(first) != list(second)
    assert all(first[digest] != second[digest] for digest in DIGESTS)


def test_old_records_are_not_hashed_at_once() -> None:
    """On a node that was off for long the oldest comes first, and the last one soon, and no two at once."""
    ages = {digest: 2 * PERIOD_S + number * DAY_S for number, digest in enumerate(DIGESTS)}
    turns = _turns(_plan(ages))
    assert list(turns) == DIGESTS[::-1]
    moments = list(turns.values())
    assert max(moments) <= NOW + PERIOD_S / 4
    assert len(set(moments)) == len(moments)


def test_what_was_never_hashed_comes_first() -> None:
    """A file that was put back is hashed before anything else, whatever is overdue."""
    plan = _plan({DIGESTS[0]: 50 * PERIOD_S, DIGESTS[1]: inf, DIGESTS[2]: 0.0})
    assert plan.find_due(NOW) == DIGESTS[1]
    assert plan.find_due(NOW + PERIOD_S) == DIGESTS[1]
    assert plan.compute_oldest_age_s(NOW + 60) == 50 * PERIOD_S + 60


@pytest.mark.parametrize("load", [0.2, 0.9])
def test_no_snapshot_is_left_for_longer_than_the_period(load: float) -> None:
    """Whatever the ages at first, and where hashing all of them takes most of the period: each is hashed in time."""
    chance = random.Random(3)
    ages = {digest: chance.uniform(0, PERIOD_S) for digest in DIGESTS}
    takes_s = load * PERIOD_S / len(DIGESTS)
    plan, now = _plan(ages), NOW
    hashed = {digest: NOW - age_s for digest, age_s in ages.items()}
    first = dict(hashed)
    while now < NOW + 4 * PERIOD_S:
        now = max(now, plan.find_next_due())
        digest = plan.find_due(now)
        assert digest is not None
        now += takes_s
        # At first they may be due together; from then on each has its period.
        assert hashed[digest] == first[digest] or now - hashed[digest] <= PERIOD_S + 2 * takes_s
        hashed[digest] = now
        plan.note({digest: OldestHash(str(now), 0.0)}, now)
    assert plan.compute_oldest_age_s(now) <= PERIOD_S + 2 * takes_s


def test_fetches_come_first_until_the_period_is_over() -> None:
    """A due snapshot waits for fetches as long as its period lasts, and an overdue one for a while."""
    plan = _plan({DIGESTS[0]: 0.95 * PERIOD_S, DIGESTS[1]: 3 * PERIOD_S})
    turns = _turns(_plan({DIGESTS[0]: 0.95 * PERIOD_S, DIGESTS[1]: 3 * PERIOD_S}))
    assert plan.get_deadline(DIGESTS[0]) == NOW + 0.05 * PERIOD_S
    for digest in DIGESTS[:2]:
        assert turns[digest] < plan.get_deadline(digest) <= NOW + PERIOD_S


def test_a_snapshot_that_cannot_be_hashed_waits() -> None:
    """It is tried again within the hour, and the others come before it."""
    plan = _plan({DIGESTS[0]: inf, DIGESTS[1]: PERIOD_S - 60})
    plan.put_off(DIGESTS[0], NOW)
    assert plan.find_due(NOW) is None
    assert plan.find_due(NOW + 60) == DIGESTS[1]
    assert plan.find_due(NOW + 3600) == DIGESTS[0]
    plan.hurry(DIGESTS[1], NOW)
    assert plan.find_due(NOW) == DIGESTS[1]


def test_an_empty_node_has_no_turn() -> None:
    """Without snapshots nothing is due, and no hash is old."""
    plan = ScrubPlan(PERIOD_S, "a")
    assert plan.find_due(NOW) is None
    assert plan.find_next_due() == inf
    assert plan.compute_oldest_age_s(NOW) == 0
