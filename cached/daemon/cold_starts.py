"""The daemon's part of pods' traces: from the first sight of a pod to its open gate.

Law: told of pods, statuses and steps; sends a pod's spans when its gate may open, or when the pod is gone. Bounded: of
each version the last steps. Runs on the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from cached.contract.program.tracing import ROOT, Interval, Tracer, root_of
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State
from cached.core.demand import PodWant

_MOST_STEPS = 64  # of one version: a few tries


@dataclass(frozen=True, slots=True)
class _Start:
    """A pod that waits: the versions that it wants, and when it was seen first."""

    wants: tuple[PodWant, ...]
    bound: float

    @property
    def refs(self) -> list[ModelRef]:
        """Its versions, each once."""
        return sorted({want.ref for want in self.wants})


class ColdStarts:
    """The cold starts of this node. `clock`: the monotonic one, as that of the intervals."""

    def __init__(self, tracer: Tracer, clock: Callable[[], float]) -> None:
        self._tracer = tracer
        self._clock = clock
        self._starts: dict[str, _Start] = {}
        self._known: frozenset[str] | None = None  # uids of the pods of the last look; None: there was none
        self._steps: dict[ModelRef, deque[Interval]] = {}

    def record(self, ref: ModelRef, interval: Interval) -> None:
        """Record a step of a version fetch. One before any pod waits for the version counts too: it may be why the pod
        waits less."""
        self._steps.setdefault(ref, deque(maxlen=_MOST_STEPS)).append(interval)

    def look(
        self,
        pods: Iterable[PodWant],
        find: Callable[[ModelRef], ModelStatus | None],
        unmounted: Collection[str] = (),
    ) -> None:
        """Look at the pods and the statuses of what they want, and at the uids of those whose volumes are `unmounted`;
        call it after each change of any. Pods that have what they want at the first look of all started earlier."""
        now = self._clock()
        wants: dict[str, list[PodWant]] = {}
        for want in pods:
            wants.setdefault(want.uid, []).append(want)
        for uid in wants.keys() - (self._known or frozenset()):
            start = _Start(tuple(wants[uid]), now)
            if self._known is not None or uid in unmounted or not _is_here(start, find):
                self._starts[uid] = start
        self._known = frozenset(wants)
        for uid, start in list(self._starts.items()):
            if uid not in wants:
                self._send(uid, start, now, "pod_gone")
            elif uid not in unmounted and _is_here(start, find):
                self._send(uid, start, now, None)
        waited = {ref for start in self._starts.values() for ref in start.refs}
        self._steps = {ref: steps for ref, steps in self._steps.items() if ref in waited or not _is_settled(find(ref))}

    def _send(self, uid: str, start: _Start, now: float, failure: str | None) -> None:
        del self._starts[uid]
        root, cold = root_of(uid), False
        for ref in start.refs:
            about = {"holdfast.model": ref.name, "holdfast.version": ref.version}
            for step in self._steps.get(ref, ()):
                if step.ended >= start.bound:
                    cold = True
                    attributes = {**about, **step.attributes}
                    self._tracer.send(root, Interval(step.name, step.began, step.ended, attributes, step.failure))
        if failure is None:
            self._tracer.send(root, Interval("gate open", now, now))
        namespace, _, name = start.wants[0].pod.partition("/")
        about = {"k8s.pod.uid": uid, "k8s.pod.name": name, "k8s.namespace.name": namespace}
        about["holdfast.models"] = ",".join(map(str, start.refs))
        self._tracer.send_root(uid, Interval(ROOT, start.bound, now, {**about, "holdfast.cold": cold}, failure))


def _is_here(start: _Start, find: Callable[[ModelRef], ModelStatus | None]) -> bool:
    return all(_is_met(want, find(want.ref)) for want in start.wants)


def _is_met(want: PodWant, status: ModelStatus | None) -> bool:
    """Return whether a gate for this want opens: the name leads to what it asks for, also while other content is
    fetched. A version has its name a moment before its fetch has ended, which the trace waits for."""
    if status is None or status.held is None or status.state in (State.PUBLISHING, State.VERIFYING):
        return False
    return want.pin is None or str(want.pin) == status.held


def _is_settled(status: ModelStatus | None) -> bool:
    return status is None or status.state in (State.READY, State.FAILED)
