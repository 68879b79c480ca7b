"""The life of versions on the pure core alone: thousands of lives in seconds, without a loop, a disk or a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog, parse_catalog
from cached.core.demand import Demand, PodWant, Priority, PullWant, Want
from cached.core.demand_index import DemandIndex
from cached.core.planner import (
    Cancel,
    Forget,
    Preempt,
    Refuse,
    Reprioritize,
    StartFetch,
    plan_versions,
)
from cached.core.space import NoSpace, SpaceUse
from cached.core.versions import queue
from cached.core.versions.messages import (
    Arrived,
    CountWait,
    CountWant,
    DemandUpdated,
    Ended,
    Evicted,
    NeedFound,
    Pulled,
    SpaceReserved,
    StartTry,
    Step,
    Stopped,
    StopTry,
    TryFailed,
)
from cached.core.versions.record import (
    Blocked,
    Failed,
    Held,
    Inactive,
    PinMismatch,
    Pull,
    Queued,
    RefusedWants,
    Running,
    Stopping,
)
from cached.core.versions.table import VersionTable

REFS = [ModelRef(name, "v1") for name in "abcde"]
A, B, *_ = REFS
WRONG = Digest("e" * 64)
AT_ONCE = {Priority.WAITING: 2, Priority.PULL: 1, Priority.PREFETCH: 1}
WITH_SMALL = 2
ANSWER_S, RETRY_CAP_S = 600.0, 3600.0
SMALL, LARGE = SpaceReserved(size_bytes=4096, files=1), SpaceReserved(size_bytes=1 << 40, files=1)
GONE = Permanent("not_found", "the origin has no such file", "publish it")
MISMATCH = Permanent("digest_mismatch", "expected sha256:aa, found sha256:bb", "correct it")
AWAY = Transient("unreachable", "the origin does not answer", "wait")
GARBLED = Transient("bad_response", "the answer is a web page", "wait")
FULL = NoSpace(10, 0, SpaceUse(capacity=10, used=10, reserved=0, dying=0, free=0, budget=10))


def content(ref: ModelRef) -> Digest:
    """What the source has of a version, at all times."""
    return Digest.of(str(ref).encode())


def mismatch(pin: Digest, found: Digest) -> PinMismatch:
    return PinMismatch("the manifest digest", f"{pin} (the pin)", f"{found} (at the source)", "correct the pin")


@cache
def catalog(prefetch: frozenset[ModelRef], source: str) -> Catalog:
    text = "models:\n"
    for ref in REFS:
        rule = ", prefetch: {versions: [v1]}" if ref in prefetch else ""
        text += f"  {ref.name}: {{versions: {{v1: {{source: '{source}/{ref.name}'}}}}{rule}}}\n"
    parsed = parse_catalog(text, EMPTY_CATALOG)
    assert not parsed.rejected, parsed.rejected
    return parsed.catalog


class Node:
    """What the reconciler does around the records, without tasks: a try ends when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.troubled: set[ModelRef] = set()
        self.table = VersionTable(self.troubled.__contains__)
        self.index = DemandIndex()
        self.pods: dict[str, PodWant] = {}
        self.held: dict[ModelRef, Held] = {}
        self.tries: dict[ModelRef, Want] = {}
        self.called_off: set[ModelRef] = set()
        self.dirty: set[ModelRef] = set()
        self.steps: list[Step] = []
        self.orders = count()
        self.use_catalog(frozenset())

    @property
    def demand(self) -> Demand:
        return self.index.demand

    def use_catalog(self, prefetch: Iterable[ModelRef], *, source: str = "s3://b") -> None:
        self.catalog = catalog(frozenset(prefetch), source)
        self.dirty.update(REFS)

    def pull(self, ref: ModelRef, pin: Digest | None = None, *, refresh: bool = False) -> Pull:
        pull = Pull(f"pull {next(self.orders)}", PullWant(ref, pin), refresh)
        self.do(self.table.handle(ref, Pulled(pull, ref in self.held), self.now))
        self.refresh()
        return pull

    def handle(self, ref: ModelRef, event: Any) -> None:
        self.do(self.table.handle(ref, event, self.now))

    def do(self, steps: Iterable[Step]) -> None:
        """Carry out what the core asks for."""
        for step in steps:
            self.steps.append(step)
            match step:
                case StartTry(ref, want):
                    assert ref not in self.tries, "two tries at one version"
                    self.tries[ref] = want
                case StopTry(ref):
                    self.called_off.add(ref)
                case Ended(ref):
                    assert ref not in self.tries, "a fetch that runs is told as ended"
                    self.called_off.discard(ref)
                    self.dirty.add(ref)

    def stop(self, ref: ModelRef) -> None:
        """What was called off has come down."""
        self.tries.pop(ref, None)
        self.handle(ref, Stopped())

    def publish(self, ref: ModelRef) -> None:
        """The try brings what its source has, unless that is not what was pinned."""
        want = self.tries.pop(ref)
        if want.pin not in (None, content(ref)):
            self._fail(ref, mismatch(want.pin or WRONG, content(ref)))
            return
        self.held[ref] = Held(content(ref), want.request)
        self.handle(ref, Arrived(content(ref)))

    def fail(self, ref: ModelRef, error: HoldfastError) -> None:
        del self.tries[ref]
        self._fail(ref, error)

    def _fail(self, ref: ModelRef, error: HoldfastError) -> None:
        self.handle(ref, TryFailed(error, 1.0, self.held.get(ref), self.demand.wants.get(ref)))

    def refresh(self) -> None:
        """Plan what changed, as the reconciler does."""
        self.do(self.table.pass_time(self.now))
        self.do(self.table.update_pods(tuple(self.pods.values()), self.held, self.now))
        self._update()
        refs, self.dirty = self.dirty | set(self.table.records), set()
        wants, refused = self.demand.wants, self.demand.refused
        looks = {
            ref: DemandUpdated(wants.get(ref), ref in refused, self.index.get_refused_pins(ref), self.held.get(ref))
            for ref in refs
        }
        self.do(self.table.handle_all(looks, self.now))
        records = {ref: self.table.get(ref) for ref in refs}
        met = {ref for ref, record in records.items() if record.is_met(wants.get(ref), self.held.get(ref))}
        settled = {ref: record.failure for ref, record in records.items() if record.failure is not None}
        for step in plan_versions(self.demand, met, dict(self.table.fetching), settled):
            match step:
                case StartFetch(want):
                    self.do(self.table.start(want, self.now))
                case Reprioritize(want):
                    self.handle(want.ref, step)
                case Cancel(ref) | Refuse(ref, _) | Forget(ref):
                    self.handle(ref, step)
        self._update()
        self.do(self.table.admit(self.now))

    def _update(self) -> None:
        changed = self.table.take_changed_asks()
        self.dirty.update(self.index.update(self.catalog, {}, self.table.records, changed))

    def rest(self) -> None:
        """Let all that is under way come to its end: every try succeeds from now on, and time passes."""
        self.troubled.clear()
        for _ in range(400):
            self.refresh()
            if self.called_off:
                self.stop(min(self.called_off))
            elif self.tries:
                self.publish(min(self.tries))
            elif self.table.fetching or self.missing():
                self.now = max(self.now, self.table.due)
            elif not self.dirty:
                return
        raise AssertionError(f"it never comes to rest: {self.table.records}")

    def missing(self) -> list[ModelRef]:
        return [
            ref for ref, want in self.demand.wants.items() if not self.table.get(ref).is_met(want, self.held.get(ref))
        ]


@pytest.fixture
def node() -> Node:
    return Node()


refs = st.sampled_from(REFS)


class Lives(RuleBasedStateMachine):
    """Several versions, through whatever comes."""

    @initialize()
    def begin(self) -> None:
        self.node = Node()
        self.asked: dict[str, Pull] = {}
        self.final: dict[str, Pull] = {}
        self.waiting: dict[ModelRef, float] = {}
        self.seen = 0

    @rule(ref=refs, pin=st.sampled_from(["none", "none", "right", "wrong"]), refresh=st.booleans())
    def a_person_pulls(self, ref: ModelRef, pin: str, refresh: bool) -> None:
        pull = self.node.pull(ref, _pin(ref, pin), refresh=refresh)
        self.asked[pull.id] = pull

    @rule(name=st.sampled_from("pqr"), ref=refs, pin=st.sampled_from(["none", "none", "right", "wrong"]))
    def a_pod_comes(self, name: str, ref: ModelRef, pin: str) -> None:
        uid = f"{name}-{next(self.node.orders)}"
        self.node.pods[name] = PodWant(uid, f"default/{name}", ref, _pin(ref, pin))

    @rule(name=st.sampled_from("pqr"))
    def a_pod_goes(self, name: str) -> None:
        self.node.pods.pop(name, None)

    @rule(prefetch=st.frozensets(refs, max_size=3), moved=st.booleans())
    def the_catalog_changes(self, prefetch: frozenset[ModelRef], moved: bool) -> None:
        self.node.use_catalog(prefetch, source="s3://other" if moved else "s3://b")

    @rule()
    def the_node_plans(self) -> None:
        self.node.refresh()

    @rule(index=st.integers(0, 9), error=st.sampled_from([None, GONE, AWAY, GARBLED, FULL]))
    def a_try_ends(self, index: int, error: HoldfastError | None) -> None:
        if not self.node.tries:
            return
        ref = sorted(self.node.tries)[index % len(self.node.tries)]
        if error is None:
            self.node.publish(ref)
        else:
            self.node.fail(ref, error)

    @rule(index=st.integers(0, 9), need=st.sampled_from([SMALL, LARGE]))
    def a_try_has_its_space(self, index: int, need: SpaceReserved) -> None:
        if self.node.tries:
            self.node.handle(sorted(self.node.tries)[index % len(self.node.tries)], need)

    @rule(ref=refs)
    def a_fetch_gives_way(self, ref: ModelRef) -> None:
        self.node.handle(ref, Preempt(ref))

    @rule(hopeless=st.frozensets(refs, max_size=2))
    def room_is_sought(self, hopeless: frozenset[ModelRef]) -> None:
        for ref, _ in self.node.table.blocked:
            self.node.handle(ref, NeedFound(10))
        self.node.do(self.node.table.record_space_plan(hopeless, self.node.now))

    @rule()
    def what_was_called_off_comes_down(self) -> None:
        for ref in sorted(self.node.called_off):
            self.node.stop(ref)

    @rule(ref=refs)
    def a_version_is_evicted(self, ref: ModelRef) -> None:
        if self.node.held.pop(ref, None) is not None:
            self.node.dirty.add(ref)
            self.node.handle(ref, Evicted())

    @rule(ref=refs)
    def a_source_keeps_its_fetch_waiting(self, ref: ModelRef) -> None:
        self.node.troubled ^= {ref}

    @rule(seconds=st.sampled_from([0.5, 20.0, 70.0, 310.0, 700.0, 4000.0]))
    def time_passes(self, seconds: float) -> None:
        self.node.now += seconds
        self.node.do(self.node.table.pass_time(self.node.now))

    # --- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def one_try_a_version(self) -> None:
        """A record runs or is stopping exactly while a try, or the end of one, is to come."""
        node = self.node
        states = {ref: record.state for ref, record in node.table.records.items()}
        assert {ref for ref, state in states.items() if isinstance(state, Stopping)} == node.called_off
        assert {
            ref for ref, state in states.items() if isinstance(state, Running)
        } == node.tries.keys() - node.called_off
        assert {ref for ref, record in node.table.records.items() if record.fetch} == node.table.fetching.keys()

    @invariant()
    def the_queue_keeps_moving(self) -> None:
        """A queued fetch waits for a running one of its priority that is not known to be small, for as many small ones
        as may run at once, or for one that lacks space and comes first."""
        node = self.node
        while steps := node.table.admit(node.now):  # one in trouble takes no room, as the next look finds out
            node.do(steps)
        fetches = {ref: fetch for ref in node.table.fetching if (fetch := node.table.get(ref).fetch)}
        counted = {ref: fetches[ref].want.priority for ref in node.tries if ref not in node.troubled}
        large = Counter(priority for ref, priority in counted.items() if not _is_small(node.table, ref))
        running = Counter(counted.values())
        room = min((f.urgency for f in fetches.values() if f.lacks_space and not f.skipped), default=None)
        for ref, fetch in fetches.items():
            if isinstance(node.table.get(ref).state, Queued):
                priority = fetch.want.priority
                busy = large[priority] >= AT_ONCE[priority] or running[priority] >= WITH_SMALL
                head = min(
                    f.urgency
                    for other, f in fetches.items()
                    if f.want.priority is priority and isinstance(node.table.get(other).state, Queued)
                )
                assert busy or (room is not None and head > room), f"{ref} could run"

    @invariant()
    def an_answer_is_given_once(self) -> None:
        """A pull that asks no more keeps its one answer, and a wrong pin's verdict is that of those who pin so."""
        for id_, asked in self.asked.items():
            pull = self.node.table.find_pull(id_)
            if pull is None:
                continue
            assert pull.want == asked.want
            assert pull.digest is None or pull.error is None
            if pull.error is not None and pull.error.code == "digest_mismatch":
                assert pull.want.pin == WRONG
            if pull.digest is not None:
                assert pull.digest == content(pull.want.ref) and pull.want.pin in (None, pull.digest)
            if pull not in self.node.table.get(pull.want.ref).pulls:
                assert self.final.setdefault(id_, pull) == pull
                assert (pull.digest is None) != (pull.error is None)

    @invariant()
    def a_wait_is_counted_once(self) -> None:
        """Each wait of a version's pods ends in one count, if it does not end with the pods."""
        new, self.seen = self.node.steps[self.seen :], len(self.node.steps)
        for step in new:
            if isinstance(step, CountWait):
                assert step.seconds <= self.node.now - self.waiting.pop(step.ref)
        for ref in REFS:
            waits = self.node.table.get(ref).waiting_since
            if waits is None:
                self.waiting.pop(ref, None)
            else:
                assert self.waiting.setdefault(ref, waits) == waits

    @invariant()
    def a_failure_has_its_time(self) -> None:
        """What failed is looked at again within an hour."""
        for record in self.node.table.records.values():
            assert record.due <= self.node.now + RETRY_CAP_S or record.due == float("inf")
            if isinstance(record.state, Failed):
                assert record.due <= record.state.retry_at <= self.node.now + RETRY_CAP_S

    # --- the end ---------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        node = self.node
        node.rest()
        for id_ in self.asked:
            pull = node.table.find_pull(id_)
            assert pull is None or pull.digest or pull.error, f"{pull} has no answer"
        self.an_answer_is_given_once()
        node.pods.clear()
        node.held.clear()
        node.use_catalog(frozenset())
        for _ in range(3):
            node.now += RETRY_CAP_S
            node.rest()
            node.held.clear()
        _assert_nothing_is_kept(node.table)


def _pin(ref: ModelRef, pin: str) -> Digest | None:
    return {"none": None, "right": content(ref), "wrong": WRONG}[pin]


def _is_small(table: VersionTable, ref: ModelRef) -> bool:
    state = table.get(ref).state
    return isinstance(state, Running) and state.is_small


def _assert_nothing_is_kept(table: VersionTable) -> None:
    assert not table.records
    kept = {name: value for name, value in vars(table).items() if isinstance(value, dict | set | list) and value}
    assert not kept.keys() - {"_asks_changed"}, kept
    waiting = vars(table._queue)
    assert not [name for name in ("_waiting", "_running", "_small", "_troubled") if waiting[name]], waiting


@pytest.fixture(autouse=True)
def few_at_once() -> Iterator[None]:
    """So few fetches run at once that the queue matters."""
    with patch.object(queue, "_AT_ONCE", AT_ONCE), patch.object(queue, "_WITH_SMALL", WITH_SMALL):
        yield


def _live(examples: int) -> None:
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_random_lives() -> None:
    """Through whatever comes each pull has its one answer, what is wanted comes, and nothing is remembered in vain."""
    _live(500)


@pytest.mark.slow
def test_many_random_lives() -> None:
    """The same, through thousands of lives."""
    _live(10_000)


@pytest.mark.parametrize(
    ("need", "beside"),
    [
        (SMALL, 1),
        (LARGE, 0),
        (SpaceReserved(size_bytes=4096, files=10_000), 0),
        (SpaceReserved(size_bytes=0, files=0), 1),
    ],
    ids=["small", "large", "many files", "nothing left to fetch"],
)
def test_a_small_fetch_leaves_the_turn_to_the_next(node: Node, need: SpaceReserved, beside: int) -> None:
    """A fetch counts as large until its files are listed; once it is known to be small another may run beside it."""
    node.use_catalog({A, B})
    node.refresh()
    assert len(node.tries) == 1
    node.handle(min(node.tries), need)
    assert len(node.tries) == 1 + beside


def test_a_fetch_that_grew_counts_as_large_again(node: Node) -> None:
    """What was small at the last try counts as large in the next one until its files are listed again."""
    node.use_catalog({A})
    node.refresh()
    node.handle(A, SMALL)
    node.fail(A, AWAY)
    node.now = node.table.due
    node.do(node.table.pass_time(node.now))
    node.use_catalog({A, B})
    node.refresh()
    assert set(node.tries) == {A}


def test_a_failure_is_tried_again_ever_more_rarely(node: Node) -> None:
    """What failed for good is tried again after five minutes, then after twice as long each time, up to an hour."""
    node.use_catalog({A})
    waited = []
    for _ in range(6):
        node.refresh()
        node.fail(A, GONE)
        waited.append(node.table.due - node.now)
        node.now = node.table.due
    assert waited == [300, 600, 1200, 2400, 3600, 3600]


def test_a_try_is_repeated_with_backoff(node: Node) -> None:
    """After transient errors the pauses double from a second to a minute; the source may ask for longer ones."""
    node.use_catalog({A})
    node.refresh()
    waited = []
    for _ in range(8):
        node.fail(A, AWAY)
        waited.append(node.table.due - node.now)
        node.now = node.table.due
        node.do(node.table.pass_time(node.now))
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60]
    node.fail(A, Transient("http_503", "busy", "wait", retry_after_s=500.0))
    assert node.table.due - node.now == 500


def test_bad_answers_in_a_row_are_given_up(node: Node) -> None:
    """Three bad answers in a row are permanent; an error of another kind between them begins a new row."""
    node.use_catalog({A})
    node.refresh()
    for error in (GARBLED, GARBLED, AWAY, GARBLED, GARBLED, GARBLED):
        assert isinstance(node.table.get(A).state, Running)
        node.fail(A, error)
        node.do(node.table.end_pauses([A], node.now))
    assert isinstance(node.table.get(A).state, Failed)


def test_a_new_pod_has_a_failure_tried_again(node: Node) -> None:
    """A pod that comes has an earlier failure tried again, as for the first time; a pod that was there does not."""
    node.pods["p"] = PodWant("uid-p", "default/p", A, None)
    node.refresh()
    node.fail(A, GONE)
    node.refresh()
    assert not node.tries
    node.pods["q"] = PodWant("uid-q", "default/q", A, None)
    node.refresh()
    node.fail(A, GONE)
    assert node.table.due == node.now + 60


def test_a_failure_that_pods_wait_for_is_tried_again_sooner(node: Node) -> None:
    """While a pod waits, what failed for good is tried again after a minute, then two, at most five, as its source may
    be corrected; not what was found in bytes that would be fetched again."""
    node.pods["p"] = PodWant("uid-p", "default/p", A, None)
    waited = []
    for error in (GONE, GONE, GONE, GONE, GONE, MISMATCH):
        node.refresh()
        node.fail(A, error)
        waited.append(node.table.due - node.now)
        node.now = node.table.due
    assert waited == [60, 120, 240, 300, 300, 3600]


def test_a_wrong_pin_is_its_askers(node: Node) -> None:
    """A pull that pins what the source has not is told so; the one that does not pin is met."""
    wrong = node.pull(A, WRONG)
    node.publish(A)
    node.refresh()
    plain = node.pull(A)
    node.publish(A)
    node.refresh()
    error = _found(node, wrong).error
    assert error is not None and error.code == "digest_mismatch"
    assert _found(node, plain).digest == content(A)


def test_a_success_keeps_the_verdicts_on_other_pins(node: Node) -> None:
    """A fetch that succeeds for others has a wrong pin not tried again: that would fetch it again and again."""
    node.use_catalog({A})
    node.pods["p"] = PodWant("uid-p", "default/p", A, WRONG)
    for _ in range(2):
        node.refresh()
        node.publish(A)
    node.refresh()
    assert node.held.keys() == node.table.records.keys() == {A}
    assert node.table.get(A).refused_pins.keys() == {WRONG}
    assert not node.tries


def test_a_verdict_is_looked_at_again_ever_more_rarely(node: Node) -> None:
    """A pod's wrong pin is tried again after five minutes, then ten, and forgotten with the pod."""
    node.pods["p"] = PodWant("uid-p", "default/p", A, WRONG)
    waited = []
    for _ in range(3):
        node.refresh()
        node.publish(A)
        waited.append(node.table.due - node.now)
        node.now = node.table.due
        node.do(node.table.pass_time(node.now))
    assert waited == [300, 600, 1200]
    del node.pods["p"]
    node.rest()
    assert not node.table.records


def test_what_was_called_off_can_be_started_again(node: Node) -> None:
    """A fetch that nothing wants any more is called off, and starts anew once it has come down and is wanted again."""
    node.use_catalog({A})
    node.refresh()
    node.use_catalog(set())
    node.refresh()
    assert node.called_off == {A}
    node.use_catalog({A})
    node.refresh()
    assert isinstance(node.table.get(A).state, Stopping)
    node.stop(A)
    node.refresh()
    assert isinstance(node.table.get(A).state, Running)


def test_a_refresh_that_fails_is_its_own(node: Node) -> None:
    """Where a source cannot be asked again, the pull that asked is told, and what is here stays as it is."""
    node.pull(A)
    node.publish(A)
    node.refresh()
    asked = node.pull(A, refresh=True)
    node.fail(A, GONE)
    node.refresh()
    assert _found(node, asked).error is GONE
    assert node.table.get(A).state == Inactive()


def test_a_wrong_pin_is_not_told_to_a_refresh_without_one(node: Node) -> None:
    """A try for a wrong pin answers the pull with that pin; the refresh of another pull is fetched after it."""
    node.pull(A)
    node.publish(A)
    node.refresh()
    wrong, plain = node.pull(A, WRONG), node.pull(A, refresh=True)
    for _ in range(2):
        node.publish(A)
        node.refresh()
    error = _found(node, wrong).error
    assert error is not None and error.code == "digest_mismatch"
    assert _found(node, plain).digest == content(A)


def test_who_makes_room_comes_first(node: Node) -> None:
    """While room is made for a fetch, none that comes after it begins; where none can be made, the others go on."""
    node.pull(A)
    node.fail(A, FULL)
    node.pull(B)
    assert isinstance(node.table.get(A).state, Blocked)
    assert isinstance(node.table.get(B).state, Queued)
    node.do(node.table.record_space_plan({A}, node.now))
    assert isinstance(node.table.get(B).state, Running)


def test_the_end_of_a_fetch_has_the_blocked_ones_tried_again(node: Node) -> None:
    """What a fetch reserved and did not use may be what another lacks: its end nudges those that wait for space."""
    node.pods["p"] = PodWant("uid-p", "default/p", B, None)
    node.refresh()
    node.pull(A)
    node.fail(A, FULL)
    node.publish(B)
    assert isinstance(node.table.get(A).state, Running)


def test_answers_are_kept_ten_minutes(node: Node) -> None:
    """A pull's answer is there for ten minutes; a refused one asks as long, and then the refusal is forgotten too."""
    unknown = ModelRef("unknown", "v1")
    met, refused = node.pull(A), node.pull(unknown)
    node.publish(A)
    node.refresh()
    assert isinstance(node.table.get(unknown).state, RefusedWants)
    node.now += 599
    node.refresh()
    assert _found(node, met).digest and _found(node, refused).error
    node.now += 1
    node.rest()
    assert node.table.find_pull(met.id) is node.table.find_pull(refused.id) is None
    assert unknown not in node.table.records


def test_a_wait_is_counted_when_its_version_is_here(node: Node) -> None:
    """From the first pod's want to the version's arrival, once, however many pods wait."""
    for name in "pq":
        node.pods[name] = PodWant(f"uid-{name}", f"default/{name}", A, None)
        node.refresh()
        node.now += 10
    node.publish(A)
    for _ in range(3):
        node.refresh()
    assert [step for step in node.steps if isinstance(step, CountWait)] == [CountWait(A, 20)]
    assert [step for step in node.steps if isinstance(step, CountWant)] == [CountWant(A, "miss")]


def _found(node: Node, pull: Pull) -> Pull:
    found = node.table.find_pull(pull.id)
    assert found is not None
    return found
