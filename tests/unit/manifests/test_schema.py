"""Every object against the API's own schema, strictly: no field that the API server would not know."""

from __future__ import annotations

import kubernetes_validate
import pytest

from tests.support.manifests import EVERYTHING, objects

NEWEST = "1.36"
OLDEST = (
    "1.30"  # the first in which the admission policies and match conditions that the base uses are generally available
)
NOT_THE_APIS_OWN = {"PodMonitor", "PrometheusRule"}


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_every_object_is_valid(kustomization: str) -> None:
    """No object has a field, a type or a value that the newest API refuses."""
    for found in objects(kustomization):
        if found["kind"] not in NOT_THE_APIS_OWN:
            kubernetes_validate.validate(found, NEWEST, strict=True)


@pytest.mark.parametrize("kustomization", ["base", "overlays/laptop", "examples/gate-by-hand", "examples/server"])
def test_the_oldest_supported_api_takes_it(kustomization: str) -> None:
    """What needs no policy in place of the webhook applies to the oldest supported version, no field of it unknown."""
    for found in objects(kustomization):
        kubernetes_validate.validate(found, OLDEST, strict=True)


def test_the_gate_by_hand_applies_before_native_sidecars() -> None:
    """The gate written by hand uses nothing that clusters without native sidecars do not know, but for one field that
    an older API drops."""
    for found in objects("examples/gate-by-hand"):
        for container in [*found["spec"]["initContainers"], *found["spec"]["containers"]]:
            for mount in container["volumeMounts"]:
                mount.pop("recursiveReadOnly", None)
        kubernetes_validate.validate(found, "1.27", strict=True)
