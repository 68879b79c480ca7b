"""The gate as a container of a pod: the first of its init containers.

Law: pure: settings and a pod's spec in, plain JSON values out. Sets everything that the kubelet needs, and leaves
nothing to the pod's own defaults, which are for its other containers (a pod that runs as root, for example).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from cached.contract.annotations import GATE, WeightsRequest
from cached.contract.errors import Permanent
from cached.contract.layout import DEFAULT_MOUNT
from cached.contract.program.options import LOG_FORMAT, LOG_TEXT
from cached.contract.reference import write_models, write_pins

NAME = "holdfast-gate"
VOLUME = "holdfast"
FIRST_PORT = 9401
HOOK_S = 2  # the longest wait of `sidecar.poststart`, in which the pod cannot be deleted
_PROBE_TIMEOUT_S = 2  # the gate answers at once; a node that starts many pods may be slower
_PROBE_GRACE_S = 60  # so that the gate exits at the deadline, with its reason, before the kubelet ends it without one

Json = dict[str, Any]


class GateMode(Enum):
    """What the cluster can run. NATIVE: sidecars too (Kubernetes 1.29 and later). INIT: ordinary init containers."""

    NATIVE = "native"
    INIT = "init"


@dataclass(frozen=True, slots=True)
class GateResources:
    """Kubernetes quantities. In a pod of the class Guaranteed the limits are also the requests."""

    cpu: str
    cpu_limit: str
    memory: str
    memory_limit: str


@dataclass(frozen=True, slots=True)
class GateSettings:
    """How gates are made. `host_public`: the public folder on the node; `deadline_s`: a gate's timeout in whole
    seconds; `listen_host`: the wildcard address of the pod's network, `0.0.0.0` or `::`; `log_format`: the
    injector's own, which its gates have too."""

    image: str
    pull_policy: str
    mode: GateMode
    user: int
    resources: GateResources
    deadline_s: int
    host_public: str
    recursive_read_only: str
    listen_host: str
    log_format: str


def make_gate(spec: Json, asked: WeightsRequest, settings: GateSettings) -> Json:
    """Return the gate for a pod with this `spec`; `asked.models` include the pins that apply. Raises `Permanent`
    (`unsupported_pod`) where `asked.gate` is a sidecar that this pod cannot have.

    By default an init container that ends once the weights are here: a warm pod's main container then starts in half
    the time that a probed sidecar takes. A second container that holds the lease would cost as much as it saves, since
    the kubelet starts what follows a sidecar a look later, once a second. It is not needed: the daemon evicts nothing
    that a pod of its node uses by a fresh pod list, and keeps what a pod reads when the name moves on."""
    if asked.gate != "sidecar":
        return _init_gate(spec, asked, settings)
    if settings.mode is GateMode.INIT or spec.get("hostNetwork"):
        raise _no_sidecar(spec)
    return _sidecar_gate(spec, asked, settings)


def _init_gate(spec: Json, asked: WeightsRequest, settings: GateSettings) -> Json:
    arguments = [*_decision(asked, settings), "--wait-for-correction", "--once"]
    return _container(arguments, spec, settings)


def _sidecar_gate(spec: Json, asked: WeightsRequest, settings: GateSettings) -> Json:
    port = _free_port(spec)
    host = f"[{settings.listen_host}]" if ":" in settings.listen_host else settings.listen_host
    arguments = [*_decision(asked, settings), "--listen", f"{host}:{port}"]
    return {**_container(arguments, spec, settings), **_probed(port, settings.deadline_s)}


def _no_sidecar(spec: Json) -> Permanent:
    if spec.get("hostNetwork"):
        why, what = "in the node's network every gate would need a port of its own", "leave it out"
    else:
        why = "this cluster's injector makes none (`--gate-mode init`, for clusters before Kubernetes 1.29)"
        what = "leave it out, or have the injector's mode changed"
    return Permanent("unsupported_pod", f"`{GATE}: sidecar` asks for the gate as a sidecar, and {why}", what)


def _container(arguments: list[str], spec: Json, settings: GateSettings) -> Json:
    """Return what both kinds of gate have."""
    container: Json = {
        "name": NAME,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "args": arguments,
        "securityContext": _security(settings.user),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [make_host_mount(str(DEFAULT_MOUNT), settings.recursive_read_only)],
    }
    resources = _resources(spec, settings.resources)
    return {**container, "resources": resources} if resources else container


def make_host_volume(settings: GateSettings) -> Json:
    """Return the node's public folder as a volume. It is created where missing, as a pod on a new node may start before
    the daemon, which then adopts it; with `Directory` the kubelet retries only after up to two minutes."""
    return {"name": VOLUME, "hostPath": {"path": settings.host_public, "type": "DirectoryOrCreate"}}


def make_host_mount(path: str, recursive_read_only: str) -> Json:
    """Return a read-only mount of the volume at `path`."""
    recursive = {} if recursive_read_only == "Disabled" else {"recursiveReadOnly": recursive_read_only}
    return {"name": VOLUME, "mountPath": path, "readOnly": True, **recursive}


def containers_of(spec: Mapping[str, Any]) -> Iterator[Json]:
    """Yield the pod's containers and init containers; ephemeral ones are added later and get no mount."""
    yield from spec.get("containers") or ()
    yield from spec.get("initContainers") or ()


def _decision(asked: WeightsRequest, settings: GateSettings) -> list[str]:
    """Return the arguments of a gate that waits and verifies."""
    form = [] if settings.log_format == LOG_TEXT else [LOG_FORMAT, settings.log_format]
    return [*_versions(asked), "--verify", asked.verify, "--timeout", str(settings.deadline_s), *form]


def _versions(asked: WeightsRequest) -> list[str]:
    arguments = ["gate", "--root", str(DEFAULT_MOUNT)]
    only = asked.models[0]
    if len(asked.models) == 1 and only.alias is None:
        arguments += ["--model", only.ref.name, "--version", only.ref.version]
    else:
        arguments += ["--models", write_models(asked.models)]
    pins = write_pins(asked.models)
    return arguments if pins is None else [*arguments, "--digest", pins]


def _probed(port: int, deadline_s: int) -> Json:
    """Return the fields of a native sidecar that all later containers wait for. With the probe alone the next container
    starts 598 ms (median) after the gate opened, with the hook 95 ms. Not an httpGet hook: that asks once, and a
    refused connection while the gate starts kills the container."""
    return {
        "restartPolicy": "Always",
        "ports": [{"name": NAME, "containerPort": port, "protocol": "TCP"}],
        "startupProbe": {
            "httpGet": {"path": "/readyz", "port": port},
            "periodSeconds": 1,
            "timeoutSeconds": _PROBE_TIMEOUT_S,
            "failureThreshold": deadline_s + _PROBE_GRACE_S,
        },
        "lifecycle": {
            "postStart": {"exec": {"command": ["python3", "-m", "sidecar.poststart", str(port), str(HOOK_S)]}}
        },
    }


def _security(user: int) -> Json:
    """Return the context of the profile `restricted`. The user is set, as a pod that sets 0 contradicts non-root."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _resources(spec: Json, sizes: GateResources) -> Json:
    """Return requests and limits that keep the pod's class of service: Guaranteed (whole cores of its own, last to be
    evicted) only while every container has limits equal to its requests. Elsewhere no limit on the CPU, as throttling
    delays the pod, unless all its containers have one."""
    if spec.get("resources"):  # pod-level: the sum of the containers' must not exceed them
        return {}
    every = [container.get("resources") or {} for container in containers_of(spec)]
    if all(_is_guaranteed(each, resource) for each in every for resource in ("cpu", "memory")):
        both = {"cpu": sizes.cpu_limit, "memory": sizes.memory_limit}
        return {"requests": both, "limits": both}
    limits = {"memory": sizes.memory_limit}
    if all("cpu" in (each.get("limits") or {}) for each in every):
        limits["cpu"] = sizes.cpu_limit
    return {"requests": {"cpu": sizes.cpu, "memory": sizes.memory}, "limits": limits}


def _is_guaranteed(resources: Json, resource: str) -> bool:
    """Return whether limit and request of a container are equal; the API server normalizes quantities."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    return resource in limits and requests.get(resource, limits[resource]) == limits[resource]


def _free_port(spec: Json) -> int:
    """Return the first port from 9401 that no container of the pod declares: they share one network."""
    taken = {port.get("containerPort") for container in containers_of(spec) for port in container.get("ports") or ()}
    return next(port for port in range(FIRST_PORT, FIRST_PORT + len(taken) + 1) if port not in taken)
