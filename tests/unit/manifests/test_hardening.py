"""What every container that we write is held to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kustomize import Json, containers
from tests.support.manifests import EVERYTHING, objects

CACHE = "/var/lib/holdfast"
KUBELET = "/var/lib/kubelet"
# Other people's images, which run as root or write where they please: theirs to change.
FOREIGN = ("vllm/vllm-openai:", "nvcr.io/nvidia/tritonserver:", "pytorch/torchserve:")


def is_driver(kustomization: str, container: Json) -> bool:
    """Whether this is the daemon as a CSI driver, which is privileged: `test_the_driver_is_privileged` has its
    rules."""
    return kustomization == "overlays/csi" and container["name"] == "daemon"


def workloads(kustomization: str) -> Iterator[tuple[Json, Json]]:
    """Each pod's spec with each of its containers."""
    for found in objects(kustomization):
        spec = found["spec"] if found["kind"] == "Pod" else found.get("spec", {}).get("template", {}).get("spec")
        for container in containers(found):
            assert spec is not None
            yield spec, container


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_containers_are_confined(kustomization: str) -> None:
    """No container gains privileges, keeps capabilities it was not given, or runs without seccomp."""
    for spec, container in workloads(kustomization):
        if is_driver(kustomization, container):
            continue
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"]["drop"] == ["ALL"]
        assert not own.get("privileged")
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(spec.get(shared) for shared in ("hostNetwork", "hostPID", "hostIPC"))


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_our_containers_run_as_nobody_on_a_read_only_root(kustomization: str) -> None:
    """Our containers are not root and write to volumes only; the one that prepares the folder is root, no more."""
    for spec, container in workloads(kustomization):
        own = container["securityContext"]
        if container["image"].startswith(FOREIGN) or is_driver(kustomization, container):
            continue
        assert own["readOnlyRootFilesystem"] is True
        if container["name"] == "prepare":
            assert own["runAsUser"] == 0
            assert own["capabilities"]["add"] == ["CHOWN", "DAC_OVERRIDE", "FOWNER"]
        else:
            assert "add" not in own["capabilities"]
            assert {**spec["securityContext"], **own}["runAsNonRoot"] is True
            assert {**spec["securityContext"], **own}["runAsUser"] == 65532


def test_the_driver_is_privileged() -> None:
    """In the overlay `csi` the daemon alone is privileged, keeps its root file system read-only, and of the kubelet's
    folders has those that a driver needs, one of them with mounts that reach the kubelet."""
    (found,) = ((spec, c) for spec, c in workloads("overlays/csi") if is_driver("overlays/csi", c))
    spec, container = found
    own = container["securityContext"]
    assert (own["privileged"], own["runAsUser"], own["readOnlyRootFilesystem"]) == (True, 0, True)
    host = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"] if "hostPath" in v}
    mounts = {m["mountPath"]: m for m in container["volumeMounts"] if m["name"] in host}
    # The kubelet and the daemon tell each other paths: they must mean the same in both.
    assert all(host[mount["name"]] == path for path, mount in mounts.items())
    plugin = f"{KUBELET}/plugins/weights.holdfast.dev"
    assert mounts.keys() == {CACHE, plugin, f"{KUBELET}/plugins_registry", f"{KUBELET}/pods"}
    spread = [path for path, mount in mounts.items() if "mountPropagation" in mount]
    assert spread == [f"{KUBELET}/pods"] and mounts[spread[0]]["mountPropagation"] == "Bidirectional"
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["HOLDFAST_CSI"] == f"{plugin}/csi.sock"
    assert variables["HOLDFAST_KUBELET_DIR"] == KUBELET


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_containers_ask_for_what_they_need(kustomization: str) -> None:
    """Every container has requests and a memory limit, so that the scheduler and the kernel know what to expect."""
    for _spec, container in workloads(kustomization):
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_containers_that_stay_are_probed(kustomization: str) -> None:
    """Every container that serves has a startup, a readiness and a liveness probe on a port it declares, and what ends
    by itself has none."""
    probes = ("startupProbe", "readinessProbe", "livenessProbe")
    for spec, container in workloads(kustomization):
        if container in spec.get("initContainers", ()):
            assert not {*probes, "ports", "lifecycle"} & container.keys()
            continue
        names = {port["name"] for port in container["ports"]} | {port["containerPort"] for port in container["ports"]}
        for probe in probes:
            check = container[probe].get("httpGet") or container[probe]["tcpSocket"]
            assert check["port"] in names


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_images_are_named_by_version(kustomization: str) -> None:
    """No image floats on `latest` or on no tag at all."""
    for _spec, container in workloads(kustomization):
        _, colon, tag = container["image"].rpartition(":")
        assert colon
        assert tag not in ("latest", "main")


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_the_host_is_touched_in_one_place(kustomization: str) -> None:
    """Only the cache's folder of the node is mounted; pods see the public part, and only to read."""
    for spec, container in workloads(kustomization):
        host = {v["name"]: v["hostPath"]["path"] for v in spec.get("volumes", ()) if "hostPath" in v}
        mounted = {host[m["name"]] for m in container.get("volumeMounts", ()) if m["name"] in host}
        assert is_driver(kustomization, container) or mounted <= {CACHE, f"{CACHE}/public"}
        for mount in container.get("volumeMounts", ()):
            if host.get(mount["name"]) == f"{CACHE}/public":
                assert mount["readOnly"] is True
                assert "subPath" not in mount


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_a_pod_has_time_to_stop(kustomization: str) -> None:
    """A pod that serves is told late and has time to finish: preStop, our server's linger, and drain fit the grace
    period."""
    for spec, container in workloads(kustomization):
        hook = container.get("lifecycle", {}).get("preStop")
        if hook is not None:
            command, seconds = hook["exec"]["command"]
            assert command == "sleep"
            linger_s = 10 if "/holdfast/server:" in container["image"] else 0
            assert int(seconds) + linger_s + 30 < spec["terminationGracePeriodSeconds"]
