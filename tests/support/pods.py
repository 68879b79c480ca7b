"""Pods as the API server shows them to a webhook, the injector's settings, and JSON patches applied to them."""

from __future__ import annotations

import copy
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

import jsonpatch

from cached.contract.annotations import MODEL, VERSION
from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.reference import ModelRef
from sidecar.injector.catalog_view import NO_CATALOG, CatalogView
from sidecar.injector.pod.delivery import Mode
from sidecar.injector.pod.gate_container import GateMode, GateResources, GateSettings
from sidecar.injector.pod.patch import ClusterDefaults, Patch, patch_pod

Json = dict[str, Any]

NAMESPACE = "team-a"
REF = ModelRef("acme/tiny", "v1")
ASK = {MODEL: REF.name, VERSION: REF.version}
DIGEST, OTHER_DIGEST = Digest("a1" * 32), Digest("b2" * 32)
PINNED = CatalogView({REF: DIGEST}, frozenset({REF.name}))
SETTINGS = GateSettings(
    image="registry.example/holdfast-gate:1",
    pull_policy="IfNotPresent",
    mode=GateMode.NATIVE,
    user=65532,
    resources=GateResources(cpu="10m", cpu_limit="500m", memory="64Mi", memory_limit="256Mi"),
    deadline_s=600,
    host_public="/var/lib/holdfast/public",
    recursive_read_only="IfPossible",
    listen_host="0.0.0.0",
    log_format="text",
)
INIT_SETTINGS = replace(SETTINGS, mode=GateMode.INIT)


def make_pod(annotations: dict[str, str] | None = None, /, **spec: Any) -> Json:
    """A pod with these annotations (those of one model, where none are given), one container, and more `spec`."""
    notes = ASK if annotations is None else annotations
    container = {"name": "server", "image": "app:1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "tiny-", "annotations": dict(notes)},
        "spec": {"containers": [container], **spec},
    }


def ask_more(**more: str) -> dict[str, str]:
    """The annotations of one model and more of them; `_` in a keyword is `-` in the annotation's name."""
    return {**ASK, **{f"holdfast.dev/{name.replace('_', '-')}": value for name, value in more.items()}}


def apply(pod: Json, patch: Patch) -> Json:
    """The pod with the patch applied, by an implementation of RFC 6902 that is not ours."""
    patched: Json = jsonpatch.JsonPatch(list(patch.operations)).apply(copy.deepcopy(pod))
    return patched


def patch_of(
    pod: Json,
    settings: GateSettings = SETTINGS,
    catalog: CatalogView = NO_CATALOG,
    mode: Mode = Mode.GATE,
    driver_nodes: AbstractSet[str] = frozenset(),
) -> Patch:
    """What the injector does to the pod in `NAMESPACE`."""
    return patch_pod(pod, NAMESPACE, ClusterDefaults(settings, mode, "1.2.3"), catalog, driver_nodes)


def inject(pod: Json, settings: GateSettings = SETTINGS, catalog: CatalogView = NO_CATALOG, **more: Any) -> Json:
    """The pod as the injector leaves it; `more` as for `patch_of`."""
    return apply(pod, patch_of(pod, settings, catalog, **more))


def refusal(pod: Json, catalog: CatalogView = NO_CATALOG, settings: GateSettings = SETTINGS, **more: Any) -> Permanent:
    """Why the injector refuses the pod; fails where it does not."""
    try:
        inject(pod, settings, catalog, **more)
    except Permanent as error:
        return error
    raise AssertionError("the injector took it")


def gate_of(pod: Json) -> Json:
    """The gate, which must be the first init container."""
    gate: Json = pod["spec"]["initContainers"][0]
    assert gate["name"] == "holdfast-gate"
    return gate
