"""Which spans a pod's trace gets, and when."""

from __future__ import annotations

from collections.abc import Iterable

from cached.contract.digest import Digest
from cached.contract.program.tracing import Interval, SpanId, Tracer, root_of
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State
from cached.core.demand import PodWant
from cached.daemon.cold_starts import ColdStarts

DIGEST, OTHER = Digest("a1" * 32), Digest("b2" * 32)
A, B = ModelRef("a", "1"), ModelRef("b", "1")


class _Noted(Tracer):
    """Keeps what is sent, by trace."""

    def __init__(self) -> None:
        self.sent: dict[int, list[Interval]] = {}

    def send_root(self, uid: str, interval: Interval) -> None:
        self.sent.setdefault(root_of(uid).trace, []).append(interval)

    def send(self, below: SpanId | None, interval: Interval) -> SpanId:
        assert below is not None
        self.sent.setdefault(below.trace, []).append(interval)
        return below

    def names(self, uid: str) -> list[str]:
        return [interval.name for interval in self.sent.get(root_of(uid).trace, [])]


class _Node:
    def __init__(self) -> None:
        self.now = 0.0
        self.tracer = _Noted()
        self.starts = ColdStarts(self.tracer, lambda: self.now)
        self.states: dict[ModelRef, State] = {}

    def look(self, *pods: tuple[str, ModelRef], pin: Digest | None = None) -> None:
        self.now += 1
        self.starts.look([PodWant(uid, f"default/{uid}", ref, pin) for uid, ref in pods], self._find)

    def step(self, ref: ModelRef, *names: str) -> None:
        for name in names:
            self.now += 1
            self.starts.record(ref, Interval(name, self.now - 1, self.now))

    def set(self, state: State, *refs: ModelRef) -> None:
        self.states |= dict.fromkeys(refs, state)

    def _find(self, ref: ModelRef) -> ModelStatus | None:
        state = self.states.get(ref)
        return None if state is None else _status(ref, state)


def _status(ref: ModelRef, state: State) -> ModelStatus:
    held = str(DIGEST) if state in (State.READY, State.PUBLISHING) else None
    return ModelStatus(
        model=ref.name,
        version=ref.version,
        state=state,
        digest=held,
        pinned=False,
        source="",
        bytes_total=None,
        bytes_done=0,
        rate_bytes_per_s=None,
        eta_s=None,
        since="",
        updated="",
        error=None,
        held=held,
    )


def _all(names: Iterable[str]) -> list[str]:
    return [*names, "gate open", "cold start"]


def test_a_pod_starts_when_all_its_versions_are_there() -> None:
    """The trace of a pod of two versions ends with the later one, and has the steps of both."""
    node = _Node()
    node.look()
    node.set(State.FETCHING, A, B)
    node.look(("p", A), ("p", B))
    node.step(A, "resolve", "publish")
    node.set(State.READY, A)
    node.look(("p", A), ("p", B))
    assert node.tracer.names("p") == []
    node.step(B, "resolve")
    node.set(State.READY, B)
    node.look(("p", A), ("p", B))
    assert node.tracer.names("p") == _all(("resolve", "publish", "resolve"))


def test_a_start_ends_with_the_fetch_and_with_the_right_content() -> None:
    """A version that has its name while its fetch goes on is waited for, and so is other content than the pod's pin."""
    node = _Node()
    node.look()
    node.set(State.PUBLISHING, A)
    node.look(("p", A), pin=OTHER)
    node.set(State.READY, A)
    node.look(("p", A), pin=OTHER)
    assert node.tracer.names("p") == []
    node.set(State.PUBLISHING, A)
    node.look(("q", A), pin=DIGEST)
    assert node.tracer.names("q") == []
    node.set(State.READY, A)
    node.look(("q", A), pin=DIGEST)
    assert node.tracer.names("q") == _all(())


def test_each_pod_has_the_steps_that_it_waited_for() -> None:
    """Pods that wait for one version have its steps each; one that came later has those that had not ended."""
    node = _Node()
    node.look()
    node.set(State.FETCHING, A)
    node.look(("first", A))
    node.step(A, "resolve")
    node.look(("first", A), ("second", A))
    node.step(A, "fetch")
    node.set(State.READY, A)
    node.look(("first", A), ("second", A))
    assert node.tracer.names("first") == _all(("resolve", "fetch"))
    assert node.tracer.names("second") == _all(("fetch",))


def test_steps_are_kept_while_they_may_be_asked_for() -> None:
    """Of a version that is fetched and fails for ever only the last steps are kept, and none without a waiting pod."""
    node = _Node()
    node.look()
    node.set(State.FETCHING, A, B)
    node.look(("p", A))
    node.step(A, *["resolve"] * 1000)
    node.step(B, "resolve")
    node.set(State.READY, A, B)
    node.look(("p", A))
    assert node.tracer.names("p").count("resolve") == 64
    node.look(("p", A), ("late", B))
    assert node.tracer.names("late") == _all(())
