"""Weights in volumes of the CSI driver: the same installation, with the component `csi` while these tests run.

The kubelet's folder is /var/lib/kubelet, or HOLDFAST_E2E_KUBELET_DIR.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.support import installation
from tests.support.cluster import Json, Pod, create, get, kubectl, wait_for
from tests.support.installation import GATE, GATE_IMAGE, MAIN, Catalog, Holdfast, Origin, annotated, pod_object
from tests.system.e2e.conftest import Models

DRIVER = "weights.holdfast.dev"
_CROWD = 40


@pytest.fixture(scope="module", autouse=True)
def node(
    holdfast: Holdfast, origin: Origin, listed: Catalog, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A node whose kubelet has registered the driver, and that has `csi@1`; the plain installation comes back."""
    origin.publish(models["csi"], "1")
    with_csi = Holdfast(installation.overlay(tmp_path_factory.mktemp("csi"), origin, listed, csi=True))
    kubectl("apply", "-k", str(with_csi.folder))
    with_csi.wait()
    try:
        found = wait_for("a kubelet has registered the driver", _nodes_with_driver)
        wait_for(
            "the injector makes volumes", lambda: DRIVER in _admitted("default", annotated(models["csi"], "1")), 60
        )
        yield found[0]
    finally:
        objects = (
            "csidriver/" + DRIVER,
            "clusterrole/holdfast-injector-csi",
            "clusterrolebinding/holdfast-injector-csi",
        )
        kubectl("delete", *objects, "--ignore-not-found")
        holdfast.apply()
        wait_for("the volumes' label goes", lambda: not _nodes_with_label(), 60)


def _nodes_with_driver() -> list[str]:
    nodes = json.loads(kubectl("get", "csinodes", "-o", "json").stdout)["items"]
    having = [node for node in nodes if any(each["name"] == DRIVER for each in node["spec"].get("drivers") or ())]
    return [node["metadata"]["name"] for node in having if node["metadata"]["name"] in _nodes_with_label()]


def _nodes_with_label() -> list[str]:
    found = json.loads(kubectl("get", "nodes", "-l", f"{DRIVER}/csi=ready", "-o", "json").stdout)["items"]
    return [node["metadata"]["name"] for node in found]


def _admitted(within: str, annotations: dict[str, str]) -> str:
    return installation.dry_run(pod_object(Pod(within, "probe"), annotations)).stdout


def by_hand(pod: Pod, node: str, attributes: dict[str, str]) -> Json:
    """A pod with a volume that was not injected, and no annotation."""
    made = pod_object(pod, None, node)
    source = {"driver": DRIVER, "readOnly": True, "volumeAttributes": attributes}
    made["spec"]["volumes"] = [{"name": "weights", "csi": source}]
    made["spec"]["containers"][0]["volumeMounts"] = [{"name": "weights", "mountPath": "/weights", "readOnly": True}]
    return made


def failed_mounts(pod: Pod) -> str:
    return "\n".join(pod.events("FailedMount"))


def test_an_annotated_pod_gets_a_volume_and_no_container(node: str, namespace: str, models: Models) -> None:
    """The user writes the same two annotations: the pod has no gate, sees its own version and nothing else, can change
    nothing, and makes no Warning."""
    pod = Pod(namespace, "csi-plain")
    create(pod_object(pod, annotated(models["csi"], "1"), node))
    try:
        made = pod.wait_running(MAIN)
        assert [each["name"] for each in made["spec"].get("initContainers", ())] == []
        seen = pod.run(MAIN, "sh", "-c", 'ls "$HOLDFAST_MODEL_PATH"; ls /holdfast/models; cat /proc/mounts').stdout
        assert "model.safetensors" in seen and seen.count(models["csi"]) == 1
        mounted = [line.split()[3] for line in seen.splitlines() if " /holdfast/snapshots/" in line]
        assert len(mounted) == 1
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(mounted[0].split(","))
        written = pod.run(MAIN, "sh", "-c", 'touch "$HOLDFAST_MODEL_PATH/x"', check=False)
        assert "Read-only file system" in written.stderr
        wait_for("the Event WeightsReady", lambda: pod.events("WeightsReady"))
        fields = f"involvedObject.name={pod.name},type=Warning"
        told = json.loads(kubectl("get", "events", "-n", namespace, "--field-selector", fields, "-o", "json").stdout)
        # The weights are random bytes, which no engine loads; a cluster may have no DNS.
        assert {each["reason"] for each in told["items"]} <= {"WeightsSuspect", "MissingClusterDNS"}
    finally:
        pod.delete()


def test_a_cold_pod_is_blocked_and_starts(node: str, origin: Origin, namespace: str, models: Models) -> None:
    """Until its version is published the pod's main container does not exist; then it starts by itself."""
    model = models["csi"]
    origin.begin(model, "2")
    pod = Pod(namespace, "csi-cold")
    create(pod_object(pod, annotated(model, "2"), node))
    try:
        wait_for("an Event that says why it waits", lambda: pod.events("WeightsFetching"))
        assert not pod.runs(MAIN)
        origin.publish(model, "2")
        pod.wait_running(MAIN)
    finally:
        pod.delete()


def test_a_blocked_pod_is_deleted_at_once(node: str, origin: Origin, namespace: str, models: Models) -> None:
    """A pod that waits for its volume goes when it is told to."""
    origin.begin(models["csi"], "3")
    pod = Pod(namespace, "csi-blocked")
    create(pod_object(pod, annotated(models["csi"], "3"), node))
    wait_for("an Event that says why it waits", lambda: pod.events("WeightsFetching"))
    kubectl("delete", "pod", "-n", namespace, pod.name, "--wait=true", "--timeout=30s")


def test_a_mount_keeps_its_version(node: str, holdfast: Holdfast, namespace: str, models: Models) -> None:
    """What a pod has mounted is not evicted, though no annotation asks for it, over a kill of the daemon too; after
    the pod it goes, and no mount is left."""
    pod = Pod(namespace, "csi-holds")
    version = f"{models['csi']}@1"
    create(by_hand(pod, node, {"model": models["csi"], "version": "1"}))
    pod.wait_running(MAIN)
    try:
        daemon = holdfast.daemon(node)
        assert version not in _gc(holdfast, node)
        kubectl("delete", "pod", "-n", "holdfast", daemon.name, "--grace-period=0", "--force")
        holdfast.wait()
        assert version not in _gc(holdfast, node)
        read = pod.run(MAIN, "sh", "-c", "wc -c </weights/model.safetensors").stdout
        assert int(read) == 1 << 20
    finally:
        pod.delete()
    wait_for("the version goes", lambda: version in _gc(holdfast, node))


def test_a_pod_that_starts_without_the_daemon_waits_for_it(
    node: str, holdfast: Holdfast, namespace: str, models: Models
) -> None:
    """While no daemon runs a new pod waits, one that runs reads on, and with the next daemon the new one starts."""
    runs, starts = Pod(namespace, "csi-runs"), Pod(namespace, "csi-starts")
    create(pod_object(runs, annotated(models["csi"], "1"), node))
    runs.wait_running(MAIN)
    nowhere = {"spec": {"template": {"spec": {"nodeSelector": {"holdfast-e2e/nowhere": "true"}}}}}
    patch = ("patch", "daemonset", "holdfast-daemon", "-n", "holdfast", "--type=merge", "-p")
    kubectl(*patch, json.dumps(nowhere))
    try:
        wait_for("no daemon runs", lambda: not holdfast.daemons())
        create(by_hand(starts, node, {"models": f"{models['csi']}@1"}))
        time.sleep(5)
        assert not starts.runs(MAIN)
        assert runs.run(MAIN, "sh", "-c", 'wc -c <"$HOLDFAST_MODEL_PATH/model.safetensors"').stdout
    finally:
        nowhere["spec"]["template"]["spec"]["nodeSelector"] = {"holdfast-e2e/nowhere": None}  # type: ignore[dict-item]
        kubectl(*patch, json.dumps(nowhere))
        holdfast.wait()
    try:
        starts.wait_running(MAIN)
    finally:
        runs.delete()
        starts.delete()


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"version": "1", "digest": f"sha256:{'0' * 64}"}, "sha256:"),
        ({"version": "9"}, "found none"),
        ({"version": "1", "path": "/etc"}, "path"),
    ],
)
def test_the_pods_events_say_why(
    attributes: dict[str, str], reason: str, node: str, namespace: str, models: Models
) -> None:
    """A digest that cannot be, a version that the catalog lacks and an attribute that does not exist are told in the
    pod's Events."""
    pod = Pod(namespace, f"csi-refused-{'-'.join(sorted(attributes))}-{attributes['version']}")
    create(by_hand(pod, node, {"model": models["csi"], **attributes}))
    try:
        told = wait_for("the reason", lambda: failed_mounts(pod))
        assert reason in told
        assert not pod.runs(MAIN)
    finally:
        pod.delete()


def test_a_model_of_other_namespaces_is_refused(node: str, origin: Origin, namespace: str, models: Models) -> None:
    """A model that the catalog gives one namespace: its pods have it, others are refused at admission, and by the
    driver where the injector was not asked."""
    origin.publish(models["private"], "1")
    owner, stranger = Pod(namespace, "csi-owner"), Pod("default", "csi-stranger")
    create(by_hand(owner, node, {"model": models["private"], "version": "1"}))
    create(by_hand(stranger, node, {"model": models["private"], "version": "1"}))
    try:
        owner.wait_running(MAIN)
        assert "namespace" in wait_for("the refusal", lambda: failed_mounts(stranger))
        refused = installation.dry_run(pod_object(Pod("default", "x"), annotated(models["private"], "1")))
        assert refused.returncode != 0 and "namespace" in refused.stderr
    finally:
        owner.delete()
        stranger.delete()


def test_a_restricted_namespace_may_use_it(node: str, models: Models) -> None:
    """A namespace that enforces the profile `restricted` admits an annotated pod, whose volume is no hostPath."""
    with installation.namespace(f"holdfast-e2e-strict-{models.run}") as strict:
        kubectl("label", "namespace", strict, "pod-security.kubernetes.io/enforce=restricted")
        pod = Pod(strict, "csi-restricted")
        made = pod_object(pod, annotated(models["csi"], "1"), node)
        made["spec"]["containers"][0]["securityContext"] = {
            "runAsUser": 65532,
            "runAsNonRoot": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        create(made)
        pod.wait_running(MAIN)
        assert "model.safetensors" in pod.run(MAIN, "sh", "-c", 'ls "$HOLDFAST_MODEL_PATH"').stdout
        pod.delete()


@pytest.mark.parametrize("mode", ["csi", "gate"])
def test_a_pod_in_a_user_namespace_reads_its_weights(node: str, namespace: str, models: Models, mode: str) -> None:
    """`hostUsers: false`, where uid 0 of the pod is not the node's: the weights are there to read, and not to write."""
    handlers = get("node", node)["status"].get("runtimeHandlers") or ()
    if not any((each.get("features") or {}).get("userNamespaces") for each in handlers):
        pytest.skip(f"{node}'s container runtime or kernel has no user namespaces for pods")
    pod = Pod(namespace, f"users-{mode}")
    made = pod_object(pod, annotated(models["csi"], "1", mode=mode), node)
    made["spec"]["hostUsers"] = False
    create(made)
    try:
        pod.wait_running(MAIN)
        look = 'cat /proc/self/uid_map; head -c 1 "$HOLDFAST_MODEL_PATH/model.safetensors" | wc -c'
        (first, mapped, _), (count,) = (line.split() for line in pod.run(MAIN, "sh", "-c", look).stdout.splitlines())
        assert (first, count) == ("0", "1") and mapped != "0"
        written = pod.run(MAIN, "sh", "-c", 'touch "$HOLDFAST_MODEL_PATH/x"', check=False)
        assert "Read-only file system" in written.stderr
    finally:
        pod.delete()


def test_the_gate_stays_a_choice(node: str, namespace: str, models: Models) -> None:
    """`holdfast.dev/mode: gate` gives a pod the gate, on a node with the driver too."""
    pod = Pod(namespace, "csi-gate")
    create(pod_object(pod, annotated(models["csi"], "1", mode="gate"), node))
    try:
        made = pod.wait_running(MAIN)
        assert [each["name"] for each in made["spec"]["initContainers"]] == [GATE]
    finally:
        pod.delete()


def test_many_pods_at_once(node: str, holdfast: Holdfast, namespace: str, models: Models) -> None:
    """Forty pods of one version start together, and when they are gone nothing of them is mounted."""
    pods = [Pod(namespace, f"csi-crowd-{number}") for number in range(_CROWD)]
    create(*(pod_object(pod, annotated(models["csi"], "1"), node) for pod in pods))
    try:
        for pod in pods:
            pod.wait_running(MAIN)
        assert get("pod", pods[0].name, namespace)["spec"]["containers"][0]["image"] == GATE_IMAGE
    finally:
        names = [pod.name for pod in pods]
        kubectl("delete", "pod", "-n", namespace, *names, "--wait=true", "--timeout=120s", "--ignore-not-found")
    wait_for("the version goes", lambda: f"{models['csi']}@1" in _gc(holdfast, node))


def _gc(holdfast: Holdfast, node: str) -> str:
    """What `holdfast gc` evicts on this node now."""
    return holdfast.daemon(node).run("daemon", "holdfast", "gc").stdout
