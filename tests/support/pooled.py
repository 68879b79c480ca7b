"""Holdfast on two nodes or more that fetch together, with an origin that counts; for the end-to-end tests.

Each node has a folder of its own below `ROOT`, so that this also works where nodes are one machine. Where the cluster
has no name service, one of the tests' own answers with the addresses that Kubernetes lists for the headless Service.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from cached.fetch.pool.peer_states import PeerState
from tests.support import counting_origin, tiny_dns
from tests.support.cluster import Json, Pod, create, exists, get, kubectl, metric, raw, wait_for
from tests.support.installation import (
    DAEMON_IMAGE,
    GATE_IMAGE,
    LAPTOP,
    MAIN,
    Holdfast,
    annotated,
    dry_run,
    installed,
    pod_object,
)

ROOT = "/var/lib/holdfast-e2e-peers"
SERVICE = "holdfast-peers"
_NODE = "NODE"  # stands for a node's name in the injector's folder
_ORIGIN_PORT, _DNS_PORT = 9000, 53
_FOLDER, _NAMES = "/srv/www", "/srv/names.json"


@dataclass(frozen=True, slots=True)
class CountingOrigin:
    """The pod that serves versions, and the names of the pool where there is no other name service."""

    pod: Pod
    address: str

    def publish(self, model: str, version: str, size: int) -> str:
        """Publish new random bytes as a version; returns the manifest digest."""
        folder = f"/srv/new/{model}-{version}"
        weights = f"head -c {size} /dev/urandom >{folder}/model.safetensors"
        make = f"mkdir -p {folder}; {weights}; echo {{}} >{folder}/config.json"
        publish = f"holdfast publish --force {folder} {_FOLDER}/{model}/{version}"
        return self.pod.run("origin", "sh", "-ec", f"{make}; {publish}").stdout.split()[-1]

    def sha256(self, model: str, version: str) -> str:
        """Of the weights that were published."""
        file = f"{_FOLDER}/{model}/{version}/model.safetensors"
        return self.pod.run("origin", "sha256sum", file).stdout.split()[0]

    def ask(self, path: str) -> list[Json]:
        """What was sent since the last reset; `path` is one of the origin's own."""
        found: list[Json] = json.loads(
            raw(f"/api/v1/namespaces/{self.pod.namespace}/pods/{self.pod.name}:{_ORIGIN_PORT}/proxy/-/{path}")
        )
        return found

    def name(self, addresses: list[str]) -> None:
        """Tell the addresses of the pool's members."""
        names = json.dumps({f"{SERVICE}.holdfast.svc.cluster.local": addresses})
        self.pod.run("dns", "sh", "-ec", f"echo '{names}' >{_NAMES}.new; mv {_NAMES}.new {_NAMES}")


@contextmanager
def origin(within: str) -> Iterator[CountingOrigin]:
    """Run the counting origin, and the name server beside it."""
    work = {"volumeMounts": [{"name": "work", "mountPath": "/srv"}], "securityContext": {"runAsUser": 0}}
    programs = (
        ("origin", counting_origin.__file__, _ORIGIN_PORT, _FOLDER),
        ("dns", tiny_dns.__file__, _DNS_PORT, _NAMES),
    )
    containers = [
        {
            "name": name,
            "image": DAEMON_IMAGE,
            "command": ["python3", "-c", Path(text).read_text(), str(port), argument],
            "env": [{"name": "HOME", "value": "/srv"}],
            **work,
        }
        for name, text, port, argument in programs
    ]
    made = pod_object(Pod(within, "counting-origin"))
    made["spec"] |= {"containers": containers, "volumes": [{"name": "work", "emptyDir": {}}]}
    pod = Pod(within, "counting-origin")
    create(made)
    try:
        for name, *_ in programs:
            pod.wait_running(name)
        yield CountingOrigin(pod, pod.object()["status"]["podIP"])
    finally:
        pod.delete()


@dataclass(frozen=True, slots=True)
class Pool:
    """The installation, and its nodes."""

    holdfast: Holdfast
    nodes: tuple[str, ...]

    def metric(self, node: str, name: str, **labels: str) -> float:
        return metric(self.holdfast.daemon_metrics(node), name, **labels)

    def address(self, node: str) -> str:
        """The address of a node's daemon."""
        return str(self.holdfast.daemon(node).object()["status"]["podIP"])

    def cut_off(self, node: str, served: CountingOrigin, end: str) -> None:
        """Have the origin answer a node's daemon nothing any more of files whose name ends so; fails where it does."""
        served.ask(f"cut/{self.address(node)}/{end}")
        address = f"http://{served.address}:{_ORIGIN_PORT}/any{end}"
        look = f"import urllib.request; urllib.request.urlopen('{address}', timeout=9)"
        done = self.holdfast.daemon(node).run("daemon", "python3", "-c", look, check=False)
        assert "RemoteDisconnected" in done.stderr, done.stderr

    def create(self, pod: Pod, node: str, model: str, version: str, digest: str) -> None:
        """Create a pod on a node as the injector makes it, with the node's own folder."""
        asked = pod_object(pod, annotated(model, version, digest=digest), node)
        made = json.loads(dry_run(asked).stdout.replace(f"{ROOT}/{_NODE}/", f"{ROOT}/{node}/"))
        metadata = {key: made["metadata"][key] for key in ("name", "namespace", "annotations")}
        create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": made["spec"]})


@contextmanager
def pool(folder: Path, served: CountingOrigin, models: tuple[str, ...]) -> Iterator[Pool]:
    """Install Holdfast with these models, and wait until each daemon knows the others."""
    _write_overlay(folder, served, models)
    with installed(folder) as holdfast:
        try:
            nodes = tuple(sorted(pod.object()["spec"]["nodeName"] for pod in holdfast.daemons()))
            found = Pool(holdfast, nodes)
            if not has_dns():
                wait_for("Kubernetes lists the daemons", lambda: len(list_members()) == len(nodes))
                served.name(list_members())
            for node in nodes:
                wait_for(f"{node} knows the others", partial(_knows, found, node), 180)
            yield found
        finally:
            _clean(holdfast)


def _knows(found: Pool, node: str) -> bool:
    return sum(found.metric(node, "holdfast_peers", state=state) for state in PeerState) == len(found.nodes) - 1


def count_nodes() -> int:
    """Return how many nodes take pods of any kind."""
    nodes = json.loads(kubectl("get", "nodes", "-o", "json").stdout)["items"]
    return sum(not each["spec"].get("unschedulable") and not each["spec"].get("taints") for each in nodes)


def has_dns() -> bool:
    """Return whether the cluster has a name service for pods."""
    return exists("service", "kube-dns", "kube-system")


def list_members() -> list[str]:
    """The addresses that Kubernetes lists for the pool's Service, and so its DNS."""
    slices = json.loads(
        kubectl(
            *("get", "endpointslices", "-n", "holdfast", "-l", f"kubernetes.io/service-name={SERVICE}", "-o", "json")
        ).stdout
    )["items"]
    # Ready or not: the Service publishes both, so that the slices call both ready.
    return sorted(
        address
        for each in slices
        for endpoint in each.get("endpoints") or ()
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
    )


def read_key() -> str:
    """The pool's key, as base64; empty while there is none."""
    return str((get("secret", SERVICE, "holdfast").get("data") or {}).get("key", ""))


def _clean(holdfast: Holdfast) -> None:
    """Delete what the daemons fetched: their folders are the tests' own."""
    for daemon in holdfast.daemons():
        daemon.run("daemon", "sh", "-c", "rm -rf /var/lib/holdfast/*", check=False)


def _write_overlay(folder: Path, served: CountingOrigin, models: tuple[str, ...]) -> None:
    source = f"http://{served.address}:{_ORIGIN_PORT}/{{name}}/{{version}}/"
    entries: Json = {model: {"versions": {"1": {}, "2": {}, "3": {}}} for model in models}
    (folder / "catalog.yaml").write_text(yaml.safe_dump({"defaults": {"source": source}, "models": entries}))
    (folder / "daemonset.yaml").write_text(yaml.safe_dump(_daemonset(served)))
    (folder / "deployment.yaml").write_text(yaml.safe_dump(_deployment()))
    options = {"disableNameSuffixHash": True}
    catalog = {"name": "holdfast-catalog", "namespace": "holdfast", "behavior": "replace", "files": ["catalog.yaml"]}
    images = []
    for name, wanted in (("daemon", DAEMON_IMAGE), ("gate", GATE_IMAGE)):
        new, _, tag = wanted.rpartition(":")
        images.append({"name": f"localhost/holdfast/{name}", "newName": new, "newTag": tag})
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(LAPTOP, folder)],
        "images": images,
        "configMapGenerator": [{**catalog, "options": options}],
        "patches": [{"path": "daemonset.yaml"}, {"path": "deployment.yaml"}],
        "transformers": [os.path.relpath(LAPTOP.parents[1] / "transformers" / "gate-image", folder)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))


def _daemonset(served: CountingOrigin) -> Json:
    """The patch that gives each node its folder, and the name service."""
    node = {"name": "HOLDFAST_NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}
    mounts = [{"name": "root", "mountPath": "/var/lib/holdfast", "subPathExpr": "$(HOLDFAST_NODE)"}]
    spec: Json = {
        "initContainers": [{"name": "prepare", "env": [node], "volumeMounts": mounts}],
        "containers": [{"name": "daemon", "volumeMounts": mounts}],
        "volumes": [{"name": "root", "hostPath": {"path": ROOT, "type": "DirectoryOrCreate"}}],
    }
    if not has_dns():
        searches = ["holdfast.svc.cluster.local", "svc.cluster.local", "cluster.local"]
        options = [{"name": "ndots", "value": "5"}]
        spec |= {
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": [served.address], "searches": searches, "options": options},
        }
    return _patch("DaemonSet", "holdfast-daemon", spec)


def _deployment() -> Json:
    """The patch that has the injector mount a folder whose name the tests replace by the node's."""
    variable = {"name": "HOLDFAST_HOST_ROOT", "value": f"{ROOT}/{_NODE}"}
    return _patch("Deployment", "holdfast-injector", {"containers": [{"name": "injector", "env": [variable]}]})


def _patch(kind: str, name: str, spec: Json) -> Json:
    metadata = {"name": name, "namespace": "holdfast"}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": {"template": {"spec": spec}}}


def wait_main(pod: Pod) -> None:
    """Wait until a pod's own container runs: its weights are there."""
    pod.wait_running(MAIN)
