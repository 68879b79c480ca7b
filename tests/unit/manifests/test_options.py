"""What the manifests tell our programs, read by those programs' own parsers."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from cached.daemon.config import parse_config
from server import options as server_options
from sidecar.gate import settings as gate_settings
from sidecar.injector import settings as inject_settings
from tests.support.kustomize import Json, containers
from tests.support.manifests import EVERYTHING, MANIFESTS, objects, one

VARIABLES = {  # the kubelet's and the injector's, which a manifest leaves open
    "HOLDFAST_NODE": "node-1",
    "HOLDFAST_MODEL_PATH": "/holdfast/models/m/1",
}


def tell(monkeypatch: pytest.MonkeyPatch, container: Json) -> list[str]:
    """Put the container's variables in the environment, and give its arguments."""
    for variable in container.get("env", ()):
        monkeypatch.setenv(variable["name"], variable.get("value", VARIABLES.get(variable["name"], "")))
    return [str(argument) for argument in container.get("args", ())]


def read(arguments: list[str]) -> object:
    """What the program called so understands; leaves with 2 where it does not."""
    match arguments[0]:
        case "daemon":
            return parse_config(arguments[1:])
        case "gate":
            return gate_settings.parse(arguments[1:])
        case "inject":
            return inject_settings.parse([*arguments[1:], "--namespace", "holdfast"])
        case "serve":
            return server_options.parse(arguments[1:])
    raise AssertionError(arguments)


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_our_containers_understand_what_they_are_told(kustomization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every container of ours starts with these arguments and this environment."""
    for found in objects(kustomization):
        for container in containers(found):
            if "/holdfast/" in container["image"] and container["name"] != "prepare":
                with monkeypatch.context() as patch:
                    patch.setenv("HOLDFAST_MODEL_PATH", VARIABLES["HOLDFAST_MODEL_PATH"])
                    read(tell(patch, container))


@pytest.mark.parametrize("kustomization", EVERYTHING)
def test_every_variable_is_an_option(
    kustomization: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No HOLDFAST_ variable is misspelt: each stands in the help of the program that gets it."""
    for found in objects(kustomization):
        for container in containers(found):
            names = {v["name"] for v in container.get("env", ()) if v["name"].startswith("HOLDFAST_")}
            if "/holdfast/" not in container["image"] or not names:
                continue
            with monkeypatch.context() as patch, pytest.raises(SystemExit, match="0"):
                read([*tell(patch, container), "--help"])
            told = capsys.readouterr().out
            assert not [name for name in names if f"[{name}]" not in told]


def test_ports_are_what_the_programs_listen_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ports that probes and Services go to are the ones that are opened."""
    found = objects("base")
    daemon = next(iter(one(found, "DaemonSet", "holdfast-daemon")["spec"]["template"]["spec"]["containers"]))
    with monkeypatch.context() as patch:
        config = parse_config(tell(patch, daemon)[1:])
    assert config.listen == ("0.0.0.0", _port(daemon, "metrics"))
    assert config.node == VARIABLES["HOLDFAST_NODE"]
    injector = next(iter(one(found, "Deployment", "holdfast-injector")["spec"]["template"]["spec"]["containers"]))
    with monkeypatch.context() as patch:
        settings = inject_settings.parse([*tell(patch, injector)[1:], "--namespace", "holdfast"])
    assert settings.listen[1] == _port(injector, "webhook")
    assert settings.metrics_listen[1] == _port(injector, "metrics")


def test_daemon_and_injector_agree_on_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pods mount the public part of the folder that the daemon writes, and both read the same catalog."""
    found = objects("base")
    pods = {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in found if "template" in o.get("spec", {})}
    daemon, injector = pods["holdfast-daemon"]["containers"][0], pods["holdfast-injector"]["containers"][0]
    with monkeypatch.context() as patch:
        config = parse_config(tell(patch, daemon)[1:])
    with monkeypatch.context() as patch:
        settings = inject_settings.parse([*tell(patch, injector)[1:], "--namespace", "holdfast"])
    volumes = {v["name"]: v for v in pods["holdfast-daemon"]["volumes"]}
    mounts = {m["name"]: m["mountPath"] for m in daemon["volumeMounts"]}
    assert volumes["root"]["hostPath"]["path"] == mounts["root"] == str(config.root)
    assert settings.gate.host_public == f"{config.root}/public"
    assert settings.catalog == config.catalog
    assert str(config.catalog.parent) == mounts["catalog"]


@pytest.mark.parametrize("service", ["daemon", "gate", "server"])
def test_compose_starts_our_programs(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of compose.yaml, with its defaults, are understood."""
    found = _compose()[service]
    for name, value in (found.get("environment") or {}).items():
        monkeypatch.setenv(name, _default(value))
    read([_default(part) for part in found["command"]])


def test_compose_runs_them_in_order() -> None:
    """The server starts after the gate succeeded, the gate when the daemon is well, the daemon in its own folder."""
    services = _compose()
    assert services["server"]["depends_on"] == {"gate": {"condition": "service_completed_successfully"}}
    assert services["gate"]["depends_on"]["daemon"] == {"condition": "service_healthy"}
    assert services["daemon"]["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
    assert "--once" in services["gate"]["command"]


def test_compose_mounts_the_weights_read_only() -> None:
    """Gate and server see the public folder and cannot write to it."""
    for name in ("gate", "server"):
        (mount,) = _compose()[name]["volumes"]
        assert _default(mount["source"]) == "/var/lib/holdfast/public"
        assert mount["read_only"] is True


@pytest.mark.parametrize("unit", ["holdfast-daemon.service", "holdfast-gate@.service", "holdfast-server.service"])
def test_units_start_our_programs(unit: str) -> None:
    """The commands of the systemd units are understood."""
    read(_command(MANIFESTS / "systemd" / unit)[1:])


def _command(unit: Path) -> list[str]:
    (line,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    command = shlex.split(line.removeprefix("ExecStart="))
    if command[0] == "/bin/sh":  # what the shell makes of the instance's name
        command = shlex.split(command[2].removeprefix("exec "))
    return ["minilm" if "%%:*" in word else "1" if "##*:" in word else word for word in command]


def _compose() -> dict[str, Json]:
    found: dict[str, Json] = yaml.safe_load((MANIFESTS / "compose/compose.yaml").read_text())["services"]
    return found


def _default(text: str) -> str:
    """`${NAME:-default}` as docker compose reads it, without any variable set."""
    while "${" in text:
        before, _, rest = text.partition("${")
        inner, _, after = rest.partition("}")
        text = before + inner.partition(":-")[2] + after
    return text


def _port(container: Json, name: str) -> int:
    return int(next(port["containerPort"] for port in container["ports"] if port["name"] == name))
