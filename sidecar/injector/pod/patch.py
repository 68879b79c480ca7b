"""Make an annotated pod wait for its weights: a JSON patch (RFC 6902).

Law: pure, and adds only: nothing of the pod is replaced or removed but our own annotations. What it cannot do correctly
it refuses, as a `Permanent` that says what to write instead.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cached.contract.annotations import (
    AFFINITY,
    CONTAINERS,
    CSI_DRIVER,
    DIGEST,
    INJECTED,
    LABEL_VALUE,
    MODE,
    MOUNT_PATH,
    PREFIX,
    WeightsRequest,
    parse,
    weights_label,
)
from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.layout import PublicLayout
from cached.contract.reference import ModelRequest, variable_suffix, write_models, write_pins
from sidecar.injector.catalog_view import CatalogView
from sidecar.injector.pod.csi_volume import make_csi_mount, make_csi_volume, make_driver_condition
from sidecar.injector.pod.delivery import Delivery, Mode, choose_delivery
from sidecar.injector.pod.gate_container import (
    NAME,
    VOLUME,
    GateSettings,
    Json,
    containers_of,
    make_gate,
    make_host_mount,
    make_host_volume,
)

VARIABLE = "HOLDFAST_MODEL_PATH"
_MIRROR = "kubernetes.io/config.mirror"  # a static pod, which the node runs whatever the API server answers
_WEIGHT = 100  # the maximum: a fetch of minutes outweighs other differences between nodes
_PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


@dataclass(frozen=True, slots=True)
class Patch:
    """Operations to apply in this order (none: the pod stays as it is), and warnings for the pod's creator."""

    operations: tuple[Json, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterDefaults:
    """What holds for every pod of the cluster: the settings of gates, the mode of pods that do not say one, and the
    injector's `version`, which marks injected pods."""

    gate: GateSettings
    mode: Mode
    version: str


def patch_pod(
    pod: Json, namespace: str, defaults: ClusterDefaults, catalog: CatalogView, driver_nodes: AbstractSet[str]
) -> Patch:
    """Return the patch that makes `pod`, to be created in `namespace`, wait for its weights. `driver_nodes`: those
    whose kubelet mounts our CSI volumes. Raises `Permanent`: `invalid_annotations`, `forbidden_namespace`,
    `digest_mismatch` (pod and catalog pin different content), `unsupported_pod`, `unknown_container`, `mount_conflict`,
    `digest_unknown` (for a required affinity), `invalid_catalog`."""
    spec, notes = pod["spec"], (pod.get("metadata") or {}).get("annotations") or {}
    if INJECTED in notes or _MIRROR in notes or any(c.get("name") == NAME for c in containers_of(spec)):
        return Patch()
    asked = parse(notes)
    if asked is None:
        return Patch()
    if ((spec.get("os") or {}).get("name")) == "windows":
        raise Permanent(
            "unsupported_pod",
            "a pod for Windows asks for weights, and the nodes that cache them run Linux",
            f"remove the annotations under {PREFIX}, or run the pod on Linux",
        )
    for wanted in asked.models:
        catalog.require_allowed(wanted.ref, namespace)
    asked = replace(asked, models=tuple(_pin(wanted, catalog) for wanted in asked.models))
    delivery, gate = choose_delivery(asked, spec, defaults.mode, driver_nodes), defaults.gate
    if delivery.volume:
        weights, added = make_csi_volume(asked), make_csi_mount(asked.mount_path)
    else:
        weights, added = make_host_volume(gate), make_host_mount(asked.mount_path, gate.recursive_read_only)
    operations = [
        *_annotations(notes, asked, delivery, defaults.version),
        *_volumes(spec, weights),
        *_containers(spec, asked, added),
        *_affinity(spec, asked, [make_driver_condition()] if delivery.only_with_driver else []),
    ]
    if not delivery.volume:
        # Last: it shifts the other init containers, whose indexes the operations above use.
        operations += _prepend("/spec/initContainers", spec.get("initContainers"), [make_gate(spec, asked, gate)])
    unknown = sorted({wanted.ref.name for wanted in asked.models if not catalog.knows(wanted.ref.name)})
    warnings = (
        f"holdfast: the catalog has no model {name[:100]!r}; the pod cannot start until it has" for name in unknown
    )
    return Patch(tuple(operations), tuple(warnings))


def _pin(wanted: ModelRequest, catalog: CatalogView) -> ModelRequest:
    """Return `wanted` with the catalog's pin, where the pod has none."""
    pinned = catalog.pins.get(wanted.ref)
    if pinned is not None and wanted.pin not in (None, pinned):
        raise Permanent(
            "digest_mismatch",
            f"{wanted.ref}: {DIGEST} is {wanted.pin}, the catalog pins this version to {pinned}",
            f"correct the annotation, or leave it out to get the catalog's; {wanted.ref.name!r} may have another "
            "version with the content that is meant",
        )
    return replace(wanted, pin=wanted.pin or pinned)


def _annotations(notes: Json, asked: WeightsRequest, delivery: Delivery, version: str) -> Iterator[Json]:
    yield _add(f"/metadata/annotations/{_escaped(INJECTED)}", version)
    if delivery.volume and asked.mode is None:  # so that the daemon knows that the pod waits for a mount
        yield _add(f"/metadata/annotations/{_escaped(MODE)}", "csi")
    pins = write_pins(asked.models)
    if pins is not None and notes.get(DIGEST) != pins:
        yield _add(f"/metadata/annotations/{_escaped(DIGEST)}", pins)


def _volumes(spec: Json, weights: Json) -> Iterator[Json]:
    """Add the volume, unless the pod has it already."""
    for present in spec.get("volumes") or ():
        if present.get("name") == VOLUME:
            if _is_same_volume(present, weights):
                return
            raise Permanent(
                "mount_conflict",
                f"the pod has a volume {VOLUME!r} of its own, which is not {_describe(weights)}",
                "rename it: the injector adds a volume of that name",
            )
    yield _append("/spec/volumes", spec.get("volumes"), weights)


def _is_same_volume(present: Json, weights: Json) -> bool:
    if "csi" in weights:
        found, wanted = present.get("csi") or {}, weights["csi"]
        return all(found.get(key) == wanted[key] for key in ("driver", "volumeAttributes"))
    return bool((present.get("hostPath") or {}).get("path") == weights["hostPath"]["path"])


def _describe(weights: Json) -> str:
    if "csi" not in weights:
        return f"{weights['hostPath']['path']} of the node"
    attributes = ", ".join(f"{key}: {value}" for key, value in sorted(weights["csi"]["volumeAttributes"].items()))
    return f"one of the driver {CSI_DRIVER} with the attributes {attributes}"


def _containers(spec: Json, asked: WeightsRequest, ours: Json) -> Iterator[Json]:
    """Add the mount and variables to the named containers; by default to all but other sidecars."""
    _check_names(spec, asked)
    variables = _variables(asked)
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(kind) or ()):
            if asked.containers is None:
                chosen = kind == "containers" or container.get("restartPolicy") != "Always"
            else:
                chosen = container.get("name") in asked.containers
            if not chosen:
                continue
            where = f"/spec/{kind}/{index}"
            if not _mounted(container, asked.mount_path):
                yield _append(f"{where}/volumeMounts", container.get("volumeMounts"), ours)
            present = {variable.get("name") for variable in container.get("env") or ()}
            missing = [variable for variable in variables if variable["name"] not in present]
            # In front, as a variable may refer only to those before it.
            yield from _prepend(f"{where}/env", container.get("env"), missing)


def _check_names(spec: Json, asked: WeightsRequest) -> None:
    present = [str(container.get("name")) for container in containers_of(spec)]
    missing = [name for name in asked.containers or () if name not in present]
    if missing:
        raise Permanent(
            "unknown_container",
            f"{CONTAINERS} names {', '.join(missing)}, the pod has {', '.join(present)}",
            f"write `{CONTAINERS}: {','.join(present)}` or fewer, or leave it out for all containers",
        )


def _mounted(container: Json, path: str) -> bool:
    """Return whether the weights are mounted at `path`; refuses another mount there or below."""
    for present in container.get("volumeMounts") or ():
        found = posixpath.normpath(str(present.get("mountPath")))
        if found == path and present.get("name") == VOLUME:
            return True
        if found == path or found.startswith(f"{path}/"):
            # Below: the runtime could not create the mount point, as ours is read-only.
            raise Permanent(
                "mount_conflict",
                f"the weights are to be mounted at {path} and the container {container.get('name')!r} mounts "
                f"{present.get('name')!r} at {found}",
                f"write another path, as in `{MOUNT_PATH}: {path}-weights`",
            )
    return False


def _variables(asked: WeightsRequest) -> list[Json]:
    layout = PublicLayout(Path(asked.mount_path))
    found = [{"name": VARIABLE, "value": str(layout.model_link(asked.models[0].ref))}]
    for wanted in asked.models:
        if wanted.alias is not None:
            name = f"{VARIABLE}_{variable_suffix(wanted.alias)}"
            found.append({"name": name, "value": str(layout.model_link(wanted.ref))})
    if len(asked.models) > 1 or asked.models[0].alias is not None:
        # The aliases as written, which `holdfast serve` uses as names; the variables above change them.
        found.append({"name": "HOLDFAST_MODELS", "value": write_models(asked.models)})
        found.append({"name": "HOLDFAST_ROOT", "value": asked.mount_path})
    pins = write_pins(asked.models)
    if pins is not None:
        found.append({"name": "HOLDFAST_DIGEST", "value": pins})
    return found


def _affinity(spec: Json, asked: WeightsRequest, conditions: Sequence[Json]) -> Iterator[Json]:
    """Prefer nodes that hold the pinned weights, or require them; `conditions` are required too."""
    affinity: Json | None = spec.get("affinity")
    digests = list(dict.fromkeys(wanted.pin for wanted in asked.models if wanted.pin is not None))
    if asked.affinity == "required":
        unpinned = [str(wanted.ref) for wanted in asked.models if wanted.pin is None]
        if unpinned:
            raise Permanent(
                "digest_unknown",
                f"`{AFFINITY}: required` asks for nodes that hold {', '.join(unpinned)}, whose digest "
                "neither the pod nor the catalog says",
                f"pin it with {DIGEST} or in the catalog, or leave {AFFINITY} out",
            )
        yield _add("/spec/affinity", _require(affinity, [*map(_holds, digests), *conditions]))
        return
    if conditions:
        affinity = _require(affinity, conditions)
    if digests:
        affinity = _prefer(affinity, digests)
    if conditions or digests:
        yield _add("/spec/affinity", affinity)


def _prepend(path: str, present: object, values: Sequence[Json]) -> Iterator[Json]:
    """Prepend `values` to the list at `path`, which may be missing, null or empty."""
    if present:
        yield from (_add(f"{path}/0", value) for value in reversed(values))
    elif values:
        yield _add(path, list(values))


def _append(path: str, present: object, value: Json) -> Json:
    return _add(f"{path}/-", value) if present else _add(path, [value])


def _add(path: str, value: Any) -> Json:
    return {"op": "add", "path": path, "value": value}


def _escaped(key: str) -> str:
    """Escape a key as a reference token of a JSON pointer: RFC 6901, section 3."""
    return key.replace("~", "~0").replace("/", "~1")


def _prefer(affinity: Json | None, digests: Sequence[Digest]) -> Json:
    """Return `affinity` with a preference for nodes that hold each of `digests`: the more of them, the better."""
    node = dict((affinity or {}).get("nodeAffinity") or {})
    terms = [{"weight": _WEIGHT, "preference": {"matchExpressions": [_holds(digest)]}} for digest in digests]
    node[_PREFERRED] = [*(node.get(_PREFERRED) or ()), *terms]
    return {**(affinity or {}), "nodeAffinity": node}


def _require(affinity: Json | None, conditions: Sequence[Json]) -> Json:
    """Return `affinity` restricted to nodes that meet all of `conditions`."""
    node = dict((affinity or {}).get("nodeAffinity") or {})
    terms = (node.get(_REQUIRED) or {}).get("nodeSelectorTerms")
    both = [_and(term, conditions) for term in terms] if terms else [{"matchExpressions": list(conditions)}]
    node[_REQUIRED] = {"nodeSelectorTerms": both}
    return {**(affinity or {}), "nodeAffinity": node}


def _and(term: Json, expressions: Sequence[Json]) -> Json:
    """Add the condition to one of the alternatives. An empty term matches no node, and must not match some with it."""
    if not (term.get("matchExpressions") or term.get("matchFields")):
        return term
    return {**term, "matchExpressions": [*(term.get("matchExpressions") or ()), *expressions]}


def _holds(digest: Digest) -> Json:
    return {"key": weights_label(digest), "operator": "In", "values": [LABEL_VALUE]}
