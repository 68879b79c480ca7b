"""Removing Holdfast as docs/kubernetes.md says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.support.cluster import Json, Pod, create, exists, get, kubectl, wait_for
from tests.support.installation import MAIN, Holdfast, Origin, annotated, node_labels, pod_object
from tests.system.e2e.conftest import Models

_DOCUMENT = Path(__file__).parents[3] / "docs" / "kubernetes.md"
# What a cluster makes by itself, all the time.
_PASSING = ("events", "leases", "endpointslices", "componentstatuses")


def test_nothing_is_left_but_the_weights(holdfast: Holdfast, origin: Origin, namespace: str, models: Models) -> None:
    """No object of Holdfast's is left, nor a label or annotation on a node; pods run on; the weights are used again."""
    origin.publish(models["rolling"], "3")
    running, again = Pod(namespace, "runs-on"), Pod(namespace, "runs-again")
    create(pod_object(running, annotated(models["rolling"], "3")))
    node = running.wait_running(MAIN)["spec"]["nodeName"]
    wait_for("a label on the node", lambda: node_labels(node))
    try:
        _as_documented(holdfast.folder)
        assert not exists("namespace", "holdfast")
        assert _left() == []
        metadata = get("node", node)["metadata"]
        assert [key for key in (*metadata["labels"], *metadata["annotations"]) if "holdfast.dev/" in key] == []
        assert running.run(MAIN, "sh", "-c", 'test -r "$HOLDFAST_MODEL_PATH/model.safetensors"').returncode == 0
        plain = Pod(namespace, "plain-after")
        create(pod_object(plain))
        plain.wait_running(MAIN)
    finally:
        holdfast.apply()
    create(pod_object(again, annotated(models["rolling"], "3"), node))
    again.wait_running(MAIN)
    wait_for("the Event WeightsReady", lambda: again.events("WeightsReady"))
    assert again.events("WeightsReady")[0].endswith("was on this node already")
    for pod in (running, again):
        pod.delete()


def _as_documented(folder: Path) -> None:
    """Run the commands under "To remove it all"."""
    block = re.search(r"To remove it all:\n\n```sh\n(.*?)```", _DOCUMENT.read_text(), re.DOTALL)
    assert block is not None
    script = block[1].replace("manifests/overlays/mine", str(folder))
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _left() -> list[str]:
    """Objects of any kind, outside of the tests' own namespaces, that have Holdfast in their name."""
    kinds = kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()
    wanted = [kind for kind in kinds if kind.split(".")[0] not in _PASSING]
    found: list[Json] = json.loads(kubectl("get", ",".join(wanted), "-A", "-o", "json").stdout)["items"]
    names = [(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]) for item in found]
    return [
        f"{kind} {namespace}/{name}"
        for kind, namespace, name in names
        if "holdfast" in f"{namespace}/{name}" and "holdfast-e2e" not in f"{namespace}/{name}"
    ]
