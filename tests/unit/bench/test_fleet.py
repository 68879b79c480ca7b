"""A small fleet in the simulation of `bench/fleet.py`, with the decisions of `cached/peers`."""

from __future__ import annotations

import pytest

from bench.fleet import Fleet, Simulation

GIGABIT = 1e9 / 8
SIZE = 12 * 10**9


@pytest.mark.parametrize(
    ("more", "copies", "crossed"),
    [
        ({}, 1.0, 0.0),
        ({"zones": 4}, 1.0, 3.0),
        ({"dying": 0.1, "slow": 0.1}, 1.25, 0.0),
        ({"zones": 2, "dying": 0.1}, 1.25, 1.3),
    ],
)
def test_a_fleet_fetches_about_one_copy(more: dict[str, float], copies: float, crossed: float) -> None:
    """Every live node ends with the version; the origin sends it about once, also while nodes die and crawl, and each
    zone imports it about once."""
    found = Simulation(Fleet(30, SIZE, 25 * GIGABIT, 40 * GIGABIT, **more)).run()  # type: ignore[arg-type]
    assert 1.0 <= found.copies <= copies
    assert found.crossed <= crossed


def test_a_fleet_is_not_much_slower_than_its_cards() -> None:
    """Half of the fleet has the version within two seconds, of the first announces, beyond twice the least time."""
    fleet = Fleet(30, SIZE, 25 * GIGABIT, 40 * GIGABIT)
    assert Simulation(fleet).run().p50_s <= 2 * fleet.bound_s + 2


def test_a_simulation_is_repeatable() -> None:
    """The same fleet has the same outcome: the machine's load changes no figure."""
    fleet = Fleet(12, SIZE // 4, 25 * GIGABIT, 40 * GIGABIT, zones=2, dying=0.1)
    assert Simulation(fleet).run() == Simulation(fleet).run()
