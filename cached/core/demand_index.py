"""The incremental demand: an update computes only the changed versions.

Law: gives the result of `demand.compute_demand` for any order of changes. In memory; reads no clock. The cost of one
change does not depend on the number of versions; only a new catalog, or new labels of the node, cost all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog
from cached.core.demand import Demand, PodWant, PullWant, Want, compute_outcome, group_by_version, prefetched_versions

Verdicts = Mapping[tuple[ModelRef, Digest], Permanent]


class DemandIndex:
    """`demand` is the current demand: each update changes its mappings in place."""

    def __init__(self) -> None:
        self._wants: dict[ModelRef, Want] = {}
        self._refused: dict[ModelRef, Permanent] = {}
        self._verdicts: dict[tuple[ModelRef, Digest], Permanent] = {}
        self.demand = Demand(self._wants, self._refused, self._verdicts)
        self._pins: dict[ModelRef, Collection[Digest]] = {}  # those with a verdict
        self._catalog = EMPTY_CATALOG
        self._labels: Mapping[str, str] | None = None
        self._prefetched: frozenset[ModelRef] = frozenset()
        self._pods: Collection[PodWant] = ()
        self._by_pods: dict[ModelRef, list[PodWant]] = {}
        self._by_pulls: dict[ModelRef, Sequence[PullWant]] = {}

    def update(
        self,
        catalog: Catalog,
        node_labels: Mapping[str, str],
        pods: Collection[PodWant],
        pulls: Mapping[ModelRef, Sequence[PullWant]],
        failed_pins: Verdicts,
        changed: Iterable[ModelRef],
    ) -> set[ModelRef]:
        """Update the demand and return the versions that were computed again.

        `pulls`: all pulls of each version whose pulls changed since the last update, empty without any left.
        `changed`: versions whose `failed_pins` changed since then.
        """
        concerned = {*pulls, *changed}
        self._by_pulls.update(pulls)
        for ref in [ref for ref, left in pulls.items() if not left]:
            del self._by_pulls[ref]
        if pods is not self._pods and pods != self._pods:
            before, self._by_pods = self._by_pods, group_by_version(pods)
            both = before.keys() | self._by_pods.keys()
            concerned.update(ref for ref in both if before.get(ref) != self._by_pods.get(ref))
        self._pods = pods
        if catalog is not self._catalog or node_labels != self._labels:
            before_prefetched, self._prefetched = self._prefetched, prefetched_versions(catalog, node_labels)
            self._catalog, self._labels = catalog, dict(node_labels)
            concerned.update(before_prefetched, self._prefetched, self._by_pods, self._by_pulls)
        for ref in concerned:
            self._compute(ref, failed_pins)
        return concerned

    def pods(self, ref: ModelRef) -> Sequence[PodWant]:
        """Return the pods that want a version."""
        return self._by_pods.get(ref, ())

    def verdicts(self, ref: ModelRef) -> dict[tuple[ModelRef, Digest], Permanent]:
        """Return the verdicts on pins of a version."""
        return {(ref, pin): self._verdicts[ref, pin] for pin in self._pins.get(ref, ())}

    def _compute(self, ref: ModelRef, failed_pins: Verdicts) -> None:
        asked = self._by_pods.get(ref, ()), self._by_pulls.get(ref, ())
        outcome = compute_outcome(self._catalog, ref, *asked, failed_pins, prefetched=ref in self._prefetched)
        self._wants.pop(ref, None)
        self._refused.pop(ref, None)
        for pin in self._pins.pop(ref, ()):
            del self._verdicts[ref, pin]
        if outcome.want is not None:
            self._wants[ref] = outcome.want
        if outcome.refused is not None:
            self._refused[ref] = outcome.refused
        if outcome.verdicts:
            self._pins[ref] = tuple(outcome.verdicts)
            self._verdicts.update({(ref, pin): error for pin, error in outcome.verdicts.items()})
