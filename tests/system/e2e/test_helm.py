"""The Helm chart in a real cluster: installed, upgraded, rolled back and uninstalled by Helm's own library.

The plain installation makes room for it, and comes back.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator

import pytest

from tests.support.cluster import Json, Pod, create, exists, get, kubectl, select, wait_for
from tests.support.helm import Helm, HelmRefusal, running_helm, why_not
from tests.support.installation import (
    GATE,
    MAIN,
    Catalog,
    Holdfast,
    Origin,
    annotated,
    chart_values,
    dry_run,
    left_behind,
    pod_object,
)
from tests.system.e2e.conftest import Models

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
_WAIT: Json = {"wait": "watcher", "timeout": 180}


@pytest.fixture
def helm() -> Iterator[Helm]:
    with running_helm() as helm:
        yield helm


def test_the_chart_refuses_a_cluster_that_has_holdfast(
    holdfast: Holdfast, helm: Helm, origin: Origin, listed: Catalog
) -> None:
    """Beside an installation that kustomize made, Helm changes nothing and says why."""
    before = _certificate()
    with pytest.raises(HelmRefusal, match="cannot be imported into the current release"):
        helm.release("install", values=chart_values(origin, listed), **_WAIT)
    assert _certificate() == before
    assert helm.release("list", all_states=True) == []


def test_a_namespace_that_forbids_the_daemon_is_told(
    holdfast: Holdfast, helm: Helm, namespace: str, origin: Origin, listed: Catalog
) -> None:
    """Where the namespace enforces a profile that forbids the daemon's pods, the install says what to do."""
    label = "pod-security.kubernetes.io/enforce"
    kubectl("label", "namespace", namespace, f"{label}=baseline")
    try:
        with pytest.raises(HelmRefusal, match=f"kubectl label namespace {namespace} {label}=privileged"):
            helm.release("install", within=namespace, values=chart_values(origin, listed))
    finally:
        kubectl("label", "namespace", namespace, f"{label}-")


def test_a_release_lives(
    holdfast: Holdfast, helm: Helm, namespace: str, origin: Origin, listed: Catalog, models: Models
) -> None:
    """Upgrade and rollback keep certificate, CA and running pods, and change what the values say; annotated pods get
    their gate after each, also from the policy; uninstall leaves nothing but the namespace."""
    origin.publish(models["helm"], "1")
    values = chart_values(origin, listed)
    holdfast.remove()
    try:
        installed = helm.release("install", values=values, create_namespace=True, **_WAIT)
        assert (installed["revision"], installed["status"]) == (1, "deployed")
        wait_for("the webhook answers", _gated, 60)
        pod = Pod(namespace, "by-helm")
        create(pod_object(pod, annotated(models["helm"], "1")))
        pod.wait_running(MAIN)
        certificate, injectors = _certificate(), _pods("holdfast-injector")

        changed = copy.deepcopy(values)
        changed["commonLabels"] = {"team": "serving"}  # on each object: the webhook and the Secret too
        changed["daemon"]["options"]["quota"] = "6GiB"
        changed["catalog"]["models"]["new"] = {}
        helm.release("upgrade", values=changed, **_WAIT)
        assert _gated()
        assert _certificate() == certificate
        assert _pods("holdfast-injector") == injectors  # nothing of theirs changed
        assert _quota() == "6GiB"
        assert "new:" in _catalog()
        assert get("mutatingwebhookconfiguration", "holdfast-injector")["metadata"]["labels"]["team"] == "serving"

        helm.release("rollback", version=1, **_WAIT)
        assert _gated()
        assert _certificate() == certificate
        assert _quota() == values["daemon"]["options"]["quota"]
        assert "new:" not in _catalog()
        assert "team" not in get("mutatingwebhookconfiguration", "holdfast-injector")["metadata"]["labels"]
        assert [each["revision"] for each in helm.release("history")] == [1, 2, 3]

        if _minor_version() >= 36:  # the policy in place of the webhook, and back
            helm.release("upgrade", values={**values, "admission": "policy"}, **_WAIT)
            wait_for("the policy is in force", _gated, 60)
            assert not exists("deployment", "holdfast-injector", "holdfast")
            assert not exists("mutatingwebhookconfiguration", "holdfast-injector")
            helm.release("upgrade", values=values, **_WAIT)
            wait_for("the webhook answers", _gated, 60)
            assert not exists("mutatingadmissionpolicy", "holdfast-gate")

        helm.release("uninstall", wait="watcher", timeout=120)
        assert pod.runs(MAIN)
        plain = Pod(namespace, "plain-after-helm")
        create(pod_object(plain))
        plain.wait_running(MAIN)
        assert exists("namespace", "holdfast")
        kubectl("delete", "namespace", "holdfast", "--wait=true", "--timeout=120s")
        assert left_behind() == []
        plain.delete()
        pod.delete()
    finally:
        if exists("namespace", "holdfast"):
            helm.release("uninstall", ignore_not_found=True, wait="watcher", timeout=120)
            kubectl("delete", "namespace", "holdfast", "--wait=true", "--timeout=120s", "--ignore-not-found")
        holdfast.apply()


def _gated() -> bool:
    return GATE in dry_run(pod_object(Pod("default", "probe"), annotated("none", "1"))).stdout


def _minor_version() -> int:
    return int(json.loads(kubectl("version", "-o", "json").stdout)["serverVersion"]["minor"].rstrip("+"))


def _certificate() -> Json:
    """The injector's keys, and the CA that the API server trusts."""
    (webhook,) = get("mutatingwebhookconfiguration", "holdfast-injector")["webhooks"]
    secret = get("secret", "holdfast-injector-tls", "holdfast")["data"]
    return {"secret": secret, "bundle": webhook["clientConfig"]["caBundle"]}


def _pods(name: str) -> set[str]:
    return {found["metadata"]["uid"] for found in select("pods", "holdfast", f"app.kubernetes.io/name={name}")}


def _quota() -> str:
    (daemon,) = get("daemonset", "holdfast-daemon", "holdfast")["spec"]["template"]["spec"]["containers"]
    return str(next(each["value"] for each in daemon["env"] if each["name"] == "HOLDFAST_QUOTA"))


def _catalog() -> str:
    data = json.loads(kubectl("get", "configmap", "holdfast-catalog", "-n", "holdfast", "-o", "json").stdout)["data"]
    return str(data["catalog.yaml"])
