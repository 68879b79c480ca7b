"""That the objects mean each other, and the three ways to a gate the same gate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cached.contract.annotations import CSI_DRIVER, KNOWN, PREFIX, WeightsRequest, parse
from cached.csi.request import Access, parse_request
from cached.daemon.config import parse_config
from cached.fetch.pool.membership import MemberAddress as Member
from sidecar.injector import settings as inject_settings
from sidecar.injector.cluster import pool_key
from sidecar.injector.https.certificate_store import CertificateObjects
from sidecar.injector.pod.gate_container import NAME, make_gate, make_host_mount
from tests.support.kustomize import Json, containers
from tests.support.manifests import EVERYTHING, OVERLAYS, objects, one
from tests.support.pods import inject


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_selectors_select(kustomization: str) -> None:
    """Every selector of labels finds pods of the same kustomization."""
    found = objects(kustomization)
    pods = [o["spec"]["template"]["metadata"]["labels"] for o in found if "template" in o.get("spec", {})]
    for each in found:
        selector = each.get("spec", {}).get("selector") or each.get("spec", {}).get("podSelector")
        if selector is not None:
            wanted = selector.get("matchLabels", selector)
            assert [labels for labels in pods if wanted.items() <= labels.items()], each["metadata"]


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_ports_by_name_exist(kustomization: str) -> None:
    """Services and network policies name ports that the pods they select have."""
    found = objects(kustomization)
    names = {port["name"] for o in found for c in containers(o) for port in c.get("ports", ())}
    for each in found:
        if each["kind"] == "Service":
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= names
        if each["kind"] == "NetworkPolicy":
            assert {port["port"] for rule in each["spec"]["ingress"] for port in rule["ports"]} <= names


@pytest.mark.parametrize("kustomization", OVERLAYS)
def test_pods_find_what_they_name(kustomization: str) -> None:
    """Accounts, priority classes, ConfigMaps and Secrets that pods name are made along with them."""
    found = objects(kustomization)
    for spec in (o["spec"]["template"]["spec"] for o in found if "template" in o.get("spec", {})):
        one(found, "ServiceAccount", spec["serviceAccountName"])
        one(found, "PriorityClass", spec["priorityClassName"])
        for volume in spec["volumes"]:
            if "configMap" in volume:
                one(found, "ConfigMap", volume["configMap"]["name"])


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_mounts_have_volumes(kustomization: str) -> None:
    """Every mount names a volume of its pod."""
    for found in objects(kustomization):
        spec = found["spec"] if found["kind"] == "Pod" else found.get("spec", {}).get("template", {}).get("spec", {})
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        for container in containers(found):
            assert {m["name"] for m in container.get("volumeMounts", ())} <= volumes


def test_the_webhook_leads_to_the_injector() -> None:
    """The webhook calls the injector's Service at the path it answers, with the names its certificate is for."""
    found = objects("base")
    (webhook,) = one(found, "MutatingWebhookConfiguration", "holdfast-injector")["webhooks"]
    service = one(found, "Service", webhook["clientConfig"]["service"]["name"])
    assert webhook["clientConfig"]["service"] == {
        "name": "holdfast-injector",
        "namespace": service["metadata"]["namespace"],
        "path": "/mutate",
        "port": service["spec"]["ports"][0]["port"],
    }
    settings = inject_settings.parse(["--gate-image", "x", "--namespace", "holdfast"])
    place = settings.certificate
    assert place == CertificateObjects("holdfast", "holdfast-injector-tls", "holdfast-injector", "holdfast-injector")


@pytest.mark.parametrize("kustomization", OVERLAYS)
def test_daemons_find_each_other(kustomization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon looks its pool up by the name of a headless Service that has all daemons, ready or not, at the port at
    which they serve; it is let in from daemons alone, and the key is the file of a Secret that may come later."""
    found = objects(kustomization)
    pod = one(found, "DaemonSet", "holdfast-daemon")["spec"]["template"]
    (daemon,) = pod["spec"]["containers"]
    monkeypatch.setenv("HOLDFAST_NODE", "node-1")
    for variable in daemon["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "node-1"))
    pool = parse_config([]).pool
    (service,) = (o for o in found if o["kind"] == "Service" and o["spec"].get("clusterIP") == "None")
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    (port,) = service["spec"]["ports"]
    assert pool.peers == (Member(f"{name}.{namespace}.svc", port["port"]),)
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["publishNotReadyAddresses"] is True
    (opened,) = (each for each in daemon["ports"] if each["name"] == port["targetPort"])
    assert opened["containerPort"] == port["port"] == pool.listen[1]  # DNS tells addresses, not ports
    policy = one(found, "NetworkPolicy", "holdfast-daemon")["spec"]
    (rule,) = (rule for rule in policy["ingress"] if {"port": "peers", "protocol": "TCP"} in rule["ports"])
    assert rule["from"] == [{"podSelector": {"matchLabels": service["spec"]["selector"]}}]
    mounts = {mount["mountPath"]: mount["name"] for mount in daemon["volumeMounts"]}
    assert pool.key_file is not None
    (volume,) = (v for v in pod["spec"]["volumes"] if v["name"] == mounts[str(pool.key_file.parent)])
    assert volume["secret"] == {"secretName": "holdfast-peers", "optional": True}
    assert pool.key_file.name == pool_key.ENTRY
    for injector in (o for o in found if o["kind"] == "Deployment"):
        (container,) = injector["spec"]["template"]["spec"]["containers"]
        assert {"name": "HOLDFAST_PEER_SECRET", "value": "holdfast-peers"} in container["env"]


def test_other_pods_do_not_depend_on_the_webhook() -> None:
    """It fails closed, and only for annotated pods, none of them in its own namespace or kube-system."""
    (webhook,) = one(objects("base"), "MutatingWebhookConfiguration", "holdfast-injector")["webhooks"]
    assert (webhook["failurePolicy"], webhook["sideEffects"], webhook["timeoutSeconds"]) == ("Fail", "None", 5)
    assert webhook["reinvocationPolicy"] == "IfNeeded"
    assert "'holdfast.dev/model' in object.metadata.annotations" in webhook["matchConditions"][0]["expression"]
    (excluded,) = webhook["namespaceSelector"]["matchExpressions"]
    assert excluded == {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", "holdfast"],
    }


def test_webhook_and_policies_are_asked_about_the_same_pods() -> None:
    """The policy in place of the webhook has its rules, its namespaces and its conditions."""
    (webhook,) = one(objects("base"), "MutatingWebhookConfiguration", "holdfast-injector")["webhooks"]
    found = objects("overlays/policy")
    for kind, name in (
        ("MutatingAdmissionPolicy", "holdfast-gate"),
        ("ValidatingAdmissionPolicy", "holdfast-annotations"),
    ):
        policy, binding = one(found, kind, name)["spec"], one(found, f"{kind}Binding", name)["spec"]
        assert policy["matchConstraints"]["resourceRules"] == webhook["rules"]
        assert policy["matchConditions"][:2] == webhook["matchConditions"]
        assert binding["matchResources"]["namespaceSelector"] == webhook["namespaceSelector"]
        assert binding["policyName"] == name
        assert policy["failurePolicy"] == "Fail"
        # A parameter that is gone would refuse every pod of the cluster.
        assert "paramKind" not in policy
        assert "paramRef" not in binding


def test_the_policys_constants_are_the_injectors() -> None:
    """The policy waits as long, looks in the same folder and asks for as much as the injector by default."""
    policy = one(objects("overlays/policy"), "MutatingAdmissionPolicy", "holdfast-gate")["spec"]
    constants = {v["name"]: v["expression"].strip("'") for v in policy["variables"]}
    gate = _defaults()
    assert constants["hostPublic"] == gate.host_public
    assert constants["timeoutSeconds"] == str(gate.deadline_s)
    text = policy["mutations"][-1]["jsonPatch"]["expression"]
    sizes = gate.resources
    assert f"requests: {{'cpu': '{sizes.cpu}', 'memory': '{sizes.memory}'}}" in text
    assert f": {{'memory': '{sizes.memory_limit}'}}" in text
    assert text.count(f"'cpu': '{sizes.cpu_limit}', 'memory': '{sizes.memory_limit}'") == 3
    assert f"runAsUser: {gate.user}" in text


def test_the_policy_knows_every_annotation() -> None:
    """The policy without a webhook refuses unknown annotations as the injector does: both know the same ones."""
    policies = [each["spec"] for each in objects("overlays/policy") if each["kind"] == "ValidatingAdmissionPolicy"]
    lists = [
        variable["expression"]
        for policy in policies
        for variable in policy.get("variables", [])
        if variable["name"] == "known"
    ]
    assert [re.findall("'([a-z-]+)'", text) for text in lists] == [[key.removeprefix(PREFIX) for key in KNOWN]]


@pytest.mark.parametrize("example", ["gate-by-hand", "restricted-namespace"])
def test_the_gate_by_hand_is_the_injectors(example: str) -> None:
    """The container that the examples write out is the one that the injector makes, to the last field."""
    pod = next(o for o in objects(f"examples/{example}") if o["kind"] == "Pod")
    by_hand = pod["spec"]["initContainers"]
    expected = make_gate({"containers": pod["spec"]["containers"]}, _asked(pod), _defaults(by_hand[0]["image"]))
    (written,) = by_hand
    assert written["name"] == NAME
    expected["imagePullPolicy"] = written.get("imagePullPolicy", expected["imagePullPolicy"])
    assert {**written, "imagePullPolicy": expected["imagePullPolicy"], "args": None} == {**expected, "args": None}
    assert _options(written["args"]) == _options(expected["args"]) - {("--verify", "record")}
    assert pod["spec"]["containers"][0]["volumeMounts"][0] == make_host_mount("/holdfast", "IfPossible")


def test_the_injector_leaves_the_examples_alone() -> None:
    """A pod with a gate of its own carries the name by which the injector and the policy know it."""
    for example in ("gate-by-hand", "restricted-namespace"):
        pod = next(o for o in objects(f"examples/{example}") if o["kind"] == "Pod")
        assert pod["spec"]["initContainers"][0]["name"] == NAME


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_annotations_are_well_written(kustomization: str) -> None:
    """Every annotated pod in an example asks for weights in words that the injector accepts."""
    for found in objects(kustomization):
        if found["kind"] in ("Deployment", "Pod") and kustomization.startswith("examples/"):
            pod = found if found["kind"] == "Pod" else found["spec"]["template"]
            assert "annotations" not in pod["metadata"] or _asked(pod).models


def test_the_volume_by_hand_is_the_drivers() -> None:
    """The volume that an example writes out names the driver of the overlay `csi`, and what it reads: a version's files
    at the root of the mount."""
    driver = next(o for o in objects("overlays/csi") if o["kind"] == "CSIDriver")
    (pod,) = objects("examples/csi-by-hand")
    volume = pod["spec"]["volumes"][0]["csi"]
    told = {"pod.uid": "x", "pod.name": "x", "pod.namespace": "default", "ephemeral": "true"}  # by the kubelet
    attributes = {**volume["volumeAttributes"], **{f"csi.storage.k8s.io/{key}": value for key, value in told.items()}}
    pods = Path("/var/lib/kubelet/pods")
    target = str(pods / "x/volumes/kubernetes.io~csi/weights/mount")
    asked = parse_request("csi-1", target, attributes, Access("mount", "SINGLE_NODE_WRITER"), (), pods)
    assert volume["driver"] == driver["metadata"]["name"] == CSI_DRIVER
    assert [str(want.ref) for want in asked.wants] == ["minilm@1"]
    assert not asked.is_tree
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert pod["spec"]["containers"][0]["env"] == [{"name": "HOLDFAST_MODEL_PATH", "value": mounted["weights"]}]


def test_the_injector_gives_the_restricted_pod_what_its_namespace_allows() -> None:
    """The pod of the namespace that enforces `restricted` gets a volume of the driver, which its label admits, and no
    hostPath and no container."""
    found = objects("examples/csi-restricted")
    pod = one(found, "Pod", "csi-restricted")
    labels = one(found, "Namespace", pod["metadata"]["namespace"])["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    made = inject(pod)["spec"]
    assert [sorted(volume.keys() - {"name"}) for volume in made["volumes"]] == [["emptyDir"], ["csi"]]
    assert "initContainers" not in made
    driver = next(o for o in objects("overlays/csi") if o["kind"] == "CSIDriver")
    for key in ("security.kubernetes.io", "security.openshift.io"):
        assert driver["metadata"]["labels"][f"{key}/csi-ephemeral-volume-profile"] == "restricted"
    assert driver["spec"]["podInfoOnMount"] is True and "Ephemeral" in driver["spec"]["volumeLifecycleModes"]


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_a_rollout_waits_as_long_as_its_pods_may(kustomization: str) -> None:
    """No Deployment of annotated pods is reported as failed while its gate may wait and its startup probe may fail; and
    a server is seen to be ready within a second."""
    for found in objects(kustomization):
        spec = found.get("spec", {}).get("template", found if found["kind"] == "Pod" else {}).get("spec")
        if spec is None or not kustomization.startswith("examples/"):
            continue
        probes = [container["startupProbe"] for container in spec["containers"]]
        assert all(probe["periodSeconds"] == 1 for probe in probes)
        if found["kind"] == "Deployment":
            starts_s = _defaults().deadline_s + max(probe["failureThreshold"] for probe in probes)
            assert found["spec"]["progressDeadlineSeconds"] > starts_s + 600  # and images are pulled


def test_examples_in_the_catalog_exist() -> None:
    """What the examples ask for is what the catalog of the overlay `gpu` names."""
    catalog = one(objects("overlays/gpu"), "ConfigMap", "holdfast-catalog")["data"]["catalog.yaml"]
    for example in ("server", "vllm", "triton", "torchserve"):
        for found in (o for o in objects(f"examples/{example}") if o["kind"] == "Deployment"):
            assert f"  {_asked(found['spec']['template']).models[0].ref.name}:" in catalog


def _asked(pod: Json) -> WeightsRequest:
    asked = parse(pod["metadata"]["annotations"])
    assert asked is not None
    return asked


def _defaults(image: str = "x") -> Any:
    return inject_settings.parse(["--gate-image", image, "--namespace", "holdfast"]).gate


def _options(arguments: list[str]) -> set[tuple[str, ...]]:
    """The options of a gate, each with its value if it has one."""
    found: list[list[str]] = []
    for argument in arguments[1:]:
        if argument.startswith("--"):
            found.append([argument])
        else:
            found[-1].append(argument)
    return {tuple(option) for option in found}
