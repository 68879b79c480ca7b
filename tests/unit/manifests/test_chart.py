"""The Helm chart, through Helm's own library: what kustomize makes, it makes too."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cached.contract.release import VERSION
from cached.daemon.config import parse_config
from sidecar.injector import settings as inject_settings
from tests.support.helm import CHART, Helm, HelmRefusal, running_helm, why_not
from tests.support.kustomize import Json, containers, render, unordered
from tests.support.manifests import MANIFESTS, OVERLAYS, objects, one

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

# The release lives elsewhere, so that the chart makes the namespace too.
ELSEWHERE: Json = {"namespace": {"name": "holdfast", "create": True}}
EXAMPLES = ("laptop", "gpu", "policy", "csi")
_ROLE = "arn:aws:iam::111122223333:role/holdfast-models-read"
_GOOGLE = "holdfast-models-read@acme-project.iam.gserviceaccount.com"
_OPERATOR: Json = {"podMonitors": {"enabled": True}, "rules": {"enabled": True}}
# What an overlay of one's own lists, and the values that mean the same.
COMPOSED: dict[str, tuple[str, list[str], Json]] = {
    "prometheus": ("base", ["prometheus"], {"monitoring": _OPERATOR}),
    "grafana": ("base", ["grafana"], {"monitoring": {"dashboards": {"enabled": True}}}),
    "cert-manager": ("base", ["cert-manager"], {"injector": {"certManager": {"enabled": True}}}),
    "peers-tls": ("base", ["peers-tls"], {"peers": {"tlsSecret": "holdfast-peers-tls"}}),
    "identity-aws": ("base", ["identity-aws"], {"identity": {"aws": {"roleArn": _ROLE}}}),
    "identity-gcp": ("base", ["identity-gcp"], {"identity": {"gcp": {"serviceAccount": _GOOGLE}}}),
    "identity-azure": (
        "base",
        ["identity-azure"],
        {"identity": {"azure": {"clientId": "00000000-0000-0000-0000-000000000000"}}},
    ),
    "policy with csi": ("overlays/policy", ["csi"], {"admission": "policy", "csi": {"enabled": True}}),
    "csi, monitored, with a role": (
        "base",
        ["csi", "prometheus", "identity-aws"],
        {
            "csi": {"enabled": True},
            "monitoring": _OPERATOR,
            "identity": {"aws": {"roleArn": _ROLE}},
        },
    ),
}


@pytest.fixture(scope="module")
def helm() -> Iterator[Helm]:
    with running_helm() as helm:
        yield helm


def test_the_base_is_the_default(helm: Helm) -> None:
    """Without any value the chart makes the objects of manifests/base, each field of each, and no other."""
    assert _same(helm.render(ELSEWHERE, namespace="default")) == _same(objects("base"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_its_overlay(helm: Helm, example: str) -> None:
    """The values of an example make the objects of the overlay of that name."""
    made = helm.render({**_example(example), **ELSEWHERE}, namespace="default")
    assert _same(made) == _same(objects(f"overlays/{example}"))


@pytest.mark.parametrize("composed", COMPOSED)
def test_values_are_components(helm: Helm, composed: str, tmp_path: Path) -> None:
    """The values that stand for a component make what the component makes of the base or overlay."""
    base, components, values = COMPOSED[composed]
    folder = _compose(tmp_path, base, components)
    expected = _same(render(folder))
    assert _same(helm.render({**values, **ELSEWHERE}, namespace="default")) == expected
    if shutil.which("kubectl") is not None:
        made = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
        assert _same(list(yaml.load_all(made.stdout, yaml.CSafeLoader))) == expected


def test_every_overlay_and_component_is_compared() -> None:
    """A new overlay or component of kustomize has values that mean it."""
    assert set(OVERLAYS) == {"base", *(f"overlays/{name}" for name in EXAMPLES)}
    assert {path.stem for path in (CHART / "examples").iterdir()} == set(EXAMPLES)
    listed = {name for _, components, _ in COMPOSED.values() for name in components}
    assert {path.name for path in (MANIFESTS / "components").iterdir()} == listed


def test_everything_follows_the_namespace(helm: Helm) -> None:
    """In another namespace no object, and no text of one, names `holdfast`: the account in the policy, the webhook's
    service and its own exemption follow."""
    made = helm.render(
        {"csi": {"enabled": True}, "monitoring": {"podMonitors": {"enabled": True}}}, namespace="weights"
    )
    made += helm.render({"injector": {"certManager": {"enabled": True}}}, namespace="weights")
    made += helm.render({"admission": "policy"}, namespace="weights")
    assert {found["metadata"].get("namespace", "weights") for found in made} == {"weights"}
    text = json.dumps(made)
    for name in ("serviceaccount:holdfast:", '"namespace": "holdfast"', ".holdfast.svc", '"kube-system", "holdfast"'):
        assert name not in text


def test_what_the_chart_ships_is_the_components() -> None:
    """The files that templates read are those of the components, byte by byte."""
    for path in (CHART / "files").iterdir():
        (original,) = (MANIFESTS / "components").rglob(path.name)
        assert path.read_bytes() == original.read_bytes()


def test_the_chart_is_clean(helm: Helm) -> None:
    """Helm's linter finds no warning, with the defaults and with each example; the chart has the product's version."""
    for values in ({}, *map(_example, EXAMPLES)):
        assert [found for found in helm.lint(values) if found["severity"] > 1] == []
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_no_template_is_random_or_a_hook() -> None:
    """An upgrade changes what a person changed: nothing is generated anew, no hook leaves objects of its own, and the
    certificate is in no template, so that the injector's stays."""
    for path in (CHART / "templates").rglob("*.*"):
        text = path.read_text()
        assert not re.search(r"\b(rand\w*|genCA|genSigned\w*|genSelf\w*|uuidv4|now|date\w*)\b *[^:\s]*.*}}", text), path
        assert "helm.sh/hook" not in text, path
        assert not re.search(r"caBundle:|tls\.crt\W{0,2}:|\bdata:.*tls", text), path


def test_only_what_is_asked_for_changes(helm: Helm) -> None:
    """Two renderings with the same values are the same."""
    assert helm.render(_example("gpu")) == helm.render(_example("gpu"))


def test_one_object_a_template() -> None:
    """Each template makes at most one object, so that its name says what it is."""
    for path in (CHART / "templates").rglob("*.yaml"):
        assert len(re.findall(r"(?m)^kind: ", path.read_text())) == (path.name != "check.yaml"), path


# Each value, another value than its default, and with it what makes it count.
_CHANGES: dict[str, Any] = {
    "namespace.name": "weights",
    "image.daemon.repository": "registry.acme.dev/daemon",
    "image.daemon.tag": "v9",
    "image.daemon.digest": f"sha256:{'0' * 64}",
    "image.daemon.pullPolicy": "Always",
    "image.gate.repository": "registry.acme.dev/gate",
    "image.gate.tag": "v9",
    "image.gate.digest": f"sha256:{'0' * 64}",
    "image.gate.pullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "hostRoot": "/mnt/nvme",
    "listenHost": "::",
    "logFormat": "json",
    "catalog.existingConfigMap": "ours",
    "catalog.text": "models: {m: {}}\n",
    "catalog.defaults": {"source": "s3://acme/{name}/"},
    "catalog.models": {"m": {}},
    "admission": "policy",
    "mode": ("gate", {}),
    "csi.enabled": True,
    "csi.kubeletDir": ("/var/lib/k0s/kubelet", {"csi": {"enabled": True}}),
    "peers.enabled": False,
    "peers.existingSecret": "ours",
    "peers.upload": "1GiB/s",
    "peers.tlsSecret": "certificates",
    "peers.zone": "all",
    "credentials.secret": "keys",
    "identity.aws.roleArn": _ROLE,
    "identity.gcp.serviceAccount": _GOOGLE,
    "identity.azure.clientId": "11111111-0000-0000-0000-000000000000",
    "daemon.nodes": "all",
    "daemon.affinity": {"nodeAffinity": {}},
    "daemon.nodeSelector": {"gpu": "h100"},
    "daemon.tolerations": [{"operator": "Exists"}],
    "daemon.options": {"quota": "2TB"},
    "daemon.resources": {"limits": {"memory": "2Gi"}},
    "daemon.maxUnavailable": 1,
    "daemon.podAnnotations": {"a": "b"},
    "daemon.podLabels": {"a": "b"},
    "daemon.env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "daemon.extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "daemon.extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    "injector.replicas": 3,
    "injector.options": {"gateMemory": "96Mi"},
    "injector.resources": {"limits": {"memory": "512Mi"}},
    "injector.certManager.enabled": True,
    "injector.certManager.issuerRef": (
        {"kind": "ClusterIssuer", "name": "ours"},
        {"injector": {"certManager": {"enabled": True}}},
    ),
    "injector.affinity": {"nodeAffinity": {}},
    "injector.nodeSelector": {"pool": "system"},
    "injector.tolerations": [{"operator": "Exists"}],
    "injector.podAnnotations": {"a": "b"},
    "injector.podLabels": {"a": "b"},
    "injector.env": [{"name": "A", "value": "b"}],
    "gate.startupDeadlineSeconds": 60,
    "monitoring.annotations": False,
    "monitoring.podMonitors.enabled": True,
    "monitoring.podMonitors.interval": ("5s", {"monitoring": {"podMonitors": {"enabled": True}}}),
    "monitoring.podMonitors.labels": ({"release": "prometheus"}, {"monitoring": {"podMonitors": {"enabled": True}}}),
    "monitoring.rules.enabled": True,
    "monitoring.rules.labels": ({"release": "prometheus"}, {"monitoring": {"rules": {"enabled": True}}}),
    "monitoring.dashboards.enabled": True,
    "monitoring.dashboards.labels": ({"grafana": "yes"}, {"monitoring": {"dashboards": {"enabled": True}}}),
    "monitoring.dashboards.annotations": ({"folder": "x"}, {"monitoring": {"dashboards": {"enabled": True}}}),
    "networkPolicy.enabled": False,
    "priorityClass.create": False,
    "priorityClass.name": "system-cluster-critical",
    "priorityClass.value": 1000000,
    "commonLabels": {"team": "serving"},
}


@pytest.mark.parametrize("path", _CHANGES)
def test_every_value_does_something(helm: Helm, path: str) -> None:
    """Another value than the default changes an object, and what comes out is what the API takes."""
    wanted = _CHANGES[path]
    value, beside = wanted if isinstance(wanted, tuple) else (wanted, {})
    before = helm.render(beside)
    made = helm.render(_merged(beside, _nested(path, value)))
    assert made != before
    if path not in ("namespace.name", "commonLabels"):  # these change each object, and nothing that a schema looks at
        for found in (found for found in made if found not in before):
            if found["apiVersion"].split("/")[0] not in ("monitoring.coreos.com", "cert-manager.io"):
                kubernetes_validate.validate(found, "1.36", strict=True)


def test_every_value_is_described() -> None:
    """values.yaml names what the schema has, and the schema what values.yaml has; each is tried above."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    described = set(_leaves(schema))
    assert described == set(_paths(yaml.safe_load((CHART / "values.yaml").read_text()), described))
    assert described == set(_CHANGES) | {"namespace.create"}


def test_gates_of_the_policy_are_the_injectors_too(helm: Helm) -> None:
    """What the injector is told of gates is in the policy too: log format, address, folder, pull policy, deadline."""
    given: Json = {"logFormat": "json", "listenHost": "::", "hostRoot": "/mnt/nvme"}
    given |= {"image": {"gate": {"pullPolicy": "Always"}}, "gate": {"startupDeadlineSeconds": 60}}
    policy = one(helm.render({**given, "admission": "policy"}), "MutatingAdmissionPolicy", "holdfast-gate")["spec"]
    constants = {variable["name"]: variable["expression"] for variable in policy["variables"]}
    assert (constants["hostPublic"], constants["timeoutSeconds"]) == ("'/mnt/nvme/public'", "60")
    gate = policy["mutations"][-1]["jsonPatch"]["expression"]
    for text in ("['--log-format', 'json']", "'[::]:' + string(variables.port)", "imagePullPolicy: 'Always'"):
        assert text in gate


def test_big_numbers_stay_numbers(helm: Helm) -> None:
    """A value that is a large number reaches the program as digits, not as 1e+06."""
    made = helm.render({"daemon": {"options": {"quota": 5000000000, "highWatermark": 0.95}}})
    environment = _environment(one(made, "DaemonSet", "holdfast-daemon"))
    assert (environment["HOLDFAST_QUOTA"], environment["HOLDFAST_HIGH_WATERMARK"]) == ("5000000000", "0.95")


def test_off_is_off(helm: Helm) -> None:
    """`off`, which YAML reads as false, reaches the program as `off`."""
    given = yaml.safe_load("daemon: {options: {fsVerity: off, resolveInterval: off}}")
    environment = _environment(one(helm.render(given), "DaemonSet", "holdfast-daemon"))
    assert (environment["HOLDFAST_FS_VERITY"], environment["HOLDFAST_RESOLVE_INTERVAL"]) == ("off", "off")


@pytest.mark.parametrize(
    ("kind", "name", "section"),
    [("DaemonSet", "holdfast-daemon", "daemon"), ("Deployment", "holdfast-injector", "injector")],
)
def test_options_are_the_programs(
    helm: Helm, kind: str, name: str, section: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each option that the schema lists is a variable of the program's, and the program takes what the schema takes."""
    parse = parse_config if section == "daemon" else inject_settings.parse
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["properties"][section]["properties"]["options"]["properties"]
    given = {option: _sample(rule) for option, rule in known.items()}
    environment = _environment(one(helm.render({section: {"options": given}}), kind, name))
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    parse(["--namespace", "holdfast"] if section == "injector" else [])
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    told = capsys.readouterr().out
    variables = {"HOLDFAST_" + re.sub(r"([A-Z])", r"_\1", option).upper() for option in known}
    assert variables <= set(environment)
    assert not [variable for variable in variables if f"[{variable}]" not in told]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"daemon": {"options": {"quota": "much"}}}, "daemon/options/quota"),
        ({"daemon": {"options": {"qouta": "2TB"}}}, "qouta"),
        ({"daemon": {"options": {"connections": 0}}}, "daemon/options/connections"),
        ({"damon": {}}, "damon"),
        ({"mode": "volume"}, "mode"),
        ({"admission": "webhok"}, "admission"),
        ({"image": {"gate": {"digest": "sha256:12"}}}, "image/gate/digest"),
        ({"image": {"gate": {"repository": "x'y"}}}, "image/gate/repository"),
        ({"catalog": {"models": ["a"]}}, "catalog/models"),
        ({"injector": {"replicas": "two"}}, "injector/replicas"),
        ({"identity": {"aws": {"roleArn": "holdfast"}}}, "identity/aws/roleArn"),
        ({"monitoring": {"podMonitors": {"interval": "often"}}}, "monitoring/podMonitors/interval"),
        ({"hostRoot": "var/lib"}, "hostRoot"),
        ({"peers": {"upload": "fast"}}, "peers/upload"),
        ({"peers": {"zone": "eu 1a"}}, "peers/zone"),
    ],
)
def test_a_bad_value_is_named(helm: Helm, values: Json, named: str) -> None:
    """A value that cannot be is refused before anything is made, with its path."""
    with pytest.raises(HelmRefusal, match=re.escape(named)):
        helm.render(values)


@pytest.mark.parametrize(
    ("values", "named", "remedy"),
    [
        ({"mode": "csi"}, "mode: csi", "csi.enabled: true"),
        ({"catalog": {"text": "models: {}", "models": {"m": {}}}}, "catalog.text", "keep one"),
        ({"catalog": {"text": "models: {}", "existingConfigMap": "c"}}, "catalog.existingConfigMap", "keep one"),
        ({"namespace": {"create": True}}, "namespace.create", "--create-namespace"),
        ({"namespace": {"create": True, "name": "holdfast"}}, "namespace.create", "--create-namespace"),
        ({"admission": "policy", "mode": "csi", "csi": {"enabled": True}}, "mode: csi", "leave mode empty"),
        ({"admission": "policy", "injector": {"options": {"drain": 1}}}, "drain", "admission: webhook"),
        ({"admission": "policy", "injector": {"certManager": {"enabled": True}}}, "certManager", "leave it out"),
        ({"csi": {"enabled": True}, "injector": {"certManager": {"enabled": True}}}, "no token", "mode: csi"),
    ],
)
def test_values_that_exclude_each_other_are_refused(helm: Helm, values: Json, named: str, remedy: str) -> None:
    """Values that would quietly do nothing together are refused, with what to write instead."""
    with pytest.raises(HelmRefusal) as refused:
        helm.render(values)
    assert named in str(refused.value) and remedy in str(refused.value)


def test_the_catalog_is_what_was_given(helm: Helm) -> None:
    """The catalog reaches the ConfigMap byte by byte from a file; from values with the same content, also `null`."""
    text = "  # indented\nmodels:\n\n  m: {source: 'https://x/?a=1&b=<2>'}  # ü\n"
    assert _catalog(helm.render({"catalog": {"text": text}})) == text
    models: Json = {"m": {"for": None, "versions": {"1": {}, "2024-07-23": {}}, "pin": True}}
    made = yaml.safe_load(_catalog(helm.render({"catalog": {"models": models, "defaults": {"for": "vllm"}}})))
    assert made == {"defaults": {"for": "vllm"}, "models": models}


def test_one_replica_can_be_drained(helm: Helm) -> None:
    """With one injector there is no disruption budget, which would hold up every drain of its node."""
    made = helm.render({"injector": {"replicas": 1}})
    assert [found for found in made if found["kind"] == "PodDisruptionBudget"] == []


@pytest.mark.parametrize("values", [{}, {"catalog": {"models": {"m": {}}}}])
def test_the_notes_have_the_next_two_commands(helm: Helm, values: Json) -> None:
    """What an install tells ends with two commands, in the release's namespace."""
    commands = [line.split()[0] for line in helm.notes(values).splitlines() if line.startswith("  ")]
    assert commands == (["kubectl", "kubectl"] if values else ["helm", "kubectl"])
    assert "exec daemonset/holdfast-daemon -- holdfast status" in helm.notes(values)


def test_the_notes_tell_who_must_make_a_key(helm: Helm) -> None:
    """Where nothing makes the pool's key, an install tells the command that does, and only there."""
    policy: Json = {"admission": "policy"}
    for values in (policy, {"injector": {"certManager": {"enabled": True}}}):
        assert "patch secret holdfast-peers" in helm.notes(values)
    for values in ({}, {**policy, "peers": {"existingSecret": "ours"}}, {**policy, "peers": {"enabled": False}}):
        assert "patch secret" not in helm.notes(values)


def test_a_change_of_the_admission_keeps_the_key(helm: Helm) -> None:
    """The Secret of the pool's key is the same object, whatever fills it, so that no upgrade deletes a key."""
    kinds: list[Json] = [{}, {"admission": "policy"}, {"injector": {"certManager": {"enabled": True}}}]
    first, *others = (one(helm.render(values), "Secret", "holdfast-peers") for values in kinds)
    assert others == [first, first]
    assert "data" not in first


def test_a_key_of_ours_is_left_alone(helm: Helm) -> None:
    """With a Secret of one's own the daemons read that; the chart makes none, and the injector has no right to it."""
    made = helm.render({"peers": {"existingSecret": "ours"}})
    pod = one(made, "DaemonSet", "holdfast-daemon")["spec"]["template"]["spec"]
    assert {"name": "peers", "secret": {"secretName": "ours", "optional": True}} in pod["volumes"]
    assert [found["metadata"]["name"] for found in made if found["kind"] == "Secret"] == ["holdfast-injector-tls"]
    assert one(made, "Role", "holdfast-injector")["rules"][0]["resourceNames"] == ["holdfast-injector-tls"]
    assert "HOLDFAST_PEER_SECRET" not in _environment(one(made, "Deployment", "holdfast-injector"))


def test_without_peers_nothing_of_them_is_left(helm: Helm) -> None:
    """Switched off, no object has a port, a right, a Secret or a variable for peers."""
    assert "peer" not in json.dumps(helm.render({"peers": {"enabled": False}}))


def test_peers_are_told_what_the_values_say(helm: Helm) -> None:
    """The upload limit, the zone and the address to listen on reach the daemon, which takes them."""
    given: Json = {"peers": {"upload": 1000000000, "zone": "all"}, "listenHost": "::"}
    environment = _environment(one(helm.render(given, namespace="weights"), "DaemonSet", "holdfast-daemon"))
    assert {name: value for name, value in environment.items() if "PEER" in name} == {
        "HOLDFAST_PEERS": "dns:holdfast-peers.weights.svc:9402",
        "HOLDFAST_PEER_LISTEN": "[::]:9402",
        "HOLDFAST_PEER_KEY_FILE": "/etc/holdfast-peers/key",
        "HOLDFAST_PEER_UPLOAD": "1000000000",
        "HOLDFAST_PEER_ZONE": "all",
    }


def _compose(folder: Path, base: str, components: list[str]) -> Path:
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(MANIFESTS / base, folder)],
        "components": [os.path.relpath(MANIFESTS / "components" / name, folder) for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def _example(name: str) -> Json:
    found: Json = yaml.safe_load((CHART / "examples" / f"{name}.yaml").read_text())
    return found


def _catalog(made: list[Json]) -> str:
    return str(one(made, "ConfigMap", "holdfast-catalog")["data"]["catalog.yaml"])


def _environment(workload: Json) -> dict[str, str]:
    *_, container = containers(workload)
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def _sample(rule: Json) -> Any:
    """A value that the schema's rule takes."""
    rule = rule["anyOf"][0] if "anyOf" in rule else rule
    if "enum" in rule:
        return rule["enum"][-1]
    if rule["type"] == "integer":
        return rule["minimum"]
    if rule["type"] == "number":
        return 0.85
    return next(value for value in ("1MiB/s", "12h", "64Mi", "512MiB") if re.search(rule["pattern"], value))


def _same(found: list[Json]) -> dict[tuple[str, str, str, str], Any]:
    """The objects by identity; lists of named things by name, a catalog as what it says."""
    made = {}
    for each in found:
        metadata = each["metadata"]
        key = (each["apiVersion"], each["kind"], metadata.get("namespace", ""), metadata["name"])
        assert key not in made
        made[key] = unordered(each)
        if key[1] == "ConfigMap":
            made[key]["data"] = {name: yaml.safe_load(text) for name, text in each["data"].items()}
    return made


def _nested(path: str, value: Any) -> Json:
    for key in reversed(path.split(".")):
        value = {key: value}
    found: Json = value
    return found


def _merged(one_: Json, other: Json) -> Json:
    both = dict(one_)
    for key, value in other.items():
        both[key] = _merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


def _leaves(schema: Json, path: str = "") -> Iterator[str]:
    """The paths of values: options, resources and references are one value each."""
    for key, rule in schema["properties"].items():
        here = f"{path}{key}"
        if "properties" in rule and key not in ("options", "resources", "issuerRef"):
            yield from _leaves(rule, f"{here}.")
        elif here != "global":
            yield here


def _paths(values: Json, leaves: set[str], path: str = "") -> Iterator[str]:
    for key, value in values.items():
        here = f"{path}{key}"
        if here in leaves or not isinstance(value, dict):
            yield here
        else:
            yield from _paths(value, leaves, f"{here}.")
