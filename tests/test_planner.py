"""The planner: what follows from what is wanted, held, under way and free."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.demand import Demand, Priority, Want
from cached.eviction import Holding
from cached.ledger import DiskSpace, Ledger, NoSpace, Reservation, SpaceUse
from cached.planner import Cancel, Evict, Forget, Refuse, Reprioritize, Situation, Start, plan

A, B = Digest("a" * 64), Digest("b" * 64)
EMPTY = SpaceUse(capacity=100, used=0, reserved=0, dying=0, free=100, budget=100)
FULL = SpaceUse(capacity=100, used=95, reserved=0, dying=0, free=5, budget=100)
UNKNOWN = Permanent("unknown_model", "no such model", "add it")


def want(name: str, priority: Priority = Priority.WAITING, **changes: Any) -> Want:
    made = Want(ModelRef(name, "v1"), f"s3://b/{name}", None, (), (), priority, ("pod ns/p",), False)
    return replace(made, **changes)


def held(name: str, digest: Digest = A, size: int = 10, **changes: Any) -> Holding:
    made = Holding(ModelRef(name, "v1"), digest, {f"{name}{digest.hex}": size}, 0.0, False, False, False)
    return replace(made, **changes)


def demand(*wants: Want, **refused: Permanent) -> Demand:
    return Demand({w.ref: w for w in wants}, {ModelRef(name, "v1"): error for name, error in refused.items()})


def situation(wanted: Demand, **changes: Any) -> Situation:
    made = Situation(
        demand=wanted,
        holdings=(),
        active={},
        settled={},
        space=EMPTY,
        needed_bytes=0,
        high_watermark=0.9,
        low_watermark=0.8,
    )
    return replace(made, **changes)


def test_nothing_wanted_nothing_done() -> None:
    """Without wants, and without pressure, what is held stays though nobody wants it."""
    assert plan(situation(demand())) == ()
    assert plan(situation(demand(), holdings=[held("old")])) == ()


def test_missing_versions_start_in_order_of_priority() -> None:
    """What is wanted and not held is started, the soonest first, equals by name."""
    late, soon, pull, first = want("a", Priority.PREFETCH), want("z"), want("m", Priority.PULL), want("b")
    assert plan(situation(demand(late, soon, pull, first))) == (Start(first), Start(soon), Start(pull), Start(late))


@pytest.mark.parametrize("pin", [None, A])
def test_a_held_version_meets_its_want(pin: Digest | None) -> None:
    """A version that is held meets an unpinned want always, and a pinned one where the digest is the pin."""
    assert plan(situation(demand(want("m", pin=pin)), holdings=[held("m", A)])) == ()


def test_another_digest_than_the_pin_is_fetched_again() -> None:
    """A held version of another digest than the pin does not meet the want."""
    wanted = want("m", pin=B)
    assert plan(situation(demand(wanted), holdings=[held("m", A)])) == (Start(wanted),)


def test_a_fetch_under_way_is_not_started_again() -> None:
    """A want that is being fetched gives no step, whoever else asks for it meanwhile."""
    wanted = want("m")
    flying = {wanted.ref: replace(wanted, reasons=("pull",))}
    assert plan(situation(demand(wanted), active=flying)) == ()


def test_a_more_urgent_reason_moves_the_fetch_up() -> None:
    """A fetch under way gets the priority that its want has now, up or down."""
    wanted = want("m", Priority.WAITING)
    for before in (Priority.PULL, Priority.PREFETCH):
        steps = plan(situation(demand(wanted), active={wanted.ref: replace(wanted, priority=before)}))
        assert steps == (Reprioritize(wanted),)


def test_a_fetch_that_nobody_wants_is_cancelled() -> None:
    """A fetch whose want is gone, or was refused, is stopped."""
    flying = {want("m").ref: want("m")}
    assert plan(situation(demand(), active=flying)) == (Cancel(want("m").ref),)
    steps = plan(situation(demand(m=UNKNOWN), active=flying))
    assert steps == (Cancel(want("m").ref), Refuse(want("m").ref, UNKNOWN))


@pytest.mark.parametrize("change", [{"source": "s3://other"}, {"pin": B}, {"include": ("*",)}, {"exclude": ("x",)}])
def test_a_fetch_of_something_else_is_cancelled_and_started_again(change: dict[str, Any]) -> None:
    """Where source, pin or filters changed, the old fetch stops before the new one starts."""
    wanted = want("m", **change)
    steps = plan(situation(demand(wanted), active={wanted.ref: want("m")}))
    assert steps == (Cancel(wanted.ref), Start(wanted))


def test_a_failure_is_final_until_the_want_changes() -> None:
    """What failed permanently is not tried again for another reason, but for another source, or once left out."""
    failed = want("m")
    same = replace(failed, priority=Priority.PREFETCH, reasons=("prefetch",))
    other = replace(failed, source="s3://other")
    assert plan(situation(demand(same), settled={failed.ref: failed})) == ()
    assert plan(situation(demand(other), settled={failed.ref: failed})) == (Start(other),)
    assert plan(situation(demand(same))) == (Start(same),)


def test_a_refusal_is_told_once() -> None:
    """A refusal is told when it is new or says something else; a want that becomes good is started."""
    ref = ModelRef("m", "v1")
    other = Permanent("digest_mismatch", "expected this, found that", "correct the pin")
    assert plan(situation(demand(m=UNKNOWN))) == (Refuse(ref, UNKNOWN),)
    again = Permanent(UNKNOWN.code, UNKNOWN.message, UNKNOWN.remedy)
    assert plan(situation(demand(m=again), settled={ref: UNKNOWN})) == ()
    assert plan(situation(demand(m=other), settled={ref: UNKNOWN})) == (Refuse(ref, other),)
    assert plan(situation(demand(m=other), settled={ref: want("m")})) == (Refuse(ref, other),)
    assert plan(situation(demand(want("m")), settled={ref: UNKNOWN})) == (Start(want("m")),)


def test_a_failure_is_forgotten_with_its_want() -> None:
    """A failure or refusal that nobody asks about any more, or that is met by what is held, is forgotten."""
    ref = ModelRef("m", "v1")
    for settled in (want("m"), UNKNOWN):
        assert plan(situation(demand(), settled={ref: settled})) == (Forget(ref),)
    steps = plan(situation(demand(want("m")), settled={ref: want("m", pin=B)}, holdings=[held("m", A)]))
    assert steps == (Forget(ref),)


def test_pressure_evicts_the_unwanted() -> None:
    """Above the high watermark, versions that nobody wants go, least recently used first, down to the low one."""
    holdings = [held("old", last_used=1.0), held("older", last_used=0.0), held("new", last_used=2.0)]
    assert plan(situation(demand(), holdings=holdings, space=FULL)) == (
        Evict(ModelRef("older", "v1"), A, "watermark"),
        Evict(ModelRef("old", "v1"), A, "watermark"),
    )


def test_what_is_asked_for_is_never_evicted() -> None:
    """Neither what is wanted, nor what is in use or kept, nor what somebody asks for in vain is evicted."""
    holdings = [
        held("wanted"),
        held("refused"),
        held("used", in_use=True),
        held("kept", keep=True),
        held("flagged", wanted=True),
    ]
    wanted = demand(want("wanted"), refused=UNKNOWN)
    steps = plan(situation(wanted, holdings=holdings, space=FULL, needed_bytes=100))
    assert steps == (Refuse(ModelRef("refused", "v1"), UNKNOWN),)


def test_a_waiting_fetch_evicts_for_its_space() -> None:
    """A fetch that waits for space has as much evicted as it is short of, below the watermarks too."""
    half = replace(EMPTY, used=60, free=40)
    holdings = [held("old", size=30, last_used=0.0), held("new", size=30, last_used=1.0)]
    for needed, expected in ((40, 0), (41, 1), (71, 2)):
        steps = plan(situation(demand(), holdings=holdings, space=half, needed_bytes=needed))
        assert len(steps) == expected
        assert all(isinstance(step, Evict) and step.reason == "space" for step in steps)


def test_space_that_cannot_be_made_evicts_nothing() -> None:
    """Where evicting everything would still not make enough space, the cache is not emptied in vain."""
    half = replace(EMPTY, used=60, free=40)
    holdings = [held("old", size=30), held("used", size=30, in_use=True)]
    assert plan(situation(demand(), holdings=holdings, space=half, needed_bytes=90)) == ()


def test_a_stale_version_makes_room_for_its_successor() -> None:
    """A held version whose digest is not the pin any more may go when its successor needs the space."""
    wanted = want("m", pin=B)
    space = replace(EMPTY, used=60, free=40)
    steps = plan(
        situation(
            demand(wanted), holdings=[held("m", A, 60)], active={wanted.ref: wanted}, space=space, needed_bytes=60
        )
    )
    assert steps == (Evict(wanted.ref, A, "space"),)


def test_steps_come_in_order() -> None:
    """What gives back comes before what takes."""
    gone, urgent, new = want("gone"), want("urgent"), want("new")
    steps = plan(
        situation(
            demand(urgent, new, lost=UNKNOWN),
            holdings=[held("old", size=50)],
            active={gone.ref: gone, urgent.ref: replace(urgent, priority=Priority.PULL)},
            settled={ModelRef("past", "v1"): UNKNOWN},
            space=FULL,
        )
    )
    assert [type(step) for step in steps] == [Cancel, Forget, Refuse, Evict, Reprioritize, Start]


# A node of whole numbers: what the planner says is done at once, fetches end or fail at random.

REFS = [ModelRef(name, "v1") for name in "abcdef"]
BLOBS = {"shared": 20} | {f"own-{ref.name}": 10 * number + 5 for number, ref in enumerate(REFS)}
CAPACITY = 110


@dataclass
class Node:
    """Carries out plans as the daemon does: reserves before it fetches, moves to trash before it deletes."""

    ledger: Ledger
    on_disk: dict[str, int] = field(default_factory=dict)
    trash: int = 0
    holdings: dict[ModelRef, Holding] = field(default_factory=dict)
    active: dict[ModelRef, Want] = field(default_factory=dict)
    flights: dict[ModelRef, Reservation] = field(default_factory=dict)
    settled: dict[ModelRef, Want | Permanent] = field(default_factory=dict)
    leased: set[ModelRef] = field(default_factory=set)
    clock: float = 0.0

    def blobs(self, ref: ModelRef) -> dict[str, int]:
        names = [f"own-{ref.name}"] + (["shared"] if ref.name in "bdf" else [])
        return {name: BLOBS[name] for name in names}

    def situation(self, wanted: Demand, needed: int) -> Situation:
        return Situation(
            demand=wanted,
            holdings=[replace(h, in_use=ref in self.leased) for ref, h in self.holdings.items()],
            active=dict(self.active),
            settled=dict(self.settled),
            space=self.ledger.use(),
            needed_bytes=needed,
            high_watermark=0.9,
            low_watermark=0.5,
        )

    def reserve(self, ref: ModelRef) -> int:
        """Reserve what is missing; the bytes that are needed where there is no space for them."""
        missing = sum(size for name, size in self.blobs(ref).items() if name not in self.on_disk)
        try:
            self.flights[ref] = self.ledger.reserve(missing)
        except NoSpace as error:
            return error.needed_bytes
        return 0

    def publish(self, ref: ModelRef) -> None:
        """End a fetch well, unless a blob that was here when it began was evicted: then it goes on waiting."""
        with self.flights.pop(ref) as space:
            for name, size in self.blobs(ref).items():
                if name not in self.on_disk and size <= space.size:
                    space.commit(size)
                    self.on_disk[name] = size
        if self.blobs(ref).keys() <= self.on_disk.keys():
            self.clock += 1
            digest = Digest.of(ref.name.encode())
            self.holdings[ref] = Holding(ref, digest, self.blobs(ref), self.clock, False, False, False)
            del self.active[ref]

    def evict(self, ref: ModelRef) -> None:
        del self.holdings[ref]
        kept = {name for h in self.holdings.values() for name in h.blobs}
        for name in set(self.on_disk) - kept:
            self.trash += self.on_disk[name]
            self.ledger.moved_to_trash(self.on_disk.pop(name))

    def cancel(self, ref: ModelRef) -> None:
        del self.active[ref]
        if ref in self.flights:
            with self.flights.pop(ref):
                pass


turns = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(REFS), st.sampled_from(Priority), max_size=4),
        st.sets(st.sampled_from(REFS), max_size=2),
        st.sets(st.sampled_from(REFS), max_size=4),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(turns)
def test_a_node_that_follows_its_plans(history: list[Any]) -> None:
    """However wants, leases and fetches come and go, the budget holds, and nothing wanted, used or kept is evicted."""
    node = Node(Ledger(CAPACITY, lambda: DiskSpace(1000, 500)))
    for priorities, leased, ending, deletes in history:
        wanted = demand(*(replace(want(ref.name), priority=priority) for ref, priority in priorities.items()))
        node.leased = leased & node.holdings.keys()
        needed = max((node.reserve(ref) for ref in sorted(node.active) if ref not in node.flights), default=0)
        steps = plan(node.situation(wanted, needed))
        assert steps == plan(node.situation(wanted, needed))
        for step in steps:
            if isinstance(step, Evict):
                assert step.ref not in wanted.wants
                assert step.ref not in node.leased
                node.evict(step.ref)
            elif isinstance(step, Cancel):
                assert step.ref not in wanted.wants
                node.cancel(step.ref)
            elif isinstance(step, Start):
                assert step.want.ref not in node.active
                node.active[step.want.ref] = step.want
            elif isinstance(step, Reprioritize):
                node.active[step.want.ref] = step.want
        if deletes:
            node.ledger.trash_deleted(node.trash)
            node.trash = 0
        for ref in sorted(ending & node.flights.keys()):
            node.publish(ref)
        use = node.ledger.use()
        assert use.used + use.reserved + use.dying <= use.budget == CAPACITY
        assert use.used == sum(node.on_disk.values())
        assert wanted.wants.keys() <= node.holdings.keys() | node.active.keys()


@given(st.sets(st.sampled_from(REFS), min_size=1, max_size=4))
def test_wants_that_fit_are_met(refs: set[ModelRef]) -> None:
    """On a full node whose versions nobody wants or uses, new wants that fit together are all met."""
    node = Node(Ledger(CAPACITY, lambda: DiskSpace(1000, 500)))
    assume(sum({name: size for ref in refs for name, size in node.blobs(ref).items()}.values()) <= CAPACITY)
    for ref in REFS:
        node.active[ref] = want(ref.name)
        if node.reserve(ref) == 0:
            node.publish(ref)
    node.active.clear()
    wanted = demand(*(want(ref.name) for ref in refs))
    for _turn in range(20):
        waiting = sorted(node.active.keys() - node.flights.keys())
        needed = node.reserve(waiting[0]) if waiting else 0
        for step in plan(node.situation(wanted, needed)):
            if isinstance(step, Evict):
                node.evict(step.ref)
            elif isinstance(step, Start):
                node.active[step.want.ref] = step.want
        node.ledger.trash_deleted(node.trash)
        node.trash = 0
        for ref in sorted(node.flights):
            node.publish(ref)
    assert refs <= node.holdings.keys()
