"""Removing Holdfast as docs/kubernetes.md says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.cluster import Pod, create, exists, get, wait_for
from tests.support.installation import MAIN, Holdfast, Origin, annotated, left_behind, node_labels, pod_object
from tests.system.e2e.conftest import Models

_DOCUMENT = Path(__file__).parents[3] / "docs" / "kubernetes.md"


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
        assert left_behind() == []
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
