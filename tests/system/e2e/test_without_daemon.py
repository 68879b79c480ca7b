"""The daemon gone: pods start from what is on the node."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.cluster import Pod, create, kubectl, wait_for
from tests.support.installation import MAIN, Holdfast, Origin, annotated, pod_object
from tests.system.e2e.conftest import Models


@pytest.fixture
def node(holdfast: Holdfast, origin: Origin, namespace: str, models: Models) -> str:
    """A node that has `kept@1`, or gets it now."""
    if origin.pod.run("s3", "test", "-d", f"/srv/{models['kept']}-1", check=False).returncode != 0:
        origin.publish(models["kept"], "1")
    pod = Pod(namespace, "kept-first")
    create(pod_object(pod, annotated(models["kept"], "1")))
    name: str = pod.wait_running(MAIN)["spec"]["nodeName"]
    pod.delete()
    return name


@pytest.fixture
def no_daemon(node: str, holdfast: Holdfast) -> Iterator[None]:
    """Not one daemon in the cluster."""
    _select_nodes({"holdfast-e2e/nowhere": "true"})
    try:
        wait_for("the daemons are gone", lambda: not _any_daemon())
        yield
    finally:
        _select_nodes({"holdfast-e2e/nowhere": None})
        holdfast.wait()


def test_a_pod_starts_without_any_daemon(no_daemon: None, node: str, namespace: str, models: Models) -> None:
    """With the weights on the node and the catalog's injector up, no daemon is needed to start a pod."""
    pod = Pod(namespace, "kept-alone")
    create(pod_object(pod, annotated(models["kept"], "1"), node))
    try:
        pod.wait_running(MAIN)
        assert not _any_daemon()
    finally:
        pod.delete()


def test_a_daemon_killed_stops_nobody(node: str, holdfast: Holdfast, namespace: str, models: Models) -> None:
    """Pods that start while the daemon is killed start, those that run go on, and its successor is ready again."""
    running = Pod(namespace, "kept-running")
    create(pod_object(running, annotated(models["kept"], "1"), node))
    before = running.wait_running(MAIN)
    old = holdfast.daemon(node)
    starting = [Pod(namespace, f"kept-{number}") for number in range(3)]
    create(*(pod_object(pod, annotated(models["kept"], "1"), node) for pod in starting[:1]))
    kubectl("delete", "pod", "-n", old.namespace, old.name, "--grace-period=0", "--force")
    create(*(pod_object(pod, annotated(models["kept"], "1"), node) for pod in starting[1:]))
    for pod in starting:
        pod.wait_running(MAIN)
    holdfast.wait()
    assert holdfast.daemon(node) != old
    after = running.object()
    assert [s["containerID"] for s in after["status"]["containerStatuses"]] == [
        s["containerID"] for s in before["status"]["containerStatuses"]
    ]
    for pod in (running, *starting):
        pod.delete()


def _select_nodes(labels: dict[str, str | None]) -> None:
    patch = {"spec": {"template": {"spec": {"nodeSelector": labels}}}}
    kubectl("patch", "daemonset", "-n", "holdfast", "holdfast-daemon", "-p", json.dumps(patch))


def _any_daemon() -> bool:
    found = kubectl("get", "pods", "-n", "holdfast", "-l", "app.kubernetes.io/name=holdfast-daemon", "-o", "name")
    return bool(found.stdout.strip())
