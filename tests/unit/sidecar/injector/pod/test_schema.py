"""The shape of a pod that comes to the webhook."""

from __future__ import annotations

from typing import Any

import pytest

from cached.contract.errors import Permanent
from sidecar.injector.pod.schema import check_pod

GOOD: dict[str, Any] = {
    "metadata": {"annotations": {"a": "b"}},
    "spec": {"containers": [{"name": "main", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": 1}}}]},
}


@pytest.mark.parametrize("pod", [GOOD, {}, {"metadata": None, "spec": {"volumes": None}}])
def test_a_pod_as_the_api_writes_it_passes(pod: dict[str, Any]) -> None:
    """Absent fields, null and fields that nothing reads are no objection."""
    check_pod(pod)


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"containers": {}}, "object.spec.containers"),
        ({"containers": ["main"]}, "object.spec.containers[0]"),
        ({"initContainers": [None]}, "object.spec.initContainers[0]"),
        ({"containers": [{"env": ["A=B"]}]}, "object.spec.containers[0].env[0]"),
        ({"containers": [{"volumeMounts": [{"mountPath": 1}]}]}, "object.spec.containers[0].volumeMounts[0].mountPath"),
        ({"containers": [{"ports": [{"containerPort": True}]}]}, "object.spec.containers[0].ports[0].containerPort"),
        ({"affinity": {"nodeAffinity": []}}, "object.spec.affinity.nodeAffinity"),
    ],
)
def test_a_field_of_another_kind_is_named(spec: Any, where: str) -> None:
    """A pod whose field is of another kind than the API's is refused, and the field is named."""
    with pytest.raises(Permanent) as caught:
        check_pod({"spec": spec})
    assert caught.value.code == "invalid_review" and f"`{where}`" in caught.value.message


@pytest.mark.parametrize("value", [1, None, ["m"]])
def test_annotations_are_text(value: object) -> None:
    """An annotation that is no text is refused; the API server writes none as null."""
    with pytest.raises(Permanent, match="annotations"):
        check_pod({"metadata": {"annotations": {"holdfast.dev/model": value}}})
