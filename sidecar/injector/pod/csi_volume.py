"""A pod's versions as a CSI volume of its own, and the nodes that can mount it.

Law: pure. What the volume says is all that the driver knows of the pod's wish.
"""

from __future__ import annotations

from cached.contract.annotations import CSI_DRIVER, CSI_LABEL, LABEL_VALUE, WeightsRequest
from cached.contract.reference import write_models, write_pins
from sidecar.injector.pod.gate_container import VOLUME, Json


def make_csi_volume(asked: WeightsRequest) -> Json:
    """Return the volume with a pod's own versions; `asked.models` include the pins that apply. With `models` it is a
    tree of names like the node's public folder, so that a pod finds everything at the paths that a gate gives it."""
    attributes = {"models": write_models(asked.models), "verify": asked.verify}
    pins = write_pins(asked.models)
    if pins is not None:
        attributes["digest"] = pins
    return {"name": VOLUME, "csi": {"driver": CSI_DRIVER, "readOnly": True, "volumeAttributes": attributes}}


def make_csi_mount(path: str) -> Json:
    """Return a mount of that volume. The driver's own mounts are read-only, at every depth."""
    return {"name": VOLUME, "mountPath": path, "readOnly": True}


def make_driver_condition() -> Json:
    """Return the condition of a node affinity for nodes whose daemon mounts volumes."""
    return {"key": CSI_LABEL, "operator": "In", "values": [LABEL_VALUE]}
