"""The end-to-end tests look at the nodes before they evict from them. A stand-in for kubectl plays the cluster."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from cached.contract.layout import DEFAULT_ROOT
from tests.support import installation

# It knows two nodes, keeps what it is told to create, and runs a pod's command on a node's folder instead of /host.
KUBECTL = f"""#!{sys.executable}
import json, os, subprocess, sys, yaml
home, words = os.environ["FAKE_CLUSTER"], sys.argv[1:]
if words[:2] == ["get", "nodes"]:
    print(json.dumps({{"items": [{{"metadata": {{"name": name}}}} for name in ("node-a", "node-b")]}}))
elif words[0] == "create":
    for pod in yaml.safe_load_all(sys.stdin):
        with open(os.path.join(home, "created"), "a") as created:
            created.write(json.dumps(pod) + "\\n")
elif words[0] == "logs":
    pods = [json.loads(line) for line in open(os.path.join(home, "created"))]
    pod = next(pod for pod in pods if pod["metadata"]["name"] == words[3])
    shell, flag, script = pod["spec"]["containers"][0]["command"]
    folder = os.path.join(home, pod["spec"]["nodeName"])
    sys.exit(subprocess.run([shell, flag, script.replace("/host/", folder + "/")]).returncode)
elif words[0] == "delete":
    with open(os.path.join(home, "deleted"), "a") as deleted:
        deleted.write(words[4] + "\\n")
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with a folder for each node's /var/lib."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLUSTER", str(tmp_path))
    for node in ("node-a", "node-b"):
        (tmp_path / node).mkdir()
    return tmp_path


def hold(cluster: Path, node: str, name: str, version: str) -> None:
    link = cluster / node / "holdfast" / "public" / "models" / name / version
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to("../../snapshots/0")


def test_versions_on_nodes_are_found_by_what_is_on_the_disk(cluster: Path) -> None:
    """Each node's versions are told, but for those of earlier runs of these tests; the pods that looked are gone."""
    hold(cluster, "node-a", "acme--llama", "v3")
    hold(cluster, "node-a", "minilm", "1")
    hold(cluster, "node-a", "e2e-0a1b2c3d-kept", "2")
    assert installation.versions_on_nodes("here") == {"node-a": ["acme--llama@v3", "minilm@1"]}
    created = [json.loads(line)["metadata"]["name"] for line in (cluster / "created").read_text().splitlines()]
    assert (cluster / "deleted").read_text().split() == created == ["look-node-a", "look-node-b"]


def test_looking_at_a_node_changes_nothing_there(cluster: Path) -> None:
    """The pod that looks mounts what is there read-only and makes no folder; taints do not keep it away."""
    installation.versions_on_nodes("here")
    (spec, _) = (json.loads(line)["spec"] for line in (cluster / "created").read_text().splitlines())
    assert spec["volumes"] == [{"name": "host", "hostPath": {"path": "/var/lib", "type": "Directory"}}]
    assert spec["containers"][0]["volumeMounts"][0]["readOnly"]
    assert spec["tolerations"] == [{"operator": "Exists"}]


def test_the_root_that_is_looked_at_is_the_one_that_is_installed() -> None:
    """The manifests' hostPath is the root that the look goes by."""
    manifest = Path(__file__).parents[3] / "manifests" / "base" / "daemon" / "daemonset.yaml"
    volumes = yaml.safe_load(manifest.read_text())["spec"]["template"]["spec"]["volumes"]
    paths = [volume["hostPath"]["path"] for volume in volumes if "hostPath" in volume]
    assert str(DEFAULT_ROOT) in paths


def test_nodes_with_versions_are_refused_unless_allowed() -> None:
    """Versions on any node refuse the run in a sentence that names them and the way to allow it; only `yes` allows."""
    held = {"node-a": [f"m@{number}" for number in range(7)]}
    said = installation.refusal(held, None)
    assert said is not None
    assert "node-a: m@0" in said
    assert "and 2 more" in said
    assert "E2E_EVICT=yes" in said
    assert installation.refusal(held, "no") is not None
    assert installation.refusal(held, "yes") is None
    assert installation.refusal({}, None) is None
