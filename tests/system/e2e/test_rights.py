"""What the accounts of Holdfast may do, asked of the API server: enough, and no more."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from tests.support.cluster import Json, Pod, create, get, kubectl
from tests.support.installation import Holdfast

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    ("", "pods"),
    ("", "pods/exec"),
    ("", "pods/log"),
    ("", "pods/eviction"),
    ("", "pods/binding"),
    ("", "pods/status"),
    ("", "pods/ephemeralcontainers"),
    ("", "nodes"),
    ("", "nodes/status"),
    ("", "nodes/proxy"),
    ("", "events"),
    ("events.k8s.io", "events"),
    ("", "secrets"),
    ("", "configmaps"),
    ("", "namespaces"),
    ("", "persistentvolumes"),
    ("", "serviceaccounts"),
    ("", "serviceaccounts/token"),
    ("apps", "daemonsets"),
    ("apps", "deployments"),
    ("coordination.k8s.io", "leases"),
    ("rbac.authorization.k8s.io", "clusterroles"),
    ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("certificates.k8s.io", "certificatesigningrequests"),
)
DAEMON = {
    *((verb, "", "pods") for verb in ("get", "list", "watch")),
    *((verb, "", "nodes") for verb in ("get", "patch")),
    *((verb, "", "events") for verb in ("create", "patch")),
}


@pytest.mark.parametrize(("account", "rights"), [("holdfast-daemon", DAEMON), ("holdfast-injector", set())])
@pytest.mark.parametrize("where", ["holdfast", "kube-system"])
def test_an_account_has_these_rights_and_no_other(
    holdfast: Holdfast, account: str, rights: set[tuple[str, str, str]], where: str
) -> None:
    """Every verb on every kind is allowed where it is needed and refused elsewhere, Secrets always."""
    asked = [(verb, *resource) for verb, resource in itertools.product(VERBS, RESOURCES)]
    assert {right for right, allowed in zip(asked, _allowed(account, where, asked), strict=True) if allowed} == rights


def test_the_injector_has_its_secrets_and_its_webhook(holdfast: Holdfast) -> None:
    """Of its own three objects, and of no others, it may do what keeps its certificate and makes the pool's key."""
    hooks = ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "holdfast-injector")
    own = [("", "secrets", name) for name in ("holdfast-injector-tls", "holdfast-peers")]
    asked = [(verb, *what) for verb, what in itertools.product(VERBS, (hooks, *own))]
    allowed = _allowed("holdfast-injector", "holdfast", asked)
    may = {right for right, yes in zip(asked, allowed, strict=True) if yes}
    secrets = {(verb, *secret) for verb, secret in itertools.product(("get", "update"), own)}
    assert may == {("get", *hooks), ("patch", *hooks), *secrets}


def _allowed(account: str, where: str, asked: Sequence[tuple[str, ...]]) -> list[bool]:
    """Ask the API server for each (verb, group, resource[, name])."""
    reviews = []
    for verb, group, resource, *name in asked:
        kind, _, sub = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": kind, "subresource": sub, "namespace": where}
        attributes |= {"name": name[0]} if name else {}
        reviews.append(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": f"system:serviceaccount:holdfast:{account}",
                    "groups": ["system:serviceaccounts", "system:serviceaccounts:holdfast", "system:authenticated"],
                    "resourceAttributes": attributes,
                },
            }
        )
    answered = kubectl("create", "-f", "-", "-o", "jsonpath={.status.allowed}{'\\n'}", body=reviews).stdout
    return [line == "true" for line in answered.split()]


@pytest.fixture
def other_node(holdfast: Holdfast) -> Iterator[str]:
    """A node that no daemon runs on, nor anything else: there is an object of it, and no machine."""
    name = "holdfast-e2e-other"
    kubectl("delete", "node", name, "--ignore-not-found")
    create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": {"unschedulable": True}})
    try:
        yield name
    finally:
        kubectl("delete", "node", name, "--ignore-not-found")


class AsDaemon:
    """kubectl with the token of one daemon's pod, bound to that pod as the kubelet's own is."""

    def __init__(self, folder: Path, pod: Pod) -> None:
        found = pod.object()
        self.node: str = found["spec"]["nodeName"]
        bound = (
            "--bound-object-kind=Pod",
            f"--bound-object-name={pod.name}",
            f"--bound-object-uid={found['metadata']['uid']}",
        )
        token = kubectl("create", "token", "holdfast-daemon", "-n", "holdfast", *bound).stdout.strip()
        config: Json = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)
        for user in config["users"]:
            user["user"] = {"token": token}
        self._config = folder / "config"
        self._config.touch(0o600)
        self._config.write_text(yaml.safe_dump(config))

    def patch(self, node: str, patch: Json) -> subprocess.CompletedProcess[str]:
        arguments = ("patch", "node", node, "--type=merge", "-p", json.dumps(patch), "--dry-run=server")
        return kubectl(f"--kubeconfig={self._config}", *arguments, check=False)


@pytest.fixture
def as_daemon(holdfast: Holdfast, tmp_path: Path) -> AsDaemon:
    return AsDaemon(tmp_path, holdfast.daemons()[0])


OWN = {
    "metadata": {"labels": {f"weights.holdfast.dev/{'0' * 40}": "ready"}, "annotations": {"holdfast.dev/summary": "x"}}
}


def test_a_daemon_may_label_its_own_node(as_daemon: AsDaemon) -> None:
    """The daemon's labels and its summary go onto its own node."""
    done = as_daemon.patch(as_daemon.node, OWN)
    assert done.returncode == 0, done.stderr


def test_a_daemon_may_not_touch_another_node(as_daemon: AsDaemon, other_node: str) -> None:
    """The same patch of another node is refused by the ValidatingAdmissionPolicy, which names both."""
    refused = as_daemon.patch(other_node, OWN)
    assert refused.returncode != 0
    assert "may only change its own node" in refused.stderr
    assert as_daemon.node in refused.stderr


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"metadata": {"labels": {"nvidia.com/gpu.present": "no"}}}, "labels that begin with"),
        ({"metadata": {"labels": {"kubernetes.io/os": None}}}, "labels that begin with"),
        ({"metadata": {"annotations": {"example.com/x": "y"}}}, "annotations that begin with"),
        ({"spec": {"unschedulable": True}}, "may not change a node's spec"),
        ({"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}, "may not change a node's spec"),
        ({"metadata": {"finalizers": ["example.com/x"]}}, "finalizers"),
    ],
)
def test_a_daemon_may_change_nothing_else_of_its_node(as_daemon: AsDaemon, patch: Json, said: str) -> None:
    """Foreign labels, annotations, taints, cordons and finalizers of its own node are refused, and it is told why."""
    refused = as_daemon.patch(as_daemon.node, patch)
    assert refused.returncode != 0
    assert said in refused.stderr


def test_others_may_still_change_nodes(holdfast: Holdfast) -> None:
    """The policy speaks to the daemon's account alone."""
    node = get("pod", holdfast.daemons()[0].name, "holdfast")["spec"]["nodeName"]
    kubectl("label", "node", node, "holdfast-e2e/x=y", "--dry-run=server")
