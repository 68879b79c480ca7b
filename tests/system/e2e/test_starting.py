"""A pod of a Deployment on a node that does not have its weights: held back, told why, started."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.cluster import Json, Pod, create, get, kubectl, metric, status_of, wait_for
from tests.support.cluster_times import process_started_at, said_at
from tests.support.installation import GATE, MAIN, Holdfast, Origin, annotated, deployment, node_labels, pods_of
from tests.system.e2e.conftest import Models

VERSIONS = ("1", "2", "3")


@dataclass(frozen=True, slots=True)
class Start:
    """A pod that was held back and then started: as it was `before` its weights were published, and `after`."""

    version: str
    digest: str
    pod: Pod
    before: Json
    after: Json

    @property
    def node(self) -> str:
        name: str = self.after["spec"]["nodeName"]
        return name


@pytest.fixture(scope="module", params=VERSIONS)
def start(
    request: pytest.FixtureRequest, holdfast: Holdfast, origin: Origin, namespace: str, models: Models
) -> Iterator[Start]:
    model, version = models["first"], str(request.param)
    origin.begin(model, version)
    name = f"first-{version}"
    create(deployment(namespace, name, annotated(model, version)))
    pod = wait_for("the Deployment's pod", lambda: pods_of(namespace, name))[0]
    pod.wait_running(GATE)
    # The daemon has looked at the source, and the pod heard of it: from here on it could have gone wrong.
    wait_for("an Event that says why the pod waits", lambda: pod.events("WeightsFetching"))
    before = pod.object()
    digest = origin.publish(model, version)
    yield Start(version, digest, pod, before, pod.wait_running(MAIN))
    kubectl("delete", "deployment", "-n", namespace, name)


def test_it_is_blocked_before(start: Start) -> None:
    """While the weights are not published, the gate runs and no other container exists."""
    gate, main = status_of(start.before, GATE), status_of(start.before, MAIN)
    assert "running" in gate["state"] and not gate["ready"]
    assert main["state"]["waiting"]["reason"] == "PodInitializing"
    assert "containerID" not in main


def test_it_runs_after(start: Start) -> None:
    """Once they are published, the gate has ended well, the main container runs, and neither was ever restarted."""
    gate, main = (status_of(start.after, name) for name in (GATE, MAIN))
    assert gate["state"]["terminated"]["exitCode"] == 0
    assert gate["restartCount"] == main["restartCount"] == 0


def test_waiting_makes_no_noise(start: Start) -> None:
    """Nothing failed while the pod waited: it has no Warning of the kubelet's."""
    for reason in ("Unhealthy", "FailedPostStartHook", "Killing", "BackOff", "Failed"):
        assert start.pod.events(reason) == []


def test_it_reads_what_was_published(start: Start, origin: Origin, models: Models) -> None:
    """At HOLDFAST_MODEL_PATH the pod reads the bytes that were published, under a manifest of that digest."""
    told = start.pod.run(MAIN, "sh", "-c", 'sha256sum "$HOLDFAST_MODEL_PATH/model.safetensors"').stdout.split()[0]
    assert told == origin.sha256(models["first"], start.version)
    manifest = start.pod.run(MAIN, "sh", "-c", 'cat "$HOLDFAST_MODEL_PATH/.holdfast/manifest.json"').stdout
    assert f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}" == start.digest


@pytest.mark.parametrize(
    "act", ["echo x >$HOLDFAST_MODEL_PATH/config.json", "touch /holdfast/x", "rm -r /holdfast/models"]
)
def test_it_cannot_write(start: Start, act: str) -> None:
    """The main container runs as root, and every write to the mount fails as on a read-only file system."""
    assert start.pod.run(MAIN, "id", "-u").stdout.strip() == "0"
    refused = start.pod.run(MAIN, "sh", "-c", act, check=False)
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr


def test_the_node_says_that_it_has_them(start: Start) -> None:
    """The node carries the label of the digest, and a summary for people."""
    key = f"weights.holdfast.dev/{start.digest.removeprefix('sha256:')[:40]}"
    wait_for(f"the label {key}", lambda: node_labels(start.node).get(key) == "ready")
    notes = get("node", start.node)["metadata"]["annotations"]
    assert "holdfast.dev/summary" in notes


def test_the_pod_is_told(start: Start, models: Models) -> None:
    """The pod's Events say that it waits and why, and then that the weights are ready, with their size."""
    assert any("a publish is under way" in message for message in start.pod.events("WeightsFetching"))
    ready = wait_for("the Event WeightsReady", lambda: start.pod.events("WeightsReady"))
    assert ready[0].startswith(f"{models['first']}@{start.version} is ready: 1.0 MiB, after ")


def test_the_metrics_say_so(start: Start, holdfast: Holdfast, models: Models) -> None:
    """The daemon counts the version as ready, its bytes as fetched, and no pod as waiting."""

    def told() -> bool:
        text = holdfast.daemon_metrics(start.node)
        return (
            metric(text, "holdfast_model_ready", model=models["first"], version=start.version) == 1
            and metric(text, "holdfast_fetch_bytes_total") >= 1 << 20
            and metric(text, "holdfast_pods_waiting") == 0
        )

    wait_for("the daemon's metrics", told)


def test_how_long_it_took(start: Start, holdfast: Holdfast, models: Models, figures: dict[str, list[float]]) -> None:
    """The main container started after the gate opened, and that after the weights were published."""
    link = f"/var/lib/holdfast/public/models/{models['first']}/{start.version}"
    published = float(holdfast.daemon(start.node).run("daemon", "stat", "-c", "%.9Y", link).stdout)
    opened = said_at(start.pod, GATE, " open after ")
    started = process_started_at(start.pod, MAIN)
    assert published < opened < started
    figures.setdefault("weights published → gate open (Holdfast's share)", []).append(opened - published)
    figures.setdefault("weights published → main container's process started", []).append(started - published)
