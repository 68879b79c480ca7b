"""Pods that get a CSI volume in place of a gate, and which pods do."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cached.contract.annotations import INJECTED, MODE, MODELS
from sidecar.injector.pod.delivery import Mode
from tests.support.pods import ASK, DIGEST, OTHER_DIGEST, PINNED, Json, ask_more, inject, make_pod, refusal

MOUNT = {"name": "holdfast", "mountPath": "/holdfast", "readOnly": True}
CSI = ask_more(mode="csi")
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
HAS_DRIVER = {"key": "weights.holdfast.dev/csi", "operator": "In", "values": ["ready"]}


def volume(**attributes: str) -> Json:
    named = {"models": "acme/tiny@v1", "verify": "record", **attributes}
    return {"name": "holdfast", "csi": {"driver": "weights.holdfast.dev", "readOnly": True, "volumeAttributes": named}}


def is_csi(pod: Json) -> bool:
    """Whether the injected pod has a volume of the driver; it has a gate where it has none."""
    found = any("csi" in each for each in pod["spec"]["volumes"])
    names = [each["name"] for each in pod["spec"].get("initContainers", ())]
    assert ("holdfast-gate" in names) is not found
    return found


def test_a_volume_and_no_container_is_added() -> None:
    """A pod in CSI mode gets volume, mount, variable and mark, and no init container."""
    pod = make_pod(CSI)
    expected = copy.deepcopy(pod)
    expected["metadata"]["annotations"][INJECTED] = "1.2.3"
    expected["spec"]["volumes"] = [volume()]
    path = {"name": "HOLDFAST_MODEL_PATH", "value": "/holdfast/models/acme--tiny/v1"}
    expected["spec"]["containers"][0] |= {"volumeMounts": [MOUNT], "env": [path]}
    assert inject(pod) == expected


def test_a_pod_tells_its_mode_where_the_cluster_chose_it() -> None:
    """A pod that gets a volume by the cluster's default has the annotation too, so that the node's daemon knows that it
    waits for a mount; one behind a gate has none."""
    notes = inject(make_pod(ASK), mode=Mode.CSI)["metadata"]["annotations"]
    assert notes[MODE] == "csi"
    assert MODE not in inject(make_pod(ASK), mode=Mode.GATE)["metadata"]["annotations"]


def test_the_volume_names_what_the_pod_asks_for() -> None:
    """Models, pins (the catalog's too) and the way to verify are the volume's attributes, written as in annotations."""
    notes = {MODELS: "base=acme/tiny@v1, adapter=lora@v7", "holdfast.dev/verify": "full", "holdfast.dev/mode": "csi"}
    notes["holdfast.dev/digest"] = f"adapter={OTHER_DIGEST}"
    pod = inject(make_pod(notes), catalog=PINNED)
    pins = f"base={DIGEST},adapter={OTHER_DIGEST}"
    assert pod["spec"]["volumes"] == [volume(models="base=acme/tiny@v1,adapter=lora@v7", verify="full", digest=pins)]
    names = [each["name"] for each in pod["spec"]["containers"][0]["env"]]
    assert names == [
        *("HOLDFAST_MODEL_PATH", "HOLDFAST_MODEL_PATH_BASE", "HOLDFAST_MODEL_PATH_ADAPTER"),
        *("HOLDFAST_MODELS", "HOLDFAST_ROOT", "HOLDFAST_DIGEST"),
    ]


def test_containers_and_mount_path_hold_too() -> None:
    """`holdfast.dev/containers` and `holdfast.dev/mount-path` mean the same as with a gate."""
    containers = [{"name": "server"}, {"name": "logs"}]
    notes = ask_more(mode="csi", containers="server", mount_path="/models")
    found = inject(make_pod(notes, containers=containers))["spec"]["containers"]
    assert found[0]["volumeMounts"] == [{**MOUNT, "mountPath": "/models"}]
    assert found[1] == containers[1]


def test_a_preference_for_warm_nodes_stays() -> None:
    """A pinned pod in CSI mode prefers nodes that hold its weights, and requires nothing of its own."""
    affinity = inject(make_pod(CSI), catalog=PINNED)["spec"]["affinity"]["nodeAffinity"]
    assert "preferredDuringSchedulingIgnoredDuringExecution" in affinity and REQUIRED not in affinity


def test_a_pod_with_host_network_gets_a_volume() -> None:
    """A volume needs no port: in the node's network it is as anywhere else."""
    assert is_csi(inject(make_pod(CSI, hostNetwork=True)))


@pytest.mark.parametrize("gate", ["init", "sidecar"])
def test_a_gate_and_a_volume_exclude_each_other(gate: str) -> None:
    """A pod that asks for both is refused, with both annotations and what to write."""
    error = refusal(make_pod(ask_more(mode="csi", gate=gate)))
    assert error.code == "invalid_annotations"
    assert "holdfast.dev/mode" in error.message and "holdfast.dev/gate" in error.message
    assert "leave one of them out" in error.remedy


def test_an_unknown_mode_is_refused() -> None:
    """`auto` is the cluster's to say, not a pod's."""
    error = refusal(make_pod(ask_more(mode="auto")))
    assert error.code == "invalid_annotations" and "gate or csi" in error.message


@pytest.mark.parametrize(
    ("notes", "mode", "nodes", "expected"),
    [
        (ASK, Mode.GATE, {"n"}, False),
        (ASK, Mode.CSI, set(), True),
        (ASK, Mode.AUTO, {"n"}, True),
        (ASK, Mode.AUTO, set(), False),
        (CSI, Mode.GATE, set(), True),
        (CSI, Mode.AUTO, set(), True),
        (ask_more(mode="gate"), Mode.CSI, {"n"}, False),
        (ask_more(mode="gate"), Mode.AUTO, {"n"}, False),
        (ask_more(gate="sidecar"), Mode.CSI, {"n"}, False),
        (ask_more(gate="init"), Mode.AUTO, {"n"}, False),
    ],
)
def test_who_decides(notes: dict[str, str], mode: Mode, nodes: set[str], expected: bool) -> None:
    """The pod's annotation decides, then that it chooses a gate, then the cluster's default; `auto` is a volume where a
    node has the driver."""
    assert is_csi(inject(make_pod(notes), mode=mode, driver_nodes=nodes)) is expected


def field(*nodes: str) -> Json:
    return {"matchFields": [{"key": "metadata.name", "operator": "In", "values": list(nodes)}]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"nodeName": "with"}, True),
        ({"nodeName": "without"}, False),
        ({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [field("with")]}}}}, True),
        ({"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [field("without")]}}}}, False),
    ],
)
def test_where_the_node_is_known_it_decides(spec: Json, expected: bool) -> None:
    """With `auto`, a pod for one node (bound, or a DaemonSet's) gets what that node has, and no condition for it."""
    found = inject(make_pod(ASK, **spec), mode=Mode.AUTO, driver_nodes={"with"})
    assert is_csi(found) is expected
    assert found["spec"].get("affinity") == spec.get("affinity")


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, [{"matchExpressions": [HAS_DRIVER]}]),
        ([field("a", "b")], [{**field("a", "b"), "matchExpressions": [HAS_DRIVER]}]),
        ([field("a"), field("b")], [{**field(name), "matchExpressions": [HAS_DRIVER]} for name in "ab"]),
    ],
)
def test_auto_keeps_a_pod_from_nodes_without_the_driver(own: list[Json] | None, expected: list[Json]) -> None:
    """A volume that the pod did not ask for requires a node with the driver, in each alternative of the pod's own."""
    spec: dict[str, Any] = {} if own is None else {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": own}}}}
    found = inject(make_pod(ASK, **spec), mode=Mode.AUTO, driver_nodes={"n"}, catalog=PINNED)
    affinity = found["spec"]["affinity"]["nodeAffinity"]
    assert affinity[REQUIRED] == {"nodeSelectorTerms": expected}
    assert len(affinity["preferredDuringSchedulingIgnoredDuringExecution"]) == 1


def test_both_conditions_of_a_required_affinity() -> None:
    """With `holdfast.dev/affinity: required` and `auto` a node must hold the weights and have the driver."""
    notes = ask_more(affinity="required")
    found = inject(make_pod(notes), mode=Mode.AUTO, driver_nodes={"n"}, catalog=PINNED)
    (term,) = found["spec"]["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert [each["key"] for each in term["matchExpressions"]] == [
        f"weights.holdfast.dev/{DIGEST.hex[:40]}",
        "weights.holdfast.dev/csi",
    ]


def test_a_volume_written_by_hand_is_used() -> None:
    """The same volume of the pod's own is not added again; any other of that name is refused with what is expected."""
    assert inject(make_pod(CSI, volumes=[volume()]))["spec"]["volumes"] == [volume()]
    for other in (volume(models="other@v1"), {"name": "holdfast", "hostPath": {"path": "/var/lib/holdfast/public"}}):
        error = refusal(make_pod(CSI, volumes=[other]))
        assert error.code == "mount_conflict" and "models: acme/tiny@v1" in error.message
    assert refusal(make_pod(ASK, volumes=[volume()])).code == "mount_conflict"
