"""Eviction: who goes, in which order, and how much that frees."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.core.eviction import (
    Choice,
    InventoryEntry,
    by_age,
    choose_victims,
    count_excess,
    count_shortfall,
    list_freed,
)
from cached.core.space import SpaceUse


def holding(
    name: str, last_used: float, *, in_use: bool = False, wanted: bool = False, keep: bool = False, **blobs: int
) -> InventoryEntry:
    digest = Digest.of(repr(sorted(blobs)).encode())
    return InventoryEntry(ModelRef(name, "v1"), digest, blobs, last_used, in_use, wanted, keep)


def choose(held: Collection[InventoryEntry], need: int) -> Choice[InventoryEntry]:
    return choose_victims(by_age(h for h in held if h.evictable), held, need)


def names(inventory: Collection[InventoryEntry]) -> list[str]:
    return [h.ref.name for h in inventory]


def test_least_recently_used_first() -> None:
    """The version that was used longest ago goes first, and no more go than are needed."""
    held = [holding("new", 3, n=10), holding("old", 1, o=10), holding("middle", 2, m=10)]
    for need, expected in ((1, ["old"]), (10, ["old"]), (11, ["old", "middle"]), (30, ["old", "middle", "new"])):
        choice = choose(held, need)
        assert names(choice.victims) == expected
        assert choice.freed == 10 * len(expected)


@pytest.mark.parametrize("need", [0, -5])
def test_no_need_no_victim(need: int) -> None:
    """Nothing is evicted without need, however old."""
    assert choose([holding("a", 1, x=10)], need).victims == ()


def test_in_use_wanted_and_kept_stay() -> None:
    """What is in use, wanted, kept or prefetched never goes, whatever the need."""
    held = [
        holding("used", 1, in_use=True, a=10),
        holding("wanted", 2, wanted=True, b=10),
        holding("kept", 3, keep=True, c=10),
        replace(holding("prefetched", 1, e=10), prefetched=True),
        holding("free", 4, d=10),
    ]
    choice = choose(held, 40)
    assert (names(choice.victims), choice.freed) == (["free"], 10)


def test_only_what_is_just_prefetched_yields_to_pods() -> None:
    """A prefetched version goes for a pod, unless a reader uses, wants or keeps it too."""
    fetched = replace(holding("a", 1, x=10), prefetched=True)
    assert fetched.evictable_for_pod
    assert not holding("a", 1, x=10).evictable_for_pod
    assert not replace(fetched, in_use=True).evictable_for_pod
    assert not replace(fetched, wanted=True).evictable_for_pod
    assert not replace(fetched, keep=True).evictable_for_pod


def test_shared_blobs_are_freed_with_the_last_version() -> None:
    """A blob that a surviving version shares frees nothing; it is counted once with the last that has it."""
    a, b = holding("a", 1, shared=100, own=1), holding("b", 2, shared=100)
    assert list_freed([a], [a, b]) == [1]
    assert list_freed([a, b], [a, b]) == [1, 100]
    assert list_freed([b, a], [a, b]) == [0, 101]
    assert list_freed([], [a, b]) == []
    choice = choose([a, b], 50)
    assert (names(choice.victims), choice.freed) == (["a", "b"], 101)


def test_two_names_of_one_snapshot() -> None:
    """Evicting one of two names of the same content frees nothing."""
    one, other = holding("one", 1, x=10), holding("other", 2, wanted=True, x=10)
    assert one.digest == other.digest
    assert list_freed([one], [one, other]) == [0]
    assert choose([one, other], 10).victims == ()


def test_a_superfluous_victim_is_taken_back() -> None:
    """An old small version stays where the next one frees enough alone."""
    held = [holding("small", 1, s=1), holding("large", 2, x=100)]
    choice = choose(held, 100)
    assert (names(choice.victims), choice.freed) == (["large"], 100)


def test_not_enough_gives_what_there_is() -> None:
    """Where all that may go frees too little, all of it is chosen and the choice says how much."""
    held = [holding("a", 1, x=10), holding("b", 2, y=5), holding("c", 3, in_use=True, z=100)]
    choice = choose(held, 50)
    assert (names(choice.victims), choice.freed) == (["a", "b"], 15)


def use(capacity: int, used: int, *, reserved: int = 0, dying: int = 0, budget: int | None = None) -> SpaceUse:
    limit = capacity if budget is None else budget
    return SpaceUse(capacity, used, reserved, dying, max(0, limit - used - reserved - dying), limit)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (use(100, 90), 0),
        (use(100, 91), 11),
        (use(100, 60, reserved=31), 11),
        (use(100, 50, dying=50), 0),
        (use(100, 85, dying=15), 0),
        (use(100, 95, dying=5), 15),
        (use(100, 150), 70),
        (use(100, 30, budget=40), 0),
        (use(100, 30, budget=35), 15),
        (use(0, 0), 0),
    ],
)
def test_watermarks(space: SpaceUse, expected: int) -> None:
    """Up to the high mark nothing is freed, beyond it down to the low one; others' bytes count, dying ones do not."""
    assert count_excess(space, 0.9, 0.8) == expected


@pytest.mark.parametrize(
    ("space", "needed", "expected"),
    [
        (use(100, 50), 50, 0),
        (use(100, 50), 60, 10),
        (use(100, 50, dying=50), 60, 10),
        (use(100, 50, reserved=20), 60, 30),
        (use(100, 150), 10, 60),
        (use(100, 50), 0, 0),
    ],
)
def test_short_of(space: SpaceUse, needed: int, expected: int) -> None:
    """What dies soon need not be freed again; what is over the budget must be freed too."""
    assert count_shortfall(space, needed) == expected


SIZES = {f"blob{number}": 2**number for number in range(7)}
inventory = st.lists(
    st.builds(
        lambda name, blobs, last_used, flags: InventoryEntry(
            ModelRef(name, "v1"),
            Digest.of(repr(sorted(blobs)).encode()),
            {b: SIZES[b] for b in blobs},
            last_used,
            *flags,
        ),
        st.sampled_from("abcdefgh"),
        st.sets(st.sampled_from(sorted(SIZES)), min_size=1, max_size=4),
        st.integers(0, 5),
        st.tuples(*[st.sampled_from([False, False, False, True])] * 3),
    ),
    unique_by=lambda h: h.ref,
    max_size=8,
)


@settings(max_examples=300)
@given(inventory, st.integers(0, 200))
def test_a_choice_is_right_whatever_is_shared(held: list[InventoryEntry], need: int) -> None:
    """Victims may go, free exactly what is said, free enough if anything does, and none of them is superfluous."""
    choice = choose(held, need)
    free = [h for h in held if h.evictable]
    assert all(victim in free for victim in choice.victims)
    assert choice.freed == _reclaimable(choice.victims, held)
    assert choice.freed >= min(need, _reclaimable(free, held))
    for victim in choice.victims:
        rest = [other for other in choice.victims if other is not victim]
        assert _reclaimable(rest, held) < min(need, choice.freed)


@settings(max_examples=300)
@given(inventory, st.randoms())
def test_each_frees_what_the_ones_before_it_left(held: list[InventoryEntry], chance: Random) -> None:
    """What victims free one after the other adds up, at each of them, to what all up to it free at once."""
    victims = chance.sample(held, chance.randint(0, len(held)))
    sums = list(accumulate(list_freed(victims, held)))
    assert sums == [_reclaimable(victims[: count + 1], held) for count in range(len(victims))]


def _reclaimable(victims: Collection[InventoryEntry], held: Collection[InventoryEntry]) -> int:
    """The bytes of the victims' blobs that no other has."""
    gone = {victim.ref for victim in victims}
    kept = {sha for entry in held if entry.ref not in gone for sha in entry.blobs}
    return sum({sha: size for victim in victims for sha, size in victim.blobs.items() if sha not in kept}.values())
