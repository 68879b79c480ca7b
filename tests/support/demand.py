"""The demand of a node computed at once: what the daemon's index of the demand must come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from cached.core.catalog import Catalog
from cached.core.demand import Demand, PodWant, PullWant, Want, compute_version_demand, prefetched_versions


@dataclass(frozen=True, slots=True)
class WholeDemand(Demand):
    """The demand, and the errors of the pins that cannot be met."""

    refused_pins: Mapping[tuple[ModelRef, Digest], Permanent]


def compute_demand(
    catalog: Catalog,
    pods: Iterable[PodWant],
    pulls: Iterable[PullWant],
    node_labels: Mapping[str, str],
    failed_pins: Mapping[tuple[ModelRef, Digest], Permanent],
) -> WholeDemand:
    """Merge pods, pulls and the catalog's prefetch rules into one want for each version."""
    pods, pulls = list(pods), list(pulls)
    prefetched = prefetched_versions(catalog, node_labels)
    wants: dict[ModelRef, Want] = {}
    refused: dict[ModelRef, Permanent] = {}
    refused_pins: dict[tuple[ModelRef, Digest], Permanent] = {}
    for ref in sorted({*(pod.ref for pod in pods), *(pull.ref for pull in pulls), *prefetched}):
        outcome = compute_version_demand(
            catalog,
            ref,
            [pod for pod in pods if pod.ref == ref],
            [pull for pull in pulls if pull.ref == ref],
            {pin: error for (failed, pin), error in failed_pins.items() if failed == ref},
            prefetched=ref in prefetched,
        )
        if outcome.want is not None:
            wants[ref] = outcome.want
        if outcome.refused is not None:
            refused[ref] = outcome.refused
        refused_pins.update({(ref, pin): error for pin, error in outcome.refused_pins.items()})
    return WholeDemand(wants, refused, refused_pins)
