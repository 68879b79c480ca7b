"""Pods of a real cluster for the benchmark programs: made, timed until their main container starts, deleted.

Law: a pod is bound to one node, and its main container tells its own start time by the node's clock, which must agree
with this machine's. What is made is in a namespace of its own, removed at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bench.measure import failed
from cached.contract.annotations import MODEL, PREFIX, VERSION
from cached.contract.errors import Transient
from cached.contract.layout import DEFAULT_ROOT
from cached.kube.client import Call, KubeClient
from cached.kube.kubeconfig import find_cluster

Json = dict[str, Any]
REFERENCE = "host-path"
# The annotations of each kind of pod besides model and version; None: a pod without a model.
ROWS: dict[str, dict[str, str] | None] = {
    "plain": None,
    REFERENCE: None,
    "image-volume": None,
    "gate-sidecar": {"mode": "gate", "gate": "sidecar"},
    "gate-init": {"mode": "gate"},
    "csi": {"mode": "csi"},
}
_PODS = "/api/v1/namespaces/{}/pods"
_START_S = 180.0
_LOOK_S = 0.2
# It tells its start as JSON in its log, then stays; it ends at once when told to.
_MAIN = 'trap \'exit 0\' TERM; echo "{\\"at\\": $(date +%s.%N)}"; sleep 1000000 & wait'


@dataclass(frozen=True, slots=True)
class Plan:
    """What the pods are: `version` as (name, version), `image` of the main container, `volume_image` or None."""

    namespace: str
    node: str
    image: str
    version: tuple[str, str]
    volume_image: str | None
    host_path: str


@dataclass(frozen=True, slots=True)
class Start:
    """One pod: seconds from the request that creates it to its main container, and its Events of the type Warning."""

    seconds: float
    warnings: tuple[str, ...]


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a plan."""
    parser.add_argument("--model", required=True, metavar="NAME@VERSION", help="a version of the catalog")
    parser.add_argument("--node", required=True, help="the node's name")
    parser.add_argument("--image", required=True, help="image of the main container, with sh; on the node")
    parser.add_argument("--image-volume", metavar="IMAGE", help="an image with the same bytes")
    parser.add_argument("--host-path", default=str(DEFAULT_ROOT / "public"), help="a folder of the node to mount")


def make_plan(options: argparse.Namespace) -> Plan:
    """Return the plan of these options, with a namespace of its own. Raises `Permanent` for a model without version."""
    name, at, version = options.model.partition("@")
    if not at:
        raise failed(f"expected --model NAME@VERSION, found {options.model!r}")
    namespace = f"holdfast-bench-{uuid.uuid4().hex[:8]}"
    return Plan(namespace, options.node, options.image, (name, version), options.image_volume, options.host_path)


@asynccontextmanager
async def cluster_client(plan: Plan) -> AsyncIterator[KubeClient]:
    """Connect to the cluster of KUBECONFIG, with the plan's namespace in it, which is removed at the end."""
    cluster = find_cluster(os.environ)
    if cluster is None:
        raise failed("expected a cluster, found no KUBECONFIG", "set KUBECONFIG")
    async with KubeClient(cluster) as client:
        metadata = {"name": plan.namespace, "labels": {"pod-security.kubernetes.io/enforce": "privileged"}}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
        await client.request(Call("POST", "/api/v1/namespaces", body=body))
        try:
            await _wait_for_account(client, plan)
            yield client
        finally:
            await client.request(Call("DELETE", f"/api/v1/namespaces/{plan.namespace}"))


async def run_pods(client: KubeClient, plan: Plan, row: str, count: int) -> tuple[Start, ...]:
    """Create `count` pods at once, wait for their main containers, delete them and wait until they are gone."""
    names = [f"{row}-{uuid.uuid4().hex[:8]}" for _ in range(count)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_start(client, plan, row, name)) for name in names]
        return tuple(task.result() for task in tasks)
    finally:
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(_delete(client, plan, name))


def make_pod(plan: Plan, row: str, name: str) -> Json:
    """Return the pod of this row."""
    annotations: dict[str, str] = {}
    asked = ROWS[row]
    if asked is not None:
        annotations = {MODEL: plan.version[0], VERSION: plan.version[1]}
        annotations |= {PREFIX + key: value for key, value in asked.items()}
    container: Json = {
        "name": "main",
        "image": plan.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", _MAIN],
    }
    spec: Json = {
        "nodeName": plan.node,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 2,
        "containers": [container],
    }
    volume: Json | None = None
    if row == REFERENCE:
        volume = {"hostPath": {"path": plan.host_path, "type": "Directory"}}
    elif row == "image-volume":
        volume = {"image": {"reference": plan.volume_image, "pullPolicy": "IfNotPresent"}}
    if volume is not None:
        spec["volumes"] = [{"name": "weights", **volume}]
        container["volumeMounts"] = [{"name": "weights", "mountPath": "/weights", "readOnly": True}]
    metadata = {"name": name, "namespace": plan.namespace, "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def _wait_for_account(client: KubeClient, plan: Plan) -> None:
    """Wait for the namespace's service account, without which the API server admits no pod."""
    deadline = time.monotonic() + _START_S
    path = f"/api/v1/namespaces/{plan.namespace}/serviceaccounts"
    while not (await client.request(Call("GET", path)))["items"]:
        if time.monotonic() > deadline:
            raise failed(f"no service account in {plan.namespace} within {_START_S:g} s")
        await asyncio.sleep(_LOOK_S)


async def _start(client: KubeClient, plan: Plan, row: str, name: str) -> Start:
    path = _PODS.format(plan.namespace)
    pod = make_pod(plan, row, name)
    created = time.time()
    await client.request(Call("POST", path, body=pod))
    deadline = time.monotonic() + _START_S
    while (began := await _read_start(client, f"{path}/{name}")) is None:
        if time.monotonic() > deadline:
            raise failed(f"the main container of {plan.namespace}/{name} did not start within {_START_S:g} s")
        await asyncio.sleep(_LOOK_S)
    query = {"fieldSelector": f"involvedObject.name={name},type=Warning"}
    events = await client.request(Call("GET", f"/api/v1/namespaces/{plan.namespace}/events", query))
    return Start(began - created, tuple(str(event["reason"]) for event in events["items"]))


async def _read_start(client: KubeClient, path: str) -> float | None:
    """Return when the main container started, by its own log; None before that."""
    statuses = (((await client.request(Call("GET", path))).get("status")) or {}).get("containerStatuses") or ()
    if not any(each["name"] == "main" and (each.get("state") or {}).get("running") for each in statuses):
        return None
    try:
        log = await client.request(Call("GET", f"{path}/log", {"container": "main"}, accept="*/*"))
    except Transient:
        return None  # it has written nothing yet
    return float(log["at"])


async def _delete(client: KubeClient, plan: Plan, name: str) -> None:
    path = f"{_PODS.format(plan.namespace)}"
    query = {"gracePeriodSeconds": "2"}
    await client.request(Call("DELETE", f"{path}/{name}", query))
    deadline = time.monotonic() + _START_S
    while True:
        query = {"fieldSelector": f"metadata.name={name}"}
        if not (await client.request(Call("GET", path, query)))["items"]:
            return
        if time.monotonic() > deadline:
            raise failed(f"{plan.namespace}/{name} was not gone within {_START_S:g} s")
        await asyncio.sleep(_LOOK_S)
