"""The incremental demand: an update computes only the changed versions.

Law: gives the same result for any order of changes. In memory; reads no clock. The cost of one
change does not depend on the number of versions; only a new catalog, or new labels of the node, cost all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.catalog import EMPTY_CATALOG, Catalog
from cached.core.demand import Demand, Want, compute_version_demand, prefetched_versions
from cached.core.versions.record import Version

T = TypeVar("T")


class DemandIndex:
    """`demand` is the current demand: each update changes its mappings in place."""

    def __init__(self) -> None:
        self._wants: dict[ModelRef, Want] = {}
        self._refused: dict[ModelRef, Permanent] = {}
        self._refused_pins: dict[ModelRef, Mapping[Digest, Permanent]] = {}
        self._forbidden: dict[ModelRef, Mapping[str, Permanent]] = {}
        self.demand = Demand(self._wants, self._refused)
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

        `versions`: the requested ones, perhaps with others. `changed`: those whose pods, pulls or refused pins changed
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

    def get_refused_pins(self, ref: ModelRef) -> Mapping[Digest, Permanent]:
        """Return the errors of the pins of a version that cannot be met."""
        return self._refused_pins.get(ref, {})

    def get_forbidden(self, ref: ModelRef) -> Mapping[str, Permanent]:
        """Return the errors of the pods that the catalog does not give a version to, by namespace."""
        return self._forbidden.get(ref, {})

    def _compute(self, version: Version) -> None:
        ref, pulls = version.ref, [pull.want for pull in version.pulls]
        outcome = compute_version_demand(
            self._catalog, ref, version.pods, pulls, version.refused_pins, prefetched=ref in self._prefetched
        )
        _set_or_remove(self._wants, ref, outcome.want)
        _set_or_remove(self._refused, ref, outcome.refused)
        _set_or_remove(self._refused_pins, ref, outcome.refused_pins or None)
        _set_or_remove(self._forbidden, ref, outcome.forbidden or None)


def _set_or_remove(table: dict[ModelRef, T], ref: ModelRef, value: T | None) -> None:
    table.pop(ref, None)
    if value is not None:
        table[ref] = value
