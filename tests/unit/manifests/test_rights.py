"""Who may do what in a cluster."""

from __future__ import annotations

import pytest

from tests.support.kustomize import Json, documents
from tests.support.manifests import MANIFESTS, OVERLAYS, objects, one

DAEMON = {
    ("", "pods", "get"),
    ("", "pods", "list"),
    ("", "pods", "watch"),
    ("", "events", "create"),
    ("", "events", "patch"),
    ("", "nodes", "get"),
    ("", "nodes", "patch"),
}


def rights(role: Json) -> set[tuple[str, ...]]:
    """(group, resource, verb), and the object's name where only one is meant."""
    return {
        (group, resource, verb, *rule.get("resourceNames", ()))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("kustomization", OVERLAYS)
def test_the_daemon_reads_pods_tells_events_and_patches_nodes(kustomization: str) -> None:
    """The daemon has these rights and no others: no secrets, no ConfigMaps, no exec."""
    found = objects(kustomization)
    assert rights(one(found, "ClusterRole", "holdfast-daemon")) == DAEMON
    bound = [o for o in found if o["kind"].endswith("RoleBinding") and _names(o, "holdfast-daemon")]
    assert [binding["roleRef"]["name"] for binding in bound] == ["holdfast-daemon"]


def test_the_injector_touches_three_objects() -> None:
    """The injector reads and writes its own Secret, that of the pool's key and its own webhook configuration, each by
    name."""
    found = objects("base")
    assert rights(one(found, "Role", "holdfast-injector")) == {
        ("", "secrets", verb, "holdfast-injector-tls", "holdfast-peers") for verb in ("get", "update")
    }
    assert rights(one(found, "ClusterRole", "holdfast-injector")) == {
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", verb, "holdfast-injector")
        for verb in ("get", "patch")
    }
    # It may not create Secrets, so these must be there, and empty, so that an apply does not take their content away.
    for name in ("holdfast-injector-tls", "holdfast-peers"):
        assert "data" not in one(found, "Secret", name)


def test_with_csi_the_injector_reads_csi_nodes_too() -> None:
    """The overlay `csi` lets the injector read which nodes have the driver, and nothing else that the base does not."""
    base, csi = objects("base"), objects("overlays/csi")
    roles = {o["metadata"]["name"] for o in csi if o["kind"] in ("ClusterRole", "Role")}
    assert roles - {o["metadata"]["name"] for o in base if o["kind"] in ("ClusterRole", "Role")} == {
        "holdfast-injector-csi"
    }
    assert rights(one(csi, "ClusterRole", "holdfast-injector-csi")) == {
        ("storage.k8s.io", "csinodes", verb) for verb in ("get", "list", "watch")
    }
    bound = one(csi, "ClusterRoleBinding", "holdfast-injector-csi")
    assert [(subject["kind"], subject["name"]) for subject in bound["subjects"]] == [
        ("ServiceAccount", "holdfast-injector")
    ]


@pytest.mark.parametrize("kustomization", OVERLAYS)
def test_no_right_is_wild(kustomization: str) -> None:
    """No role says `*`."""
    for role in (o for o in objects(kustomization) if o["kind"] in ("Role", "ClusterRole")):
        assert not any("*" in right for right in rights(role))


@pytest.mark.parametrize("kustomization", OVERLAYS)
def test_bindings_lead_somewhere(kustomization: str) -> None:
    """Every binding names a role and an account that the same kustomization makes."""
    found = objects(kustomization)
    for binding in (o for o in found if o["kind"].endswith("RoleBinding")):
        one(found, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for subject in binding["subjects"]:
            account = one(found, subject["kind"], subject["name"])
            assert account["metadata"]["namespace"] == subject["namespace"]


@pytest.mark.parametrize("kustomization", OVERLAYS)
def test_a_daemon_is_held_to_its_own_node(kustomization: str) -> None:
    """The right to patch nodes never comes without the policy that narrows it, in force for the daemon's account."""
    found = objects(kustomization)
    policy = one(found, "ValidatingAdmissionPolicy", "holdfast-node")["spec"]
    binding = one(found, "ValidatingAdmissionPolicyBinding", "holdfast-node")["spec"]
    account = one(found, "ServiceAccount", "holdfast-daemon")["metadata"]
    assert binding == {"policyName": "holdfast-node", "validationActions": ["Deny"]}
    assert policy["failurePolicy"] == "Fail"
    (condition,) = policy["matchConditions"]
    assert f"'system:serviceaccount:{account['namespace']}:{account['name']}'" in condition["expression"]


def test_with_cert_manager_the_injector_has_no_rights() -> None:
    """The component for cert-manager takes away the role that it makes needless, the token, and what needs both."""
    (component,) = documents(MANIFESTS / "components/cert-manager/kustomization.yaml")
    gone = {p["target"]["kind"] for p in component["patches"] if "$patch: delete" in p.get("patch", "")}
    assert gone == {"Secret", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
    (deployment,) = documents(MANIFESTS / "components/cert-manager/deployment.yaml")
    assert deployment["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert {"name": "HOLDFAST_PEER_SECRET", "$patch": "delete"} in container["env"]


def _names(binding: Json, account: str) -> bool:
    return any(subject["name"] == account for subject in binding["subjects"])
