"""The wants of volumes, and a cluster that has them among the wants of its pods.

Law: in memory, on the event loop. A pod that is annotated and has a volume too wants its version once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus
from cached.core.demand import PodWant
from cached.node.cluster import AnnotatedPod, Cluster, PodLife


class VolumeWants:
    """The wants of volumes, by target, and the pods of those that are mounted; `changes` counts the wants' changes."""

    def __init__(self) -> None:
        self._by_target: dict[Path, tuple[PodWant, ...]] = {}
        self._mounted: dict[Path, str] = {}
        self.changes = 0

    def add(self, target: Path, wants: tuple[PodWant, ...]) -> None:
        """Want what the volume at `target` needs, until `remove`."""
        if self._by_target.get(target) != wants:
            self._by_target[target] = wants
            self.changes += 1

    def remove(self, target: Path) -> None:
        """End the wants of a volume, which is not mounted any more. Idempotent."""
        self._mounted.pop(target, None)
        if self._by_target.pop(target, None) is not None:
            self.changes += 1

    def mark_mounted(self, target: Path, uid: str) -> None:
        """Note that the volume at `target` is mounted, for the pod `uid`, until `remove`."""
        self._mounted[target] = uid

    def list_unmounted(self, announced: Iterable[str]) -> frozenset[str]:
        """Return the uids of the pods of which a volume is not mounted; `announced`: those of pods that are known to
        get one, asked for or not."""
        asked = {want.uid for target, wants in self._by_target.items() if target not in self._mounted for want in wants}
        return frozenset(asked | (set(announced) - set(self._mounted.values())))

    def list_all(self) -> tuple[PodWant, ...]:
        """Return the wants of all volumes."""
        return tuple(want for wants in self._by_target.values() for want in wants)


class WithVolumes:
    """A cluster in which volumes want versions as pods do. Methods as in the Protocol."""

    def __init__(self, cluster: Cluster, wants: VolumeWants) -> None:
        self._cluster = cluster
        self._wants = wants
        self._joined: tuple[PodWant, ...] = ()
        self._joined_of: tuple[object, int] = ((), -1)  # the pods' wants and the volumes' changes

    @property
    def synced(self) -> bool:
        return self._cluster.synced

    @property
    def labels(self) -> Mapping[str, str] | None:
        return self._cluster.labels

    def pods(self) -> tuple[PodWant, ...]:
        pods = self._cluster.pods()
        if self._joined_of[0] is not pods or self._joined_of[1] != self._wants.changes:
            self._joined = tuple(dict.fromkeys((*pods, *self._wants.list_all())))
            self._joined_of = (pods, self._wants.changes)
        return self._joined

    def users(self) -> tuple[PodWant, ...]:
        return tuple(dict.fromkeys((*self._cluster.users(), *self._wants.list_all())))

    def list_annotated(self) -> tuple[AnnotatedPod, ...]:
        return self._cluster.list_annotated()

    def list_unmounted(self) -> frozenset[str]:
        return self._wants.list_unmounted(pod.uid for pod in self._cluster.list_annotated() if pod.by_volume)

    async def list_pods_now(self) -> tuple[PodWant, ...]:
        pods = await self._cluster.list_pods_now()
        return tuple(dict.fromkeys((*pods, *self._wants.list_all())))

    def find_pod(self, uid: str) -> PodLife:
        return self._cluster.find_pod(uid)

    def published(self, digests: frozenset[Digest]) -> None:
        self._cluster.published(digests)

    def withdrawn(self, digest: Digest) -> AbstractAsyncContextManager[object]:
        return self._cluster.withdrawn(digest)

    async def report_csi(self, *, ready: bool) -> None:
        await self._cluster.report_csi(ready=ready)

    def tell_pods(self, find: Callable[[ModelRef], ModelStatus | None]) -> None:
        self._cluster.tell_pods(find)

    def summarise(self, statuses: Iterable[ModelStatus], used: int, capacity: int) -> None:
        self._cluster.summarise(statuses, used, capacity)

    def lost(self, refs: Iterable[ModelRef], reason: str) -> None:
        self._cluster.lost(refs, reason)

    def figures(self) -> Mapping[str, float]:
        return self._cluster.figures()

    async def run(self, changed: Callable[[], None]) -> None:
        await self._cluster.run(changed)
