"""By which way a pod gets its weights: behind a gate, or in a CSI volume of its own.

Law: pure. Whatever is in doubt is a gate, which needs nothing of the node but its folder.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cached.contract.annotations import WeightsRequest
from sidecar.injector.pod.gate_container import Json

_NODE_NAME = "metadata.name"


class Mode(Enum):
    """The cluster's default. AUTO: a volume where a node has the driver, else a gate."""

    GATE = "gate"
    CSI = "csi"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Delivery:
    """How one pod gets its weights: in a `volume`, or behind a gate. `only_with_driver`: on nodes with the driver only,
    as no annotation of this pod asked for a volume."""

    volume: bool
    only_with_driver: bool = False


def choose_delivery(asked: WeightsRequest, spec: Json, mode: Mode, driver_nodes: AbstractSet[str]) -> Delivery:
    """Return how a pod with this `spec` gets its weights. `driver_nodes`: those that have registered the driver; for a
    pod that can run on one node alone, that node decides."""
    if asked.mode is not None:
        return Delivery(volume=asked.mode == "csi")
    if mode is Mode.GATE or asked.gate is not None:  # who chooses among gates wants one
        return Delivery(volume=False)
    if mode is Mode.CSI:
        return Delivery(volume=True)
    node = _only_node(spec)
    if node is not None:
        return Delivery(volume=node in driver_nodes)
    return Delivery(volume=True, only_with_driver=True) if driver_nodes else Delivery(volume=False)


def _only_node(spec: Json) -> str | None:
    """Return the node that a pod is for, as its author or its DaemonSet wrote; None where several may do."""
    if spec.get("nodeName"):
        return str(spec["nodeName"])
    affinity: dict[str, Any] = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or ()
    names = {_named(term) for term in terms}
    return names.pop() if len(names) == 1 else None


def _named(term: Json) -> str | None:
    """Return the one node that a term allows by its name, None without such a field."""
    for field in term.get("matchFields") or ():
        values = field.get("values")
        is_name = field.get("key") == _NODE_NAME and field.get("operator") == "In"
        if is_name and isinstance(values, list) and len(values) == 1 and isinstance(values[0], str):
            return values[0]
    return None
