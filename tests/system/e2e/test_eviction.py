"""What is in use stays; what no pod uses goes, and the node says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.cluster import Pod, create, wait_for
from tests.support.installation import MAIN, Holdfast, Origin, annotated, dry_run, node_labels, pod_object
from tests.system.e2e.conftest import Models


@dataclass(frozen=True, slots=True)
class Held:
    """A node, a version that one pod holds a lease on without asking for it, and one that no pod uses."""

    node: str
    holder: Pod
    leased: str
    digest: str
    idle: str


@pytest.fixture
def held(holdfast: Holdfast, origin: Origin, namespace: str, models: Models) -> Iterator[Held]:
    model = models["kept"]
    digest = origin.publish(model, "2")
    origin.publish(model, "3")
    asks, holds = Pod(namespace, "asks"), Pod(namespace, "holds")
    both = {"holdfast.dev/models": f"leased={model}@2,idle={model}@3"}
    create(pod_object(asks, both))
    node = asks.wait_running(MAIN)["spec"]["nodeName"]
    # What the injector makes of a pod, without what the daemon goes by: only the gate's lease speaks for it.
    injected = json.loads(dry_run(pod_object(holds, annotated(model, "2", gate="sidecar"), node)).stdout)
    create({**pod_object(holds), "spec": injected["spec"]})
    holds.wait_running(MAIN)
    asks.delete()
    try:
        yield Held(node, holds, f"{model}@2", digest, f"{model}@3")
    finally:
        holds.delete()


def test_a_lease_keeps_a_version(held: Held, holdfast: Holdfast) -> None:
    """`holdfast gc` evicts what no pod uses, not what a gate holds; without its pod that too goes, label and all."""
    daemon = holdfast.daemon(held.node)
    key = f"weights.holdfast.dev/{held.digest.removeprefix('sha256:')[:40]}"
    wait_for("the label of the version", lambda: key in node_labels(held.node))

    evicted = wait_for("the idle version goes", lambda: _gc(daemon, held.idle))
    assert held.leased not in evicted
    read = held.holder.run(MAIN, "sh", "-c", 'wc -c <"$HOLDFAST_MODEL_PATH/model.safetensors"').stdout
    assert int(read) == 1 << 20
    assert key in node_labels(held.node)

    held.holder.delete()
    wait_for("the version goes", lambda: _gc(daemon, held.leased))
    assert key not in node_labels(held.node)
    name, _, version = held.leased.partition("@")
    left = daemon.run("daemon", "ls", f"/var/lib/holdfast/public/models/{name}", check=False).stdout.split()
    assert version not in left


def test_what_a_pod_asks_for_is_not_evicted(holdfast: Holdfast, origin: Origin, namespace: str, models: Models) -> None:
    """`holdfast gc` leaves the version alone that an annotated pod runs on."""
    model, pod = models["warm"], Pod(namespace, "asks-alone")
    origin.publish(model, "3")
    create(pod_object(pod, annotated(model, "3")))
    try:
        node = pod.wait_running(MAIN)["spec"]["nodeName"]
        assert f"{model}@3" not in holdfast.daemon(node).run("daemon", "holdfast", "gc").stdout
        assert pod.run(MAIN, "sh", "-c", 'test -r "$HOLDFAST_MODEL_PATH/model.safetensors"').returncode == 0
    finally:
        pod.delete()


def _gc(daemon: Pod, ref: str) -> str:
    """What a collection evicted, if `ref` was in it."""
    said = daemon.run("daemon", "holdfast", "gc").stdout
    return said if ref in said else ""
