"""The incremental demand: an update computes only the changed versions.

Law: gives the result of `demand.compute_demand` for any order of changes. In memory; reads no clock. The cost of one
change does not depend on the number of versions; only a new catalog, or new labels of the node, cost all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog
from cached.core.demand import Demand, Want, compute_version_demand, prefetched_versions
from cached.core.versions.record import Version


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

    def update(
        self,
        catalog: Catalog,
        node_labels: Mapping[str, str],
        versions: Mapping[ModelRef, Version],
        changed: Collection[ModelRef],
    ) -> set[ModelRef]:
        """Update the demand and return the versions that were computed again.

        `versions`: the requested ones, perhaps with others. `changed`: those whose pods, pulls or verdicts changed
        since the last update.
        """
        concerned = set(changed)
        if catalog is not self._catalog or node_labels != self._labels:
            before_prefetched, self._prefetched = self._prefetched, prefetched_versions(catalog, node_labels)
            self._catalog, self._labels = catalog, dict(node_labels)
            concerned.update(before_prefetched, self._prefetched, versions)
        for ref in concerned:
            self._compute(versions.get(ref) or Version(ref))
        return concerned

    def verdicts(self, ref: ModelRef) -> dict[Digest, Permanent]:
        """Return the verdicts on pins of a version."""
        return {pin: self._verdicts[ref, pin] for pin in self._pins.get(ref, ())}

    def _compute(self, version: Version) -> None:
        ref, pulls = version.ref, [pull.want for pull in version.pulls]
        prefetched = ref in self._prefetched
        outcome = compute_version_demand(
            self._catalog, ref, version.pods, pulls, version.verdicts, prefetched=prefetched
        )
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
