"""What kustomize makes of manifests/, and that the tests see the same."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.kustomize import Json, containers, unordered
from tests.support.manifests import EVERYTHING, MANIFESTS, OVERLAYS, objects, one


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here to compare with")
@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_the_tests_render_as_kubectl_does(kustomization: str) -> None:
    """What the other tests look at is what `kubectl apply -k` sends."""
    made = subprocess.run(
        ["kubectl", "kustomize", MANIFESTS / kustomization], capture_output=True, text=True, check=True
    )
    assert made.stderr == ""
    assert _by_identity(list(yaml.safe_load_all(made.stdout))) == _by_identity(objects(kustomization))


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_one_object_a_file(kustomization: str) -> None:
    """Each file holds one object, so that its name says what it is."""
    for path in (MANIFESTS / kustomization).rglob("*.yaml"):
        assert len(list(yaml.safe_load_all(path.read_text()))) == 1, path


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_no_object_comes_twice(kustomization: str) -> None:
    """A kustomization makes each object once."""
    found = objects(kustomization)
    assert len(_by_identity(found)) == len(found)


@pytest.mark.parametrize("kustomization", OVERLAYS)
def test_the_gates_image_is_named_once(kustomization: str) -> None:
    """The injector and the policy add the very image that the DaemonSet has pulled."""
    found = objects(kustomization)
    gate = one(found, "DaemonSet", "holdfast-daemon")["spec"]["template"]["spec"]["initContainers"][0]["image"]
    for injector in (o for o in found if o["kind"] == "Deployment"):
        assert _environment(next(iter(containers(injector))))["HOLDFAST_GATE_IMAGE"] == gate
    for policy in (o for o in found if o["kind"] == "MutatingAdmissionPolicy"):
        image = next(v for v in policy["spec"]["variables"] if v["name"] == "gateImage")
        assert image["expression"] == f"'{gate}'"


def test_images_of_the_laptop_are_never_pulled() -> None:
    """The laptop overlay runs what was built there: no registry is asked for anything."""
    for found in objects("overlays/laptop"):
        for container in containers(found):
            assert container["image"].startswith("localhost/holdfast/")
            assert container["imagePullPolicy"] == "Never"
            assert _environment(container).get("HOLDFAST_GATE_PULL_POLICY", "Never") == "Never"


def test_the_laptop_needs_no_gpu() -> None:
    """The laptop overlay runs on any Linux node."""
    pod = one(objects("overlays/laptop"), "DaemonSet", "holdfast-daemon")["spec"]["template"]["spec"]
    assert "affinity" not in pod
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_an_overlay_replaces_the_catalog() -> None:
    """A catalog of one's own replaces the base's under the same name, so that the daemon's mount follows."""
    catalog = one(objects("overlays/gpu"), "ConfigMap", "holdfast-catalog")["data"]
    assert catalog == {"catalog.yaml": (MANIFESTS / "overlays/gpu/catalog.yaml").read_text()}


def test_the_policy_needs_no_webhook() -> None:
    """The overlay `policy` runs no injector and registers no webhook."""
    found = objects("overlays/policy")
    assert {each["kind"] for each in found}.isdisjoint({"Deployment", "MutatingWebhookConfiguration", "Role"})
    assert [each["metadata"]["name"] for each in found if each["kind"] == "Secret"] == ["holdfast-peers"]


def _environment(container: Json) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container.get("env", ()) if "value" in variable}


def _by_identity(found: list[Json]) -> dict[tuple[str, str, str], Any]:
    return {(o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]): unordered(o) for o in found}
