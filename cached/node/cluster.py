"""What is around this node's cache: the pods that want versions, and whoever is told what is here.

Law: a Protocol and the surroundings of a node without a cluster. The daemon asks and tells through this alone, so that
it is the same daemon with and without Kubernetes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus
from cached.core.demand import PodWant


class Surroundings(Protocol):
    """Who wants versions here, and who is told of them."""

    @property
    def synced(self) -> bool:
        """Whether it is known what is in use: until then everything is."""

    @property
    def labels(self) -> Mapping[str, str] | None:
        """The node's labels, for the catalog's node selectors; None: not known yet."""

    def pods(self) -> tuple[PodWant, ...]:
        """What the pods of this node want."""

    def published(self, digests: frozenset[Digest]) -> None:
        """These snapshots are here, and no others."""

    def withdrawn(self, digest: Digest) -> AbstractAsyncContextManager[object]:
        """While inside, nobody is told that the snapshot is here; wrap its deletion in this."""

    def tell_pods(self, find: Callable[[ModelRef], ModelStatus | None]) -> None:
        """Tell the pods what is new of the versions that they want; `find` gives a version's status."""

    def summarise(self, statuses: Iterable[ModelStatus], used: int, capacity: int) -> None:
        """Tell people how the node is. Sizes in bytes. Costs something for each version."""

    def lost(self, refs: Iterable[ModelRef], reason: str) -> None:
        """Tell the pods that use these versions that their bytes went bad."""

    def figures(self) -> Mapping[str, float]:
        """How the connection to the cluster does: metric names (without `holdfast_`) and values."""

    async def run(self, changed: Callable[[], None]) -> None:
        """Follow and tell until cancelled; `changed` is called when what is wanted may have changed."""


class NoCluster:
    """A node by itself: only the catalog and pulls want anything."""

    synced = True
    labels: Mapping[str, str] | None = {}

    def pods(self) -> tuple[PodWant, ...]:
        return ()

    def published(self, digests: frozenset[Digest]) -> None:
        """Nobody is told."""

    @asynccontextmanager
    async def withdrawn(self, digest: Digest) -> AsyncIterator[None]:  # noqa: ARG002 - nobody was told
        yield

    def tell_pods(self, find: Callable[[ModelRef], ModelStatus | None]) -> None:
        """Nobody is told."""

    def summarise(self, statuses: Iterable[ModelStatus], used: int, capacity: int) -> None:
        """Nobody is told."""

    def lost(self, refs: Iterable[ModelRef], reason: str) -> None:
        """Nobody is told."""

    def figures(self) -> Mapping[str, float]:
        return {}

    async def run(self, changed: Callable[[], None]) -> None:
        """There is nothing to follow."""
