"""A rolling update of the server under load. Its image must be on the nodes too: HOLDFAST_E2E_SERVER_IMAGE."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import rollout
from tests.support.cluster import Json, Pod, create, kubectl, select
from tests.support.installation import MAIN, Holdfast, Origin, annotated, deployment, pod_object
from tests.system.e2e.conftest import Models

SERVER_IMAGE = os.environ.get("HOLDFAST_E2E_SERVER_IMAGE", "localhost/holdfast/server:0.1.0")
CLIENTS = Path(rollout.__file__).with_name("rollout_clients.py")
_PORT = 8080


@pytest.fixture(autouse=True, scope="module")
def _server_image() -> None:
    nodes = json.loads(kubectl("get", "nodes", "-o", "json").stdout)["items"]
    missing = [
        node["metadata"]["name"]
        for node in nodes
        if not any(SERVER_IMAGE in (image["names"] or ()) for image in node["status"]["images"])
    ]
    if missing:
        pytest.skip(f"no image {SERVER_IMAGE} on {', '.join(missing)}")


@dataclass
class Clients:
    """Eight clients in a pod; `finish` returns their answers and failures."""

    pod: Pod
    process: subprocess.Popen[str]

    def point_to(self, addresses: list[str]) -> None:
        """Have new connections go to these pods only."""
        text = " ".join(f"{address}:{_PORT}" for address in addresses)
        self.pod.run(MAIN, "sh", "-c", f"echo {text} >/tmp/next; mv /tmp/next /tmp/endpoints")

    def finish(self) -> Json:
        self.pod.run(MAIN, "touch", "/tmp/stop")
        output, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        found: Json = json.loads(output)
        return found


@contextmanager
def asking(within: str, name: str, addresses: list[str]) -> Iterator[Clients]:
    """Run the clients in a pod of their own."""
    pod = Pod(within, name)
    create(pod_object(pod))
    pod.wait_running(MAIN)
    command = ["kubectl", "exec", "-i", "-n", within, name, "-c", MAIN, "--", "python3", "-u", "-", "/tmp"]
    pod.run(MAIN, "sh", "-c", f"echo {' '.join(f'{a}:{_PORT}' for a in addresses)} >/tmp/endpoints")
    with CLIENTS.open("rb") as script:
        process = subprocess.Popen(
            command, stdin=script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
    try:
        yield Clients(pod, process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        pod.delete()


@pytest.mark.parametrize("late_s", [1, 4, 8])
def test_a_rollout_under_load_fails_no_request(
    late_s: int, holdfast: Holdfast, origin: Origin, namespace: str, models: Models
) -> None:
    """Eight clients that never retry, half of them with kept connections, lose no request while a Deployment rolls
    from one version to the next and the clients' side hears of each change of endpoints `late_s` seconds late."""
    model, name = models["served"], f"server-{late_s}"
    for version in ("1", "2"):
        if origin.pod.run("s3", "test", "-d", f"/srv/{model}-{version}", check=False).returncode != 0:
            origin.publish(model, version)
    create(_code(namespace, name), _server(namespace, name, annotated(model, "1")))
    kubectl("rollout", "status", "-n", namespace, f"deployment/{name}", "--timeout=180s")
    with asking(namespace, f"clients-{late_s}", _ready(namespace, name)) as clients:
        time.sleep(6)  # more than the longest think time: each client has connected
        kubectl("apply", "-f", "-", body=[_server(namespace, name, annotated(model, "2"))])
        _follow(clients, namespace, name, late_s)
        time.sleep(6)
        result = clients.finish()
    kubectl("delete", "deployment,configmap", "-n", namespace, name)
    assert result["failures"] == []
    assert min(result["answers"]) > 3, result
    print(f"{late_s} s late: {sum(result['answers'])} answers, 0 lost")


def _follow(clients: Clients, within: str, name: str, late_s: float) -> None:
    """Pass each change of the ready pods on to the clients, `late_s` later, until the rollout is over."""
    told = _ready(within, name)
    due: list[tuple[float, list[str]]] = []
    while due or not _is_over(within, name):
        now, seen = time.monotonic(), _ready(within, name)
        if seen != (due[-1][1] if due else told):
            due.append((now + late_s, seen))
        if due and due[0][0] <= now:
            told = due.pop(0)[1]
            clients.point_to(told)
        time.sleep(0.1)


def _is_over(within: str, name: str) -> bool:
    """Tell whether the new pods are ready and the old ones gone, those that still end included."""
    done = kubectl("rollout", "status", "-n", within, f"deployment/{name}", "--watch=false").stdout
    pods = json.loads(kubectl("get", "pods", "-n", within, "-l", f"app={name}", "-o", "json").stdout)["items"]
    return "successfully rolled out" in done and len(pods) == 2


def _ready(within: str, name: str) -> list[str]:
    """The addresses of the ready pods, as the endpoints of a Service have them."""
    found = []
    for pod in select("pods", within, f"app={name}"):
        conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
        if conditions.get("Ready") == "True":
            found.append(pod["status"]["podIP"])
    return sorted(found)


def _code(within: str, name: str) -> Json:
    metadata = {"name": name, "namespace": within}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"rolled_app.py": rollout.APP}}


def _server(within: str, name: str, annotations: dict[str, str]) -> Json:
    """Two servers of user code, with the probes, the lingering and the grace of the example in manifests/examples."""
    made = deployment(within, name, annotations)
    made["spec"]["replicas"] = 2
    container = {
        "name": MAIN,
        "image": SERVER_IMAGE,
        "args": ["serve", "--app", "rolled_app:make", "--device", "cpu"],
        "env": [{"name": "PYTHONPATH", "value": "/code"}],
        "startupProbe": {"httpGet": {"path": "/readyz", "port": _PORT}, "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": _PORT}, "periodSeconds": 2},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}},
        "volumeMounts": [{"name": "code", "mountPath": "/code"}],
    }
    made["spec"]["template"]["spec"] = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
        "volumes": [{"name": "code", "configMap": {"name": name}}],
    }
    return made
