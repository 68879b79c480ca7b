"""The manifests before a real API server: the cluster of KUBECONFIG, skipped where there is none.

Nothing is left behind but what is deleted at the end: a namespace, and policies that hold for that namespace alone.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import jsonpatch
import pytest
import yaml

from sidecar.injector import settings
from sidecar.injector.catalog_view import NO_CATALOG
from sidecar.injector.pod.delivery import Mode
from sidecar.injector.pod.patch import ClusterDefaults, patch_pod
from tests.support.kustomize import Json
from tests.support.manifests import EVERYTHING, objects, one

pytestmark = pytest.mark.skipif(
    not os.environ.get("KUBECONFIG") or shutil.which("kubectl") is None,
    reason="no cluster: KUBECONFIG is not set, or there is no kubectl",
)

PIN, OTHER_PIN = f"sha256:{'ab' * 32}", f"sha256:{'cd' * 32}"
ONE = {"model": "acme/llama", "version": "v3"}
TWO = [{"name": "a", "image": "x"}, {"name": "b", "image": "w"}]
LIMITS = {"limits": {"cpu": "1", "memory": "1Gi"}}
PODS: dict[str, tuple[dict[str, str], Json]] = {
    "plain": (ONE, {}),
    "pinned": ({**ONE, "digest": PIN, "verify": "full", "mount-path": "/models"}, {}),
    "several": (
        {"models": "base=acme/llama@v3, ad-ap.ter=lora@v7,third@1", "digest": f"base={PIN},third@1={OTHER_PIN}"},
        {},
    ),
    "with much of its own": (
        {**ONE, "digest": PIN},
        {
            "containers": [
                {
                    "name": "a",
                    "image": "x",
                    "env": [{"name": "A", "value": "$(HOLDFAST_MODEL_PATH)"}],
                    "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                    "ports": [{"containerPort": 9401}],
                },
                {"name": "b", "image": "w", "env": [{"name": "HOLDFAST_MODEL_PATH", "value": "mine"}]},
            ],
            "initContainers": [
                {"name": "i", "image": "z"},
                {"name": "mesh", "image": "z", "restartPolicy": "Always"},
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "affinity": {
                "nodeAffinity": {
                    "preferredDuringSchedulingIgnoredDuringExecution": [
                        {"weight": 1, "preference": {"matchExpressions": [{"key": "k", "operator": "Exists"}]}}
                    ]
                }
            },
        },
    ),
    "named containers": (
        {**ONE, "containers": "b, i"},
        {"containers": TWO, "initContainers": [{**TWO[0], "name": "i"}]},
    ),
    "the node's network": (ONE, {"hostNetwork": True}),
    "one container": ({**ONE, "gate": "sidecar"}, {"containers": [{**TWO[0], "ports": [{"containerPort": 9401}]}]}),
    "a volume": ({**ONE, "mode": "csi", "mount-path": "/models"}, {"hostNetwork": True}),
    "a volume, pinned": (
        {"models": "base=acme/llama@v3, third@1", "digest": f"base={PIN}", "verify": "full", "mode": "csi"},
        {"initContainers": [{"name": "i", "image": "z"}], "containers": TWO},
    ),
    "a gate by mode": ({**ONE, "mode": "gate"}, {}),
    "two by name": ({**ONE, "gate": "init", "digest": PIN}, {}),
    "guaranteed": (ONE, {"containers": [{**TWO[0], "resources": LIMITS}]}),
    "limited CPU": (ONE, {"containers": [{**TWO[0], "resources": {"limits": {"cpu": "1"}}}]}),
    "required": ({**ONE, "digest": PIN, "affinity": "required"}, {}),
    "required, with terms": (
        {**ONE, "digest": PIN, "affinity": "required"},
        {
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {
                        "nodeSelectorTerms": [
                            {"matchExpressions": [{"key": "k", "operator": "Exists"}]},
                            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["one"]}]},
                        ]
                    }
                }
            }
        },
    ),
}
BAD: dict[str, tuple[dict[str, str], Json]] = {
    "no version": ({"model": "x"}, {}),
    "both": ({**ONE, "models": "a=b@1"}, {}),
    "name": ({"model": "a--b", "version": "1"}, {}),
    "version": ({"model": "a", "version": "a/b"}, {}),
    "no reference": ({"models": "a=b"}, {}),
    "alias twice": ({"models": "a=b@1,A=c@1"}, {}),
    "digest": ({**ONE, "digest": "sha256:xx"}, {}),
    "digest of another": ({"models": "a=b@1,c@1", "digest": f"d={PIN}"}, {}),
    "unknown": ({**ONE, "verifi": "full"}, {}),
    "container": ({**ONE, "containers": "zz"}, {}),
    "path": ({**ONE, "mount-path": "models/.."}, {}),
    "required without a digest": ({**ONE, "affinity": "required"}, {}),
    "verify": ({**ONE, "verify": "no"}, {}),
    "gate": ({**ONE, "gate": "native"}, {}),
    "mode": ({**ONE, "mode": "auto"}, {}),
    "a gate and a volume": ({**ONE, "mode": "csi", "gate": "init"}, {}),
    "a sidecar in the node's network": ({**ONE, "gate": "sidecar"}, {"hostNetwork": True}),
    "a volume of that name": (ONE, {"volumes": [{"name": "holdfast", "emptyDir": {}}]}),
}


def kubectl(*arguments: str, body: Any = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run kubectl with `body` (objects) on its standard input."""
    text = None if body is None else yaml.safe_dump_all(body)
    return subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"holdfast-test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def policy(namespace: str) -> Iterator[str]:
    """The namespace, with the policies of the overlay in force in it alone."""
    if kubectl("get", "mutatingwebhookconfiguration", "holdfast-injector", check=False).returncode == 0:
        pytest.skip("the injector is installed in this cluster, and would answer as well")
    made = []
    for kind, name in (
        ("MutatingAdmissionPolicy", "holdfast-gate"),
        ("ValidatingAdmissionPolicy", "holdfast-annotations"),
    ):
        for each in (kind, f"{kind}Binding"):
            found = copy.deepcopy(one(objects("overlays/policy"), each, name))
            found["metadata"]["name"] = namespace + name.removeprefix("holdfast")
            if each.endswith("Binding"):
                found["spec"]["policyName"] = found["metadata"]["name"]
                only = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
                found["spec"]["matchResources"] = {"namespaceSelector": only}
            made.append(found)
    if kubectl("create", "-f", "-", body=made, check=False).returncode:
        pytest.skip("this API server has no admissionregistration.k8s.io/v1 MutatingAdmissionPolicy (Kubernetes 1.36)")
    try:
        deadline = time.monotonic() + 100
        while "holdfast-gate" not in _create(namespace, ONE, {}).stdout:  # it takes the API server a moment
            assert time.monotonic() < deadline
        yield namespace
    finally:
        kubectl("delete", "-f", "-", body=made)


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_the_api_server_takes_every_object(kustomization: str, namespace: str) -> None:
    """Server-side strict validation has nothing to say, and every CEL expression compiles."""
    found = [o for o in objects(kustomization) if o["kind"] not in ("PodMonitor", "PrometheusRule")]
    for each in found:
        if "namespace" in each["metadata"]:  # its own may not be there, and a dry run does not make it
            each["metadata"]["namespace"] = namespace
    told = kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", body=found, check=False)
    wrong = [line for line in told.stderr.splitlines() if "AlreadyExists" not in line]
    assert wrong == []


@pytest.mark.parametrize("pod", PODS)
def test_the_policy_does_what_the_injector_does(pod: str, policy: str) -> None:
    """The policy makes of a pod exactly what the injector makes of it."""
    notes, spec = PODS[pod]
    told = _create(policy, notes, spec)
    assert told.returncode == 0, told.stderr
    made = json.loads(told.stdout)
    plain = json.loads(_create("kube-system", notes, spec).stdout)  # defaulted, and left alone by webhook and policy
    expected = _injected(plain)
    assert _comparable(made) == _comparable(expected)


@pytest.mark.parametrize("pod", BAD)
def test_the_policy_refuses_what_the_injector_refuses(pod: str, policy: str) -> None:
    """A pod whose annotations the injector would refuse is not created, and a person is told what to write."""
    told = _create(policy, *BAD[pod])
    assert told.returncode != 0
    if pod != "a volume of that name":
        assert "holdfast-annotations" in told.stderr.replace(f"{policy}-annotations", "holdfast-annotations")


def test_the_policy_leaves_other_pods_alone(policy: str) -> None:
    """A pod without the annotations is not touched."""
    made = json.loads(_create(policy, {}, {}).stdout)
    assert "initContainers" not in made["spec"]


def _create(namespace: str, notes: dict[str, str], spec: Json) -> subprocess.CompletedProcess[str]:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "t",
            "namespace": namespace,
            "annotations": {f"holdfast.dev/{key}": value for key, value in notes.items()},
        },
        "spec": {"automountServiceAccountToken": False, "containers": TWO[:1], **spec},
    }
    return kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", body=[pod], check=False)


def _injected(pod: Json) -> Json:
    policy = one(objects("overlays/policy"), "MutatingAdmissionPolicy", "holdfast-gate")["spec"]
    image = next(v for v in policy["variables"] if v["name"] == "gateImage")["expression"].strip("'")
    gate = settings.parse(["--gate-image", image, "--namespace", "x"]).gate
    defaults = ClusterDefaults(gate, Mode.GATE, "policy")
    patch = patch_pod(pod, pod["metadata"]["namespace"], defaults, NO_CATALOG, frozenset())
    patched: Json = jsonpatch.apply_patch(pod, list(patch.operations))
    return patched


def _comparable(pod: Json) -> Json:
    """Without what the API server adds to a container after admission, and to every pod by itself."""
    spec = copy.deepcopy(pod["spec"])
    for container in spec.get("initContainers", []) + spec["containers"]:
        container.pop("terminationMessagePath", None)
        for check in ("startupProbe",):
            probe = container.get(check, {})
            probe.pop("successThreshold", None)
            probe.get("httpGet", {}).pop("scheme", None)
    notes = {k: v for k, v in pod["metadata"]["annotations"].items() if k.startswith("holdfast.dev/")}
    return {"spec": spec, "annotations": notes}
