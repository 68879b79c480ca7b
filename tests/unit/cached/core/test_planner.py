"""The planner: what follows from what is wanted, held, under way and free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.demand import Demand, Priority, Want
from cached.core.eviction import InventoryEntry
from cached.core.planner import (
    AllowOthers,
    Cancel,
    Evict,
    Forget,
    Preempt,
    Refuse,
    Reprioritize,
    Situation,
    SpaceStep,
    StartFetch,
    VersionStep,
    plan_space,
    plan_versions,
)
from cached.core.space import FetchSpace, Shortage, SpaceUse

A, B = Digest("a" * 64), Digest("b" * 64)
EMPTY = SpaceUse(capacity=100, used=0, reserved=0, dying=0, free=100, budget=100)
FULL = SpaceUse(capacity=100, used=95, reserved=0, dying=0, free=5, budget=100)
UNKNOWN = Permanent("unknown_model", "no such model", "add it")


def want(name: str, priority: Priority = Priority.WAITING, **changes: Any) -> Want:
    made = Want(
        ref=ModelRef(name, "v1"),
        source=f"s3://b/{name}",
        pin=None,
        include=(),
        exclude=(),
        priority=priority,
        reasons=("pod ns/p",),
        keep=False,
    )
    return replace(made, **changes)


def held(name: str, digest: Digest = A, size: int = 10, **changes: Any) -> InventoryEntry:
    made = InventoryEntry(ModelRef(name, "v1"), digest, {f"{name}{digest.hex}": size}, 0.0, False, False, False)
    made = replace(made, request=want(name).request)
    return replace(made, **changes)


def demand(*wants: Want, **refused: Permanent) -> Demand:
    return Demand({w.ref: w for w in wants}, {ModelRef(name, "v1"): error for name, error in refused.items()})


@dataclass(frozen=True, slots=True)
class Everything(Situation):
    """What the plans of versions and of space depend on together."""

    failed: Mapping[ModelRef, Want | Permanent]


def plan(everything: Everything) -> tuple[VersionStep | SpaceStep, ...]:
    """Both plans; what frees space comes after what releases it, and before what takes it."""
    wants = everything.demand.wants
    met = {h.ref for h in everything.inventory if h.ref in wants and wants[h.ref].is_met_by(h.digest, h.request)}
    steps = plan_versions(everything.demand, met, everything.fetching, everything.failed)
    takes = [isinstance(step, Reprioritize | StartFetch) for step in steps]
    first = takes.index(True) if True in takes else len(steps)
    return (*steps[:first], *plan_space(everything), *steps[first:])


def situation(wanted: Demand, **changes: Any) -> Everything:
    made = Everything(
        demand=wanted,
        inventory=(),
        fetching={},
        failed={},
        space=EMPTY,
        shortages={},
        fetch_space={},
        high_watermark=0.9,
        low_watermark=0.8,
    )
    return replace(made, **changes)


def lacking(*wants: Want, size: int, files: int = 0, **changes: Any) -> Everything:
    """These are under way, and each waits for so much."""
    active = {w.ref: w for w in wants}
    short = dict.fromkeys(active, Shortage(size, files))
    return situation(demand(*wants), **{"fetching": active, "shortages": short, "fetch_space": {}, **changes})


def test_nothing_wanted_nothing_done() -> None:
    """Without wants, and without pressure, what is held stays though nothing wants it."""
    assert plan(situation(demand())) == ()
    assert plan(situation(demand(), inventory=[held("old")])) == ()


def test_missing_versions_start_in_order_of_priority() -> None:
    """What is wanted and not held is started, the soonest first, equals by name."""
    late, soon, pull, first = want("a", Priority.PREFETCH), want("z"), want("m", Priority.PULL), want("b")
    assert plan(situation(demand(late, soon, pull, first))) == (
        StartFetch(first),
        StartFetch(soon),
        StartFetch(pull),
        StartFetch(late),
    )


@pytest.mark.parametrize("pin", [None, A])
def test_a_held_version_meets_its_want(pin: Digest | None) -> None:
    """A version that is held meets an unpinned want it was fetched for, a pinned one by its digest."""
    wanted = want("m", pin=pin)
    request = wanted.request if pin is None else None
    assert plan(situation(demand(wanted), inventory=[held("m", A, request=request)])) == ()


@pytest.mark.parametrize("change", [{"source": "s3://other"}, {"include": ("*",)}, {"exclude": ("x",)}])
def test_what_was_fetched_for_something_else_is_fetched_again(change: dict[str, Any]) -> None:
    """Where source or filters changed since, what is held does not meet an unpinned want; nor where that is
    unknown."""
    wanted, before = want("m", **change), want("m").request
    assert plan(situation(demand(wanted), inventory=[held("m", A, request=before)])) == (StartFetch(wanted),)
    assert plan(situation(demand(wanted), inventory=[held("m", A, request=None)])) == (StartFetch(wanted),)


def test_what_is_resolved_again_stays_meanwhile() -> None:
    """What is here under a wanted name is not evicted because it is to be resolved again: its source may be away. It
    goes where its own fetch has no room beside it."""
    wanted, before = want("m", Priority.PREFETCH), held("m", size=95, request=None)
    assert plan(situation(demand(wanted), inventory=[before], space=FULL)) == (StartFetch(wanted),)
    short = lacking(wanted, size=50, inventory=[before], space=replace(EMPTY, used=60, free=40))
    assert plan(short) == (Evict(wanted.ref, A, "space"),)


def test_another_digest_than_the_pin_is_fetched_again() -> None:
    """A held version of another digest than the pin does not meet the want."""
    wanted = want("m", pin=B)
    assert plan(situation(demand(wanted), inventory=[held("m", A)])) == (StartFetch(wanted),)


def test_a_fetch_under_way_is_not_started_again() -> None:
    """A want that is being fetched gives no step, also where others ask for it."""
    wanted = want("m")
    flying = {wanted.ref: replace(wanted, reasons=("pull",))}
    assert plan(situation(demand(wanted), fetching=flying)) == ()


def test_a_more_urgent_reason_moves_the_fetch_up() -> None:
    """A fetch under way gets the priority that its want has now, up or down."""
    wanted = want("m", Priority.WAITING)
    for before in (Priority.PULL, Priority.PREFETCH):
        steps = plan(situation(demand(wanted), fetching={wanted.ref: replace(wanted, priority=before)}))
        assert steps == (Reprioritize(wanted),)


def test_a_fetch_that_nobody_wants_is_cancelled() -> None:
    """A fetch whose want is gone, or was refused, is stopped."""
    flying = {want("m").ref: want("m")}
    assert plan(situation(demand(), fetching=flying)) == (Cancel(want("m").ref),)
    steps = plan(situation(demand(m=UNKNOWN), fetching=flying))
    assert steps == (Cancel(want("m").ref), Refuse(want("m").ref, UNKNOWN))


@pytest.mark.parametrize("change", [{"source": "s3://other"}, {"pin": B}, {"include": ("*",)}, {"exclude": ("x",)}])
def test_a_fetch_of_something_else_is_cancelled_and_started_again(change: dict[str, Any]) -> None:
    """Where source, pin or filters changed, the old fetch stops before the new one starts."""
    wanted = want("m", **change)
    steps = plan(situation(demand(wanted), fetching={wanted.ref: want("m")}))
    assert steps == (Cancel(wanted.ref), StartFetch(wanted))


def test_a_failure_is_final_until_the_want_changes() -> None:
    """What failed permanently is not tried again for another reason, but for another source, or once left out."""
    failed = want("m")
    same = replace(failed, priority=Priority.PREFETCH, reasons=("prefetch",))
    other = replace(failed, source="s3://other")
    assert plan(situation(demand(same), failed={failed.ref: failed})) == ()
    assert plan(situation(demand(other), failed={failed.ref: failed})) == (StartFetch(other),)
    assert plan(situation(demand(same))) == (StartFetch(same),)


def test_a_refusal_is_told_once() -> None:
    """A refusal is told when it is new or says something else; a want that becomes good is started."""
    ref = ModelRef("m", "v1")
    other = Permanent("digest_mismatch", "expected this, found that", "correct the pin")
    assert plan(situation(demand(m=UNKNOWN))) == (Refuse(ref, UNKNOWN),)
    again = Permanent(UNKNOWN.code, UNKNOWN.message, UNKNOWN.remedy)
    assert plan(situation(demand(m=again), failed={ref: UNKNOWN})) == ()
    assert plan(situation(demand(m=other), failed={ref: UNKNOWN})) == (Refuse(ref, other),)
    assert plan(situation(demand(m=other), failed={ref: want("m")})) == (Refuse(ref, other),)
    assert plan(situation(demand(want("m")), failed={ref: UNKNOWN})) == (StartFetch(want("m")),)


def test_a_failure_is_forgotten_with_its_want() -> None:
    """A failure or refusal that no want is about any more, or that is met by what is held, is forgotten."""
    ref = ModelRef("m", "v1")
    for settled in (want("m"), UNKNOWN):
        assert plan(situation(demand(), failed={ref: settled})) == (Forget(ref),)
    steps = plan(situation(demand(want("m")), failed={ref: want("m", pin=B)}, inventory=[held("m", A)]))
    assert steps == (Forget(ref),)


def test_pressure_evicts_the_unwanted() -> None:
    """Above the high watermark, versions that nothing wants go, least recently used first, down to the low one."""
    inventory = [held("old", last_used=1.0), held("older", last_used=0.0), held("new", last_used=2.0)]
    assert plan(situation(demand(), inventory=inventory, space=FULL)) == (
        Evict(ModelRef("older", "v1"), A, "watermark"),
        Evict(ModelRef("old", "v1"), A, "watermark"),
    )


def test_what_is_asked_for_is_never_evicted() -> None:
    """Neither what is wanted, nor what is in use or kept, nor what a client asks for in vain is evicted."""
    inventory = [
        held("wanted"),
        held("refused"),
        held("used", in_use=True),
        held("kept", keep=True),
        held("flagged", wanted=True),
    ]
    wanted = demand(want("wanted"), refused=UNKNOWN)
    steps = plan(situation(wanted, inventory=inventory, space=FULL))
    assert steps == (Refuse(ModelRef("refused", "v1"), UNKNOWN),)


def test_a_waiting_fetch_evicts_for_its_space() -> None:
    """A fetch that waits for space has as much evicted as it is short of, below the watermarks too."""
    half = replace(EMPTY, used=60, free=40)
    inventory = [held("old", size=30, last_used=0.0), held("new", size=30, last_used=1.0)]
    for needed, expected in ((40, 0), (41, 1), (71, 2)):
        steps = plan(lacking(want("m"), inventory=inventory, space=half, size=needed))
        assert len(steps) == expected
        assert all(isinstance(step, Evict) and step.reason == "space" for step in steps)


def test_space_that_cannot_be_made_evicts_nothing() -> None:
    """Where evicting everything would still not make enough space, the cache is not emptied in vain, and no fetch has
    to wait for that."""
    half = replace(EMPTY, used=60, free=40)
    inventory = [held("old", size=30), held("used", size=30, in_use=True)]
    assert plan(lacking(want("m"), inventory=inventory, space=half, size=90)) == (AllowOthers(want("m").ref),)


def test_who_needs_less_is_not_kept_waiting_in_vain() -> None:
    """Room is made for the first one for whom it can be made, and only for that one."""
    wants = want("huge"), want("small"), want("tiny", Priority.PREFETCH)
    short = {wants[0].ref: Shortage(90, 0), wants[1].ref: Shortage(10, 0), wants[2].ref: Shortage(1, 0)}
    inventory = [held("old", size=20), held("used", size=80, in_use=True)]
    full = replace(EMPTY, used=100, free=0)
    stakes = {w.ref: FetchSpace({}, {}, {}) for w in wants}
    made = lacking(*wants, size=0, shortages=short, inventory=inventory, space=full, fetch_space=stakes)
    steps = plan(replace(made, high_watermark=1.0))
    assert steps == (AllowOthers(wants[0].ref), Evict(ModelRef("old", "v1"), A, "space"))


def test_prefetched_versions_yield_to_pods_alone() -> None:
    """A prefetched version that no pod uses goes for a pod that waits, after all that nothing wants; for a pull or
    another prefetch it stays."""
    fetched = want("fetched", Priority.PREFETCH)
    inventory = [held("fetched", size=50), held("old", size=10, last_used=9.0)]
    space = replace(EMPTY, used=60, free=40)
    for priority, goes in ((Priority.WAITING, True), (Priority.PULL, False), (Priority.PREFETCH, False)):
        made = lacking(want("m", priority), size=80, inventory=inventory, space=space)
        steps = plan(replace(made, demand=demand(fetched, want("m", priority))))
        evictions = (Evict(fetched.ref, A, "space"),) if goes else (AllowOthers(want("m").ref),)
        assert steps == evictions
    made = lacking(want("m"), size=50, inventory=inventory, space=space)
    assert plan(replace(made, demand=demand(fetched, want("m")))) == (Evict(ModelRef("old", "v1"), A, "space"),)
    used = replace(made, demand=demand(fetched, want("m")), inventory=[held("fetched", size=60, in_use=True)])
    assert plan(used) == (AllowOthers(want("m").ref),)


def test_a_prefetch_under_way_gives_way_to_a_pod() -> None:
    """What less urgent fetches have reserved goes to one that is short, the latest first, after what nothing wants;
    what waits at the same priority gives way to who asked first."""
    pod, first, second = want("pod"), want("a", Priority.PREFETCH), want("b", Priority.PREFETCH)
    stakes = {
        pod.ref: FetchSpace({}, {}, {}),
        first.ref: FetchSpace({}, {"f": 40}, {}),
        second.ref: FetchSpace({"x": 20}, {"s": 10}, {"p": 10}),
    }
    space = replace(EMPTY, used=20, reserved=50, dying=10, free=20)
    active = {w.ref: w for w in (pod, first, second)}

    wanted = demand(pod, first, second)
    for size, asking, expected in (
        (20, (pod,), ()),
        (21, (pod,), (Preempt(second.ref),)),
        (61, (pod,), (Preempt(first.ref), Preempt(second.ref))),
        (101, (pod,), (AllowOthers(pod.ref),)),
        (21, (first, second), (Preempt(second.ref),)),
        (21, (second, first), (Preempt(first.ref),)),
        (21, (second,), (AllowOthers(second.ref),)),
    ):
        short = {w.ref: Shortage(size, 0) for w in asking}
        made = lacking(pod, size=0, shortages=short, fetching=active, fetch_space=stakes, space=space)
        assert set(plan(replace(made, demand=wanted))) == set(expected), size


def test_a_blob_that_a_fetch_goes_on_from_frees_nothing() -> None:
    """A version is not evicted for a blob that a fetch under way keeps from being deleted."""
    stakes = {want("m").ref: FetchSpace({f"old{A.hex}": 30}, {}, {})}
    space = replace(EMPTY, used=30, free=70)
    made = lacking(want("m"), size=80, inventory=[held("old", size=30)], fetch_space=stakes, space=space)
    assert plan(made) == (AllowOthers(want("m").ref),)


def test_what_two_fetches_go_on_from_stays_for_each() -> None:
    """A partial blob, a reservation or a blob that two fetches share is given back when both have given way."""
    pod, first, second = want("pod"), want("a", Priority.PREFETCH), want("b", Priority.PREFETCH)
    shared = FetchSpace({"x": 10}, {"f": 10}, {"p": 10})
    stakes = {pod.ref: FetchSpace({}, {}, {}), first.ref: shared, second.ref: shared}
    space = replace(EMPTY, used=80, reserved=10, dying=10, free=0)
    made = lacking(pod, size=11, fetch_space=stakes, space=space, inventory=[held("used", size=70, in_use=True)])
    made = replace(made, fetching={w.ref: w for w in (pod, first, second)}, demand=demand(pod, first, second))
    assert set(plan(made)) == {Preempt(first.ref), Preempt(second.ref)}
    assert plan(replace(made, shortages={pod.ref: Shortage(31, 0)})) == (AllowOthers(pod.ref),)


def test_who_only_expects_a_blob_keeps_it_too() -> None:
    """A blob that one fetch has and another one is about to find is given back when both have given way."""
    pod, first, second = want("pod"), want("a", Priority.PREFETCH), want("b", Priority.PREFETCH)
    stakes = {
        pod.ref: FetchSpace({}, {}, {}),
        first.ref: FetchSpace({"x": 20}, {}, {}),
        second.ref: FetchSpace({"x": 0}, {}, {}),
    }
    space = replace(EMPTY, used=90, free=10)
    made = lacking(pod, size=30, fetch_space=stakes, space=space, inventory=[held("used", size=70, in_use=True)])
    made = replace(made, fetching={w.ref: w for w in (pod, first, second)}, demand=demand(pod, first, second))
    assert set(plan(made)) == {Preempt(first.ref), Preempt(second.ref)}


def test_a_lack_of_files_evicts_who_has_most() -> None:
    """Where inodes are short and bytes are not, versions go until there are enough of them."""
    space = replace(EMPTY, used=20, free=80, files_free=1)
    many = replace(held("many", last_used=2.0), blobs={str(number): 1 for number in range(5)})
    made = lacking(want("m"), size=0, files=6, inventory=[held("one"), many], space=space)
    assert plan(made) == (Evict(many.ref, A, "space"),)


def test_a_stale_version_makes_room_for_its_successor() -> None:
    """A held version whose digest is not the pin any more may go when its successor needs the space."""
    wanted = want("m", pin=B)
    space = replace(EMPTY, used=60, free=40)
    steps = plan(lacking(wanted, size=60, inventory=[held("m", A, 60)], space=space))
    assert steps == (Evict(wanted.ref, A, "space"),)


def test_steps_come_in_order() -> None:
    """What gives back comes before what takes."""
    gone, urgent, new = want("gone"), want("urgent"), want("new")
    steps = plan(
        situation(
            demand(urgent, new, lost=UNKNOWN),
            inventory=[held("old", size=50)],
            fetching={gone.ref: gone, urgent.ref: replace(urgent, priority=Priority.PULL)},
            failed={ModelRef("past", "v1"): UNKNOWN},
            space=FULL,
        )
    )
    assert [type(step) for step in steps] == [Cancel, Forget, Refuse, Evict, Reprioritize, StartFetch]
