"""Crash points: `kill -9` at each step that changes the disk. What is visible stays whole, what is durable stays."""

from __future__ import annotations

import random

import pytest

from tests.support.crashing.points import Kill, kills_at
from tests.support.crashing.trying import BY_NAME, Trials, one_of_each

_PARTS = 3  # a test of its own for each, so that none takes long
# How often these come depends on how long things take: a SIGTERM may find nothing that is to be thrown away.
_RACING = ("heartbeat", "status", "unlink ingest data")


pytestmark = pytest.mark.long


def _check_met(kills: list[Kill], met: set[Kill]) -> None:
    """Every name must be met: a harness that never kills proves nothing."""
    steady = {kill.point.name for kill in kills if not any(word in kill.point.name for word in _RACING)}
    assert steady <= {kill.point.name for kill in met}


@pytest.mark.parametrize("part", range(_PARTS))
@pytest.mark.parametrize("name", BY_NAME)
def test_a_crash_at_every_kind_of_point(trials: Trials, name: str, part: int) -> None:
    """After a crash before, within or after a step of every kind, nothing visible is broken, nothing durable is lost or
    fetched twice, no space stays reserved, and the next daemon finishes the work."""
    scenario = BY_NAME[name]
    points = trials.points(scenario)
    before = [*BY_NAME.values()][: list(BY_NAME).index(name)]
    known = {point.name for other in before for point in trials.points(other)}
    fresh = [p for p in one_of_each(points) if p.name not in known or p.name.partition(" ")[2] in scenario.again]
    assert fresh, f"{name} takes no step that others do not"
    kills = [kill for point in fresh[part::_PARTS] for kill in kills_at(point)]
    met = trials.kill_all(scenario, kills)
    _check_met([kill for kill in kills if kill.point.name not in known], met)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_a_crash_at_every_point(trials: Trials, name: str) -> None:
    """The same at every single point of every scenario."""
    scenario = BY_NAME[name]
    kills = [kill for point in trials.points(scenario) for kill in kills_at(point)]
    _check_met(kills, trials.kill_all(scenario, kills))


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_a_crash_in_the_recovery_from_a_crash(trials: Trials, name: str) -> None:
    """A daemon that dies again and again, each time at another point, leaves nothing that the next cannot mend."""
    scenario, seed = BY_NAME[name], random.randrange(1 << 32)
    chance = random.Random(seed)
    points = trials.points(scenario)
    for _ in range(25):
        series = [chance.choice(kills_at(chance.choice(points))) for _ in range(chance.randint(2, 4))]
        try:
            trials.kill(scenario, *series)
        except AssertionError as broken:
            raise AssertionError(f"seed {seed}: {broken}") from broken
