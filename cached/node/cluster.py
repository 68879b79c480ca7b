"""The cluster as the daemon sees it: the pods that want versions, and reports of the versions on this node.

Law: a Protocol, and its implementation without a cluster. The daemon reaches the cluster only through this, so that it
is the same daemon with and without Kubernetes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus
from cached.core.demand import PodWant


class PodLife(Enum):
    """What the cluster knows of a pod of this node. `ABSENT`: it ended, or is too new to be known yet."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    ENDING = "ending"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class AnnotatedPod:
    """A pod of this node that asks for versions by its annotations. `pod`: `namespace/name`; `error`: why they are not
    understood, and it wants nothing; `is_ending`: it is being deleted; `by_volume`: it gets them in a CSI volume."""

    uid: str
    pod: str
    wants: tuple[PodWant, ...]
    is_ending: bool
    error: HoldfastError | None = None
    by_volume: bool = False


class Cluster(Protocol):
    """The pods' wants, and reports to the cluster."""

    @property
    def synced(self) -> bool:
        """Whether the pods are known; until then every version counts as in use."""

    @property
    def labels(self) -> Mapping[str, str] | None:
        """The node's labels, for its zone and the catalog's selectors; None: not known yet. Threads read it too."""

    def pods(self) -> tuple[PodWant, ...]:
        """Return the wants of this node's pods."""

    def users(self) -> tuple[PodWant, ...]:
        """Return the wants of this node's pods and of those that are ending: they want nothing any more, and may still
        read what they have."""

    def find_pod(self, uid: str) -> PodLife:
        """Return whether a pod of this node lives; any pod, annotated or not."""

    def list_annotated(self) -> tuple[AnnotatedPod, ...]:
        """Return all pods of this node that ask for versions, also those that are ending, and those whose annotations
        are invalid."""

    def list_unmounted(self) -> frozenset[str]:
        """Return the uids of the pods that get their weights in volumes of which one is not mounted; none where this
        node mounts no volumes."""

    async def list_pods_now(self) -> tuple[PodWant, ...]:
        """Return `users` past every cache: a pod that was bound before the call is among them.
        Raises `HoldfastError` after seconds. Call it while it runs."""

    def published(self, digests: frozenset[Digest]) -> None:
        """Report that this node has these snapshots, and no others."""

    def withdrawn(self, digest: Digest) -> AbstractAsyncContextManager[object]:
        """Withdraw the report of a snapshot while inside; wrap its deletion in this."""

    async def report_csi(self, *, ready: bool) -> None:
        """Report whether this node mounts volumes; without `ready` return once that is known, or after some seconds."""

    def tell_pods(self, find: Callable[[ModelRef], ModelStatus | None]) -> None:
        """Report status changes to the pods that want the versions; `find` returns a version's status."""

    def summarise(self, statuses: Iterable[ModelStatus], used: int, capacity: int) -> None:
        """Publish a summary of the node for people. Sizes in bytes. Its cost grows with the number of versions."""

    def lost(self, refs: Iterable[ModelRef], reason: str) -> None:
        """Report to the pods that use these versions that their bytes are corrupt or lost."""

    def figures(self) -> Mapping[str, float]:
        """Return metrics of the connection to the cluster: names (without `holdfast_`) and values."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Watch and report until cancelled; call `changed` when wants or labels may have changed."""


class NoCluster:
    """A node without a cluster: only the catalog and pulls want versions."""

    synced = True
    labels: Mapping[str, str] | None = {}

    def pods(self) -> tuple[PodWant, ...]:
        return ()

    def users(self) -> tuple[PodWant, ...]:
        return ()

    def find_pod(self, uid: str) -> PodLife:  # noqa: ARG002 - no pod is known
        return PodLife.UNKNOWN

    def list_annotated(self) -> tuple[AnnotatedPod, ...]:
        return ()

    def list_unmounted(self) -> frozenset[str]:
        return frozenset()

    async def list_pods_now(self) -> tuple[PodWant, ...]:
        return ()

    def published(self, digests: frozenset[Digest]) -> None:
        """Do nothing."""

    async def report_csi(self, *, ready: bool) -> None:
        """Do nothing."""

    @asynccontextmanager
    async def withdrawn(self, digest: Digest) -> AsyncIterator[None]:  # noqa: ARG002 - nothing was reported
        yield

    def tell_pods(self, find: Callable[[ModelRef], ModelStatus | None]) -> None:
        """Do nothing."""

    def summarise(self, statuses: Iterable[ModelStatus], used: int, capacity: int) -> None:
        """Do nothing."""

    def lost(self, refs: Iterable[ModelRef], reason: str) -> None:
        """Do nothing."""

    def figures(self) -> Mapping[str, float]:
        return {}

    async def run(self, changed: Callable[[], None]) -> None:
        """Return at once."""
