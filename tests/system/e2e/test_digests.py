"""Weights that are not what was promised."""

from __future__ import annotations

from tests.support.cluster import Json, Pod, create, endings, status_of, wait_for
from tests.support.installation import GATE, MAIN, Holdfast, Origin, annotated, pod_object
from tests.system.e2e.conftest import Models

ZEROES = f"sha256:{'0' * 64}"
MISMATCH = 65


def test_what_the_catalog_does_not_expect_is_never_started_on(
    holdfast: Holdfast, origin: Origin, namespace: str, models: Models
) -> None:
    """Content of another digest than the catalog's pin is never published; the pod's Event and its gate's log say so,
    and the gate waits for the catalog to be corrected."""
    digest = origin.publish(models["wrong"], "1")
    pod = Pod(namespace, "wrong-catalog")
    create(pod_object(pod, annotated(models["wrong"], "1")))
    try:
        pod.wait_running(GATE)
        wait_for("the gate says why it waits", lambda: "waiting for a correction" in pod.log(GATE))
        assert ZEROES in pod.log(GATE) and digest in pod.log(GATE)
        failed = wait_for("the Event WeightsFailed", lambda: pod.events("WeightsFailed"))
        assert ZEROES in failed[0]
        never_started(pod)
        daemon = holdfast.daemon(pod.object()["spec"]["nodeName"])
        models_there = daemon.run("daemon", "ls", "/var/lib/holdfast/public/models").stdout.split()
        assert models["wrong"] not in models_there
    finally:
        pod.delete()


def test_what_the_pod_does_not_expect_is_never_started_on(
    holdfast: Holdfast, origin: Origin, namespace: str, models: Models
) -> None:
    """A pod that pins another digest than the version has does not start, and both are named."""
    digest = origin.publish(models["warm"], "2")
    pod = Pod(namespace, "wrong-pod")
    create(pod_object(pod, annotated(models["warm"], "2", digest=ZEROES)))
    try:
        failed = wait_for("the Event WeightsFailed", lambda: pod.events("WeightsFailed"))
        assert ZEROES in failed[0]
        ended = gate_ended(pod)
        assert ended["exitCode"] == MISMATCH
        assert ZEROES in ended["message"]
        assert digest in ended["message"]
        never_started(pod)
    finally:
        pod.delete()


def gate_ended(pod: Pod) -> Json:
    """How the gate ended, once it has."""
    return wait_for("the gate ended", lambda: endings(pod.object(), GATE))[0]


def never_started(pod: Pod) -> None:
    status = status_of(pod.object(), MAIN)
    assert status["state"]["waiting"]["reason"] == "PodInitializing"
    assert status["restartCount"] == 0
    assert "containerID" not in status
