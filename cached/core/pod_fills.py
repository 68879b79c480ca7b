"""How long pods take from their binding to this node until they have their weights: all versions are here, which opens
a gate at once, and volumes are mounted.

Law: pure: no I/O, the clock is an argument. Pods that were filled when the first of them were seen, by an earlier
daemon, count nothing; a later pod whose versions are all here when it comes took no time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.core.demand import PodWant, is_met


@dataclass(frozen=True, slots=True)
class WaitingPod:
    """A pod, as `namespace/name`, that waits for a version: `since` when, in seconds of the clock; None where that is
    not known, as of a version that was here and is lost."""

    pod: str
    ref: ModelRef
    since: float | None


class PodFills:
    """The pods that are not filled, and since when they are known. `changes` counts the calls of `update`."""

    def __init__(self) -> None:
        self._waiting: dict[str, float] = {}
        self._filled: set[str] | None = None  # None: no pods were seen yet
        self.changes = 0

    def list_waiting(
        self, pods: Iterable[PodWant], models: Mapping[ModelRef, Digest], since: Mapping[ModelRef, float]
    ) -> tuple[WaitingPod, ...]:
        """Return which of these pods wait for which version, the longest first. `since`: when the first pod began to
        wait for a version, for pods of which no more is known."""
        waiting = dict.fromkeys((pod.uid, pod.pod, pod.ref) for pod in pods if not is_met(pod, models))
        found = [WaitingPod(name, ref, self._waiting.get(uid, since.get(ref))) for uid, name, ref in waiting]
        return tuple(sorted(found, key=lambda each: (each.since is None, each.since or 0.0, each.pod, each.ref)))

    def update(
        self,
        pods: Iterable[PodWant],
        models: Mapping[ModelRef, Digest],
        now: float,
        unmounted: Collection[str] = (),
    ) -> list[float]:
        """See the pods of the node, the versions here, and the uids of the pods whose volumes are `unmounted`; return
        the seconds that each pod took which is filled since the last call."""
        self.changes += 1
        met: dict[str, bool] = {}
        for pod in pods:
            met[pod.uid] = met.get(pod.uid, pod.uid not in unmounted) and is_met(pod, models)
        before = self._filled
        if before is None:
            before = {uid for uid, filled in met.items() if filled}
        self._waiting = {uid: self._waiting.get(uid, now) for uid in met if uid not in before}
        took = [now - self._waiting.pop(uid) for uid, filled in met.items() if filled and uid not in before]
        self._filled = {uid for uid in met if uid not in self._waiting}
        return took
