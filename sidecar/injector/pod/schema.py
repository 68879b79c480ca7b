"""Refuse a pod whose fields have other types than the API's, so that later code need not check them.

Law: pure. Knows only the fields that the injector reads; an absent field equals `null`, as in the API.
"""

from __future__ import annotations

from typing import Any

from cached.contract.errors import Permanent

_TEXT, _NUMBER = str, int
_QUANTITIES: dict[str, Any] = {"limits": {}, "requests": {}}
_TERM: dict[str, Any] = {"matchExpressions": [{}], "matchFields": [{}]}
_CONTAINER: dict[str, Any] = {
    "name": _TEXT,
    "restartPolicy": _TEXT,
    "volumeMounts": [{"name": _TEXT, "mountPath": _TEXT}],
    "env": [{"name": _TEXT}],
    "ports": [{"containerPort": _NUMBER}],
    "resources": _QUANTITIES,
}
# The API's own types: https://kubernetes.io/docs/reference/generated/kubernetes-api/, Pod v1 core.
_POD: dict[str, Any] = {
    "metadata": {"annotations": {}},
    "spec": {
        "os": {"name": _TEXT},
        "nodeName": _TEXT,
        "volumes": [
            {"name": _TEXT, "hostPath": {"path": _TEXT}, "csi": {"driver": _TEXT, "volumeAttributes": {}}},
        ],
        "containers": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "resources": _QUANTITIES,
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{}],
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_TERM]},
            }
        },
    },
}


def check_pod(pod: dict[str, Any]) -> None:
    """Raise `Permanent` (`invalid_review`) that names the first field whose type is not the API's."""
    _check("object", pod, _POD)
    for key, value in ((pod.get("metadata") or {}).get("annotations") or {}).items():
        if not isinstance(value, str):
            raise _refuse(f"object.metadata.annotations.{key[:100]}", "text", value)


def _check(where: str, value: object, shape: Any) -> None:
    if value is None:
        return
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise _refuse(where, "a list", value)
        for index, item in enumerate(value):
            if item is None:
                raise _refuse(f"{where}[{index}]", "an object", item)
            _check(f"{where}[{index}]", item, shape[0])
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise _refuse(where, "an object", value)
        for key, inner in shape.items():
            _check(f"{where}.{key}", value.get(key), inner)
    elif not isinstance(value, shape) or isinstance(value, bool):
        raise _refuse(where, "text" if shape is _TEXT else "a number", value)


def _refuse(where: str, expected: str, found: object) -> Permanent:
    kind = "null" if found is None else type(found).__name__
    return Permanent(
        "invalid_review",
        f"expected `{where}` to be {expected}, found {kind}",
        "only the API server's own reviews are answered: check who calls the webhook",
    )
