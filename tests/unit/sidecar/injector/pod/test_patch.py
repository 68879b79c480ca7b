"""The injector's patch, one case a test, applied by another implementation of JSON patch."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cached.contract.annotations import DIGEST as DIGEST_ANNOTATION
from cached.contract.annotations import INJECTED, MODELS
from cached.contract.reference import ModelRef
from sidecar.gate.settings import parse as parse_gate
from sidecar.injector.catalog_view import CatalogView
from sidecar.injector.pod.gate_container import GateSettings
from sidecar.injector.pod.patch import Patch
from tests.support.pods import (
    ASK,
    DIGEST,
    INIT_SETTINGS,
    NAMESPACE,
    OTHER_DIGEST,
    PINNED,
    REF,
    SETTINGS,
    Json,
    ask_more,
    gate_of,
    inject,
    make_pod,
    patch_of,
    refusal,
)

VOLUME = {"name": "holdfast", "hostPath": {"path": "/var/lib/holdfast/public", "type": "DirectoryOrCreate"}}
MOUNT = {"name": "holdfast", "mountPath": "/holdfast", "readOnly": True, "recursiveReadOnly": "IfPossible"}
BOTH = {"cpu": "500m", "memory": "256Mi"}
VERSIONS = ["gate", "--root", "/holdfast", "--model", "acme/tiny", "--version", "v1"]
SIDECAR = ask_more(gate="sidecar")
PROBED = {"startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "ports"}
VARIABLE = {"name": "HOLDFAST_MODEL_PATH", "value": "/holdfast/models/acme--tiny/v1"}


def left_alone(pod: Json) -> bool:
    return patch_of(pod) == Patch()


def test_everything_is_added_to_a_bare_pod() -> None:
    """Gate, lease, volume, mount, variable and mark, and nothing else changes."""
    pod = make_pod()
    found = inject(pod)
    expected = copy.deepcopy(pod)
    expected["metadata"]["annotations"][INJECTED] = "1.2.3"
    expected["spec"]["volumes"] = [VOLUME]
    expected["spec"]["initContainers"] = [gate_of(found)]
    expected["spec"]["containers"][0] |= {"volumeMounts": [MOUNT], "env": [VARIABLE]}
    assert found == expected


@pytest.mark.parametrize("notes", [ASK, ask_more(gate="init")])
def test_an_init_container_decides(notes: dict[str, str]) -> None:
    """By default the gate is the only container added: an init container that ends, without probe, hook and port."""
    found = inject(make_pod(notes))
    gate = gate_of(found)
    assert len(found["spec"]["initContainers"]) == 1
    ends = ["--verify", "record", "--timeout", "600", "--wait-for-correction", "--once"]
    assert gate["args"] == [*VERSIONS, *ends]
    assert not {*PROBED, "restartPolicy"} & gate.keys()


def test_our_gate_understands_what_it_is_told() -> None:
    """The container's arguments are options of the gate."""
    found = inject(make_pod({MODELS: "base=acme/tiny@v1,lora@v7"}), catalog=PINNED)
    options = parse_gate(gate_of(found)["args"][1:])
    assert options.once and options.waits_for_correction
    assert [str(each.ref) for each in options.wanted] == ["acme/tiny@v1", "lora@v7"]


def test_the_gate_as_a_sidecar_is_probed() -> None:
    """With `holdfast.dev/gate: sidecar` the gate is the only container added, is restarted always, and nothing after it
    starts before its startup probe succeeds."""
    found = inject(make_pod(SIDECAR))
    gate = gate_of(found)
    assert len(found["spec"]["initContainers"]) == 1
    assert gate["restartPolicy"] == "Always"
    assert gate["startupProbe"] == {
        "httpGet": {"path": "/readyz", "port": 9401},
        "periodSeconds": 1,
        "timeoutSeconds": 2,
        "failureThreshold": 660,  # a minute more than the gate's own deadline
    }
    assert gate["args"] == [*VERSIONS, "--verify", "record", "--timeout", "600", "--listen", "0.0.0.0:9401"]
    assert gate["volumeMounts"] == [MOUNT]
    assert gate["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_the_hook_is_bounded() -> None:
    """The postStart hook is told the gate's port and to end after two seconds."""
    hook = gate_of(inject(make_pod(SIDECAR)))["lifecycle"]["postStart"]
    assert hook == {"exec": {"command": ["python3", "-m", "sidecar.poststart", "9401", "2"]}}


def test_the_gate_has_no_rights() -> None:
    """The gate keeps the profile `restricted`, also in a pod that runs as root."""
    assert gate_of(inject(make_pod(securityContext={"runAsUser": 0})))["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_other_init_containers_come_after_the_gate() -> None:
    """The gate is first, and plain init containers get the weights too."""
    found = inject(make_pod(initContainers=[{"name": "convert", "image": "c"}, {"name": "warm", "image": "w"}]))
    names = [c["name"] for c in found["spec"]["initContainers"]]
    assert names == ["holdfast-gate", "convert", "warm"]
    for container in found["spec"]["initContainers"][1:]:
        assert (container["volumeMounts"], container["env"]) == ([MOUNT], [VARIABLE])


def test_other_sidecars_are_left_alone() -> None:
    """A native sidecar of the pod's own gets neither mount nor variable unless it is named."""
    proxy = {"name": "proxy", "image": "p", "restartPolicy": "Always"}
    assert inject(make_pod(initContainers=[proxy]))["spec"]["initContainers"][1] == proxy
    named = inject(make_pod(ask_more(containers="proxy"), initContainers=[proxy]))
    assert named["spec"]["initContainers"][1]["volumeMounts"] == [MOUNT]


def test_only_named_containers_get_the_weights() -> None:
    """`holdfast.dev/containers` names all that get mount and variables."""
    containers = [{"name": "server", "image": "s"}, {"name": "logs", "image": "l"}]
    found = inject(make_pod(ask_more(containers="server"), containers=containers))
    assert found["spec"]["containers"][0]["volumeMounts"] == [MOUNT]
    assert found["spec"]["containers"][1] == containers[1]


def test_lists_that_are_there_are_kept() -> None:
    """Volumes, mounts and variables of the pod stay as they are, beside ours."""
    container: Json = {
        "name": "server",
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        "env": [{"name": "A", "value": "$(HOLDFAST_MODEL_PATH)/a"}],
    }
    volumes = [{"name": "tmp", "emptyDir": {}}]
    found = inject(make_pod(containers=[container], volumes=volumes))["spec"]
    assert found["volumes"] == [*volumes, VOLUME]
    assert found["containers"][0]["volumeMounts"] == [*container["volumeMounts"], MOUNT]
    # Ours comes first: Kubernetes expands references to variables before it only.
    assert found["containers"][0]["env"] == [VARIABLE, *container["env"]]


@pytest.mark.parametrize("empty", [None, []])
def test_empty_lists_are_as_good_as_none(empty: object) -> None:
    """A list that is null or empty is filled."""
    container = {"name": "server", "env": empty, "volumeMounts": empty}
    found = inject(make_pod(containers=[container], volumes=empty, initContainers=empty))["spec"]
    assert found["volumes"] == [VOLUME] and len(found["initContainers"]) == 1
    assert found["containers"] == [{"name": "server", "env": [VARIABLE], "volumeMounts": [MOUNT]}]


def test_a_variable_of_the_pod_wins() -> None:
    """A variable that the container sets itself is not set again."""
    own = [{"name": "HOLDFAST_MODEL_PATH", "value": "/elsewhere"}]
    found = inject(make_pod(containers=[{"name": "server", "env": own}]))
    assert found["spec"]["containers"][0]["env"] == own


def test_a_mount_of_the_weights_is_not_added_twice() -> None:
    """Volume and mount written by hand are kept and used."""
    mount = {"name": "holdfast", "mountPath": "/holdfast", "readOnly": True}
    pod = make_pod(containers=[{"name": "server", "volumeMounts": [mount]}], volumes=[VOLUME])
    found = inject(pod)["spec"]
    assert found["volumes"] == [VOLUME]
    assert found["containers"][0]["volumeMounts"] == [mount]


def test_another_mount_path() -> None:
    """The weights are mounted where the pod says, and the variables follow; the gate's own mount stays."""
    found = inject(make_pod(ask_more(mount_path="/models")))
    container = found["spec"]["containers"][0]
    assert container["volumeMounts"] == [{**MOUNT, "mountPath": "/models"}]
    assert container["env"] == [{"name": "HOLDFAST_MODEL_PATH", "value": "/models/models/acme--tiny/v1"}]
    assert gate_of(found)["volumeMounts"] == [MOUNT]


@pytest.mark.parametrize("path", ["/holdfast", "/holdfast/", "/holdfast/cache"])
def test_a_mount_in_the_way_is_refused(path: str) -> None:
    """Where another volume is mounted at or below the path, the pod is refused with a way out."""
    container = {"name": "server", "volumeMounts": [{"name": "cache", "mountPath": path}]}
    error = refusal(make_pod(containers=[container]))
    assert error.code == "mount_conflict"
    assert "'server'" in error.message and "'cache'" in error.message and "holdfast.dev/mount-path" in error.remedy


def test_a_mount_beside_is_no_conflict() -> None:
    """A path that only begins with the same letters is another path."""
    container = {"name": "server", "volumeMounts": [{"name": "cache", "mountPath": "/holdfast-cache"}]}
    assert len(inject(make_pod(containers=[container]))["spec"]["containers"][0]["volumeMounts"]) == 2


def test_a_volume_of_our_name_is_refused() -> None:
    """A volume named `holdfast` that is something else is never taken for ours."""
    error = refusal(make_pod(volumes=[{"name": "holdfast", "emptyDir": {}}]))
    assert error.code == "mount_conflict" and "rename" in error.remedy


def test_a_container_that_is_not_there_is_refused() -> None:
    """The message names what is missing and what there is."""
    error = refusal(make_pod(ask_more(containers="server,trainer")))
    assert error.code == "unknown_container"
    assert "trainer" in error.message and "the pod has server" in error.message


def test_bad_annotations_are_refused() -> None:
    """Annotations that cannot be read are refused with how to write them."""
    error = refusal(make_pod({"holdfast.dev/model": "acme/tiny"}))
    assert error.code == "invalid_annotations" and "holdfast.dev/version" in error.remedy


def test_several_models() -> None:
    """Each alias has its variable, the first model has the plain one too, and the gate waits for all."""
    text = "base=acme/tiny@v1,LoRA.x=lora@v7,plain@v2"
    found = inject(make_pod({MODELS: text}))
    assert found["spec"]["containers"][0]["env"] == [
        VARIABLE,
        {"name": "HOLDFAST_MODEL_PATH_BASE", "value": "/holdfast/models/acme--tiny/v1"},
        {"name": "HOLDFAST_MODEL_PATH_LORA_X", "value": "/holdfast/models/lora/v7"},
        {"name": "HOLDFAST_MODELS", "value": text},
        {"name": "HOLDFAST_ROOT", "value": "/holdfast"},
    ]
    args = gate_of(found)["args"]
    assert args[args.index("--models") + 1] == text


def test_the_catalog_pins_what_the_pod_does_not() -> None:
    """The catalog's digest becomes the pod's, for the gate and in the annotation that the daemon reads."""
    found = inject(make_pod(), catalog=PINNED)
    assert found["metadata"]["annotations"][DIGEST_ANNOTATION] == str(DIGEST)
    args = gate_of(found)["args"]
    assert args[args.index("--digest") + 1] == str(DIGEST)


def test_a_pod_pins_what_the_catalog_does_not() -> None:
    """The pod's own digest goes to the gate, and its annotation stays."""
    found = inject(make_pod(ask_more(digest=str(OTHER_DIGEST))))
    assert found["metadata"]["annotations"][DIGEST_ANNOTATION] == str(OTHER_DIGEST)
    assert str(OTHER_DIGEST) in gate_of(found)["args"]


def test_pins_of_several_models_are_completed() -> None:
    """With several models each pin is kept or taken from the catalog, and one without either has none."""
    notes = {MODELS: "a=acme/tiny@v1,b=lora@v7,c=free@v1", DIGEST_ANNOTATION: f"b={OTHER_DIGEST}"}
    found = inject(make_pod(notes), catalog=PINNED)
    pins = f"a={DIGEST},b={OTHER_DIGEST}"
    assert found["metadata"]["annotations"][DIGEST_ANNOTATION] == pins
    assert pins in gate_of(found)["args"]


def test_a_pin_that_the_catalog_contradicts_is_refused() -> None:
    """The message names both digests."""
    error = refusal(make_pod(ask_more(digest=str(OTHER_DIGEST))), PINNED)
    assert error.code == "digest_mismatch"
    assert str(DIGEST) in error.message and str(OTHER_DIGEST) in error.message


def test_a_model_of_other_namespaces_is_refused() -> None:
    """A pod in a namespace that the catalog does not give the model to is refused, with the namespaces and the remedy;
    others are not."""
    limited = CatalogView({}, frozenset({REF.name}), {REF.name: frozenset({"team-b", "team-c"})})
    error = refusal(make_pod(), limited)
    assert error.code == "forbidden_namespace"
    assert "team-b, team-c" in error.message and NAMESPACE in error.message and "`namespaces`" in error.remedy
    assert inject(make_pod(), catalog=CatalogView({}, frozenset({REF.name}), {REF.name: frozenset({NAMESPACE})}))


def test_one_model_of_several_is_enough_to_refuse() -> None:
    """Of several models each must be for the pod's namespace."""
    limited = CatalogView({}, None, {"lora": frozenset({"team-b"})})
    assert "lora@v7" in refusal(make_pod({MODELS: "base=acme/tiny@v1,lora@v7"}), limited).message


def test_namespaces_that_cannot_be_read_give_the_model_to_nobody() -> None:
    """Where the catalog limits a model and it cannot be read to whom, no pod gets it."""
    error = refusal(make_pod(), CatalogView({}, None, {REF.name: frozenset()}))
    assert error.code == "invalid_catalog" and "acme/tiny" in error.message


def test_a_model_that_the_catalog_lacks_is_a_warning() -> None:
    """The pod is taken, since the daemons' catalog may be newer, and its author is told."""
    patch = patch_of(make_pod(), catalog=CatalogView({}, frozenset({"other"})))
    assert patch.operations and "acme/tiny" in patch.warnings[0]
    assert not patch_of(make_pod()).warnings


@pytest.mark.parametrize(("verify", "expected"), [(None, "record"), ("full", "full")])
def test_how_to_verify(verify: str | None, expected: str) -> None:
    """The gate verifies as the pod says."""
    args = gate_of(inject(make_pod(ask_more(verify=verify) if verify else ASK)))["args"]
    assert args[args.index("--verify") + 1] == expected


def test_a_host_network_pod_has_a_gate_without_a_port() -> None:
    """In the node's network the gate is a plain init container that listens nowhere, as any port may be taken."""
    found = inject(make_pod(hostNetwork=True))
    gate = gate_of(found)
    assert len(found["spec"]["initContainers"]) == 1
    assert gate["args"][-1] == "--once" and "--listen" not in gate["args"]
    assert not PROBED & gate.keys() and "restartPolicy" not in gate


def test_clusters_without_native_sidecars() -> None:
    """Mode `init` gives a plain init container, the first."""
    found = inject(make_pod(initContainers=[{"name": "convert"}]), INIT_SETTINGS)
    gate = gate_of(found)
    assert [c["name"] for c in found["spec"]["initContainers"]] == ["holdfast-gate", "convert"]
    assert gate["args"][-1] == "--once"
    assert not PROBED & gate.keys() and "restartPolicy" not in gate


@pytest.mark.parametrize(
    ("settings", "spec", "why"), [(SETTINGS, {"hostNetwork": True}, "node's network"), (INIT_SETTINGS, {}, "init")]
)
def test_a_sidecar_that_cannot_be_is_refused(settings: GateSettings, spec: Json, why: str) -> None:
    """A pod that asks for the gate as a sidecar and cannot have one hears why, and what to write."""
    error = refusal(make_pod(SIDECAR, **spec), settings=settings)
    assert error.code == "unsupported_pod"
    assert "holdfast.dev/gate" in error.message and why in error.message and "leave it out" in error.remedy


def test_the_gate_avoids_the_ports_of_the_pod() -> None:
    """Where a container says it listens on 9401, the gate takes the next free port, everywhere the same."""
    containers = [{"name": "server", "ports": [{"containerPort": 9401}, {"containerPort": 9402}]}]
    gate = gate_of(inject(make_pod(SIDECAR, containers=containers)))
    assert gate["args"][-1] == "0.0.0.0:9403"
    assert gate["startupProbe"]["httpGet"]["port"] == 9403 == gate["ports"][0]["containerPort"]
    assert "9403" in gate["lifecycle"]["postStart"]["exec"]["command"]


def resources(cpu: str, memory: str) -> Json:
    both = {"cpu": cpu, "memory": memory, "nvidia.com/gpu": "1"}
    return {"resources": {"requests": both, "limits": both}}


def test_a_guaranteed_pod_stays_guaranteed() -> None:
    """Where all limits equal the requests, those of the gate do too."""
    pod = make_pod(containers=[{"name": "server", **resources("8", "64Gi")}])
    found = inject(pod)
    assert gate_of(found)["resources"] == {"requests": BOTH, "limits": BOTH}
    assert found["spec"]["containers"][0]["resources"] == pod["spec"]["containers"][0]["resources"]


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        ({}, {"memory": "256Mi"}),
        ({"resources": {"limits": {"cpu": "2"}}}, BOTH),
        ({"resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}}, BOTH),
    ],
)
def test_the_gate_asks_for_little(container: Json, expected: Json) -> None:
    """In any other pod the gate requests little, and its CPU has a limit only where all others' have."""
    found = inject(make_pod(containers=[{"name": "server", **container}]))
    wanted = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": expected}
    assert gate_of(found)["resources"] == wanted


@pytest.mark.parametrize("container", [{}, resources("8", "64Gi")])
def test_a_gate_that_ends_takes_nothing_of_the_node(container: Json) -> None:
    """The scheduler reserves no more for a pod with the gate than for what the pod runs itself, or the gate's own
    requests where those are more."""
    pod = make_pod(containers=[{"name": "server", **container}])
    found = inject(pod)
    own, alone = (effective_requests(each["spec"]) for each in (pod, {"spec": {"containers": [gate_of(found)]}}))
    assert effective_requests(found["spec"]) == {what: max(own[what], alone[what]) for what in own}


def effective_requests(spec: Json) -> dict[str, int]:
    """Thousandths of a CPU and bytes that the scheduler reserves. The larger of all that run together, and of each init
    container with the sidecars before it:
    https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/#resource-sharing-within-containers"""
    units = {"m": 1, "": 1000, "Mi": 1 << 20, "Gi": 1 << 30}

    def read(each: Json, what: str) -> int:
        text = ((each.get("resources") or {}).get("requests") or {}).get(what, "0")
        digits = text.rstrip("miMG")
        return int(digits) * units[text.removeprefix(digits)] if text != "0" else 0

    found = {}
    for what in ("cpu", "memory"):
        sidecars, most = 0, 0
        for each in spec.get("initContainers", ()):
            if each.get("restartPolicy") == "Always":
                sidecars += read(each, what)
            else:
                most = max(most, sidecars + read(each, what))
        found[what] = max(most, sidecars + sum(read(each, what) for each in spec["containers"]))
    return found


def test_pod_level_resources_are_not_exceeded() -> None:
    """Where the pod as a whole has resources, ours ask for none of their own."""
    found = inject(make_pod(resources={"requests": {"cpu": "8"}}))
    assert "resources" not in gate_of(found)


def label(digest: object) -> Json:
    return {"key": f"weights.holdfast.dev/{str(digest)[7:47]}", "operator": "In", "values": ["ready"]}


def preference(digest: object) -> Json:
    return {"weight": 100, "preference": {"matchExpressions": [label(digest)]}}


def test_nodes_that_hold_the_digest_are_preferred() -> None:
    """A known digest gives a preference, beside what the pod prefers and requires itself."""
    own: Json = {
        "podAntiAffinity": {"anything": []},
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"a": 1}]}]},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}],
        },
    }
    found = inject(make_pod(affinity=own), catalog=PINNED)["spec"]["affinity"]
    expected = copy.deepcopy(own)
    expected["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"].append(preference(DIGEST))
    assert found == expected


@pytest.mark.parametrize("own", [{}, {"affinity": None}, {"affinity": {}}, {"affinity": {"nodeAffinity": None}}])
def test_a_preference_where_there_is_no_affinity(own: Json) -> None:
    """Missing, null and empty affinities are the same."""
    found = inject(make_pod(**own), catalog=PINNED)["spec"]["affinity"]
    assert found == {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preference(DIGEST)]}}


def test_an_unknown_digest_prefers_nothing() -> None:
    """Without a digest there is no label to prefer."""
    assert "affinity" not in inject(make_pod())["spec"]


def test_models_of_one_digest_are_preferred_once() -> None:
    """Two references with the same content ask for the same label."""
    pins = CatalogView({REF: DIGEST, ModelRef("copy", "v1"): DIGEST}, None)
    found = inject(make_pod({MODELS: "acme/tiny@v1,copy@v1"}), catalog=pins)["spec"]["affinity"]
    assert found["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"] == [preference(DIGEST)]


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, [{"matchExpressions": [label(DIGEST)]}]),
        (
            [{"matchExpressions": [{"a": 1}]}, {"matchFields": [{"b": 2}]}],
            [
                {"matchExpressions": [{"a": 1}, label(DIGEST)]},
                {"matchFields": [{"b": 2}], "matchExpressions": [label(DIGEST)]},
            ],
        ),
        # A term without conditions matches no node, and must not begin to.
        ([{}, {"matchExpressions": [{"a": 1}]}], [{}, {"matchExpressions": [{"a": 1}, label(DIGEST)]}]),
    ],
)
def test_a_required_affinity_holds_in_every_alternative(own: list[Json] | None, expected: list[Json]) -> None:
    """With `holdfast.dev/affinity: required` each of the pod's own alternatives has the condition too."""
    kind = "requiredDuringSchedulingIgnoredDuringExecution"
    spec: dict[str, Any] = {} if own is None else {"affinity": {"nodeAffinity": {kind: {"nodeSelectorTerms": own}}}}
    found = inject(make_pod(ask_more(affinity="required"), **spec), catalog=PINNED)
    assert found["spec"]["affinity"] == {"nodeAffinity": {kind: {"nodeSelectorTerms": expected}}}


def test_a_required_affinity_needs_a_digest() -> None:
    """Where no server says the digest, required affinity is refused rather than left out."""
    error = refusal(make_pod(ask_more(affinity="required")))
    assert error.code == "digest_unknown" and "acme/tiny@v1" in error.message


def test_an_injected_pod_is_left_alone() -> None:
    """What the injector made, it does not change again."""
    assert left_alone(inject(make_pod(), catalog=PINNED))


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_a_gate_written_by_hand_is_left_alone(kind: str) -> None:
    """A pod with a container of the gate's name was written by hand."""
    assert left_alone(make_pod(**{kind: [{"name": "holdfast-gate"}]}))


def test_a_mark_is_enough() -> None:
    """The annotation alone marks a pod as injected."""
    assert left_alone(make_pod(ask_more(injected="0.9")))


def test_a_pod_that_asks_for_nothing_is_left_alone() -> None:
    """Other annotations, or none at all, ask for nothing."""
    assert left_alone(make_pod({"example.com/model": "x"}))
    pod = make_pod()
    del pod["metadata"]["annotations"]
    assert left_alone(pod)


def test_a_static_pod_is_left_alone() -> None:
    """The mirror of a pod that a kubelet runs from a file is not changed."""
    assert left_alone(make_pod({**ASK, "kubernetes.io/config.mirror": "x"}))


def test_a_windows_pod_is_refused() -> None:
    """A pod that says it runs on Windows cannot have the weights, and is told so."""
    assert refusal(make_pod(os={"name": "windows"})).code == "unsupported_pod"
    assert gate_of(inject(make_pod(os={"name": "linux"})))
