"""From one version of a model to the next."""

from __future__ import annotations

from tests.support.cluster import Json, create, kubectl, wait_for
from tests.support.installation import MAIN, Holdfast, Origin, annotated, deployment, pods_of
from tests.system.e2e.conftest import Models

_READY = "/tmp/ready"  # in the main container: its pod is ready once that is there, and not sooner


def test_both_versions_are_there_while_a_deployment_rolls(
    holdfast: Holdfast, origin: Origin, namespace: str, models: Models
) -> None:
    """While the new version is not there the old pod runs on; then each pod reads its own version, side by side."""
    model, name = models["rolling"], "rolling"
    origin.publish(model, "1")
    origin.begin(model, "2")
    create(_deployment(namespace, name, annotated(model, "1")))
    old = wait_for("the first pod", lambda: pods_of(namespace, name))[0]
    old.wait_running(MAIN)
    old.run(MAIN, "touch", _READY)
    kubectl("rollout", "status", "-n", namespace, f"deployment/{name}", "--timeout=60s")

    kubectl("apply", "-f", "-", body=[_deployment(namespace, name, annotated(model, "2"))])
    new = wait_for("the second pod", lambda: [pod for pod in pods_of(namespace, name) if pod != old])[0]
    wait_for("the second pod waits for its weights", lambda: new.events("WeightsFetching"))
    assert old.runs(MAIN)
    assert not new.runs(MAIN)

    origin.publish(model, "2")
    new.wait_running(MAIN)
    read = {}
    for version, pod in (("1", old), ("2", new)):
        seen = pod.run(
            MAIN, "sh", "-c", f'ls /holdfast/models/{model}; sha256sum "$HOLDFAST_MODEL_PATH/model.safetensors"'
        )
        *versions, sha256, _ = seen.stdout.split()
        assert versions == ["1", "2"]
        assert sha256 == origin.sha256(model, version)
        read[version] = sha256
    assert len(set(read.values())) == 2

    new.run(MAIN, "touch", _READY)
    kubectl("rollout", "status", "-n", namespace, f"deployment/{name}", "--timeout=60s")
    wait_for("the first pod is gone", lambda: pods_of(namespace, name) == [new])
    kubectl("delete", "deployment", "-n", namespace, name)


def _deployment(within: str, name: str, annotations: dict[str, str]) -> Json:
    made = deployment(within, name, annotations)
    probe = {"exec": {"command": ["test", "-e", _READY]}, "periodSeconds": 1}
    made["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = probe
    return made
