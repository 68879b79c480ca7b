"""`holdfast doctor`: what it finds about a root, a catalog's sources and a cluster, and its exit code."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cached.contract.annotations import weights_label
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import State, StatusError
from cached.doctor import cluster, command
from cached.store import recovery
from tests.support.control import ControlServer, model_status, serve_control, write_heartbeat
from tests.support.daemon import publish_files
from tests.support.fake_api import FakeApi
from tests.support.origin import HostileOrigin
from tests.unit.cached.commands.conftest import publish


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A root as a daemon's start leaves it."""
    layout = Layout(tmp_path / "root")
    recovery.prepare(layout)
    return layout


@pytest.fixture
def control(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlServer]:
    """A daemon that answers, with a fresh heartbeat."""
    monkeypatch.chdir(layout.private)
    write_heartbeat(layout, time.time())
    with serve_control(layout) as control:
        control.answers["GET /v1/status"] = 200, {"daemon": {}, "disk": {"error": None}, "models": []}
        yield control


def examine(layout: Layout, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, str]]]:
    """The exit code and the findings; every one that is not ok has a remedy, unless it was not made."""
    code = command.main(["--root", str(layout.root), "--json", "--timeout", "20", *arguments])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    found: list[dict[str, str]] = document["findings"]
    assert document["failed"] is (code == 1)
    assert all(each["remedy"] for each in found if each["verdict"] in ("warning", "failed"))
    return code, found


def of(found: list[dict[str, str]], area: str) -> list[tuple[str, str]]:
    return [(each["verdict"], each["message"]) for each in found if each["area"] == area]


def kubeconfig(folder: Path, api: FakeApi) -> Path:
    """A kubeconfig of this API, without credentials."""
    config = {
        "current-context": "x",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": api.url}}],
        "users": [{"name": "u", "user": {}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    return folder / "kubeconfig"


def test_a_node_in_order_passes(layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Disk, file system and daemon are ok; what does not apply is skipped, and the exit code is 0."""
    code, found = examine(layout, capsys, "--kube", "off")
    assert code == 0
    assert [verdict for area in ("disk", "file system", "daemon") for verdict, _ in of(found, area)] == ["ok"] * 3
    assert of(found, "catalog")[0][0] == of(found, "kubernetes")[0][0] == "skipped"
    assert control.asked == [("GET /v1/status", None)]
    assert not [path for path in layout.root.rglob("*") if path.name.startswith(".tmp-")]


def test_what_is_wrong_with_root_and_daemon_is_said(
    layout: Layout, control: ControlServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A root that is not there, a daemon that never ran, one that stopped, its disk's error, and failed versions are
    named, each with what to do."""
    assert of(examine(Layout(layout.root / "none"), capsys)[1], "disk")[0][0] == "failed"
    status = model_status(ModelRef("m", "1"), State.FAILED, error=StatusError("x", "m@1: no luck", "try luck", True))
    disk = {"error": {"code": "disk", "message": "read-only", "remedy": "remount", "permanent": False}}
    control.answers["GET /v1/status"] = 200, {"daemon": {}, "disk": disk, "models": [status.document()]}
    code, found = examine(layout, capsys)
    assert code == 1
    assert ("failed", "its disk: read-only") in of(found, "daemon")
    assert ("warning", "m@1 failed: no luck") in of(found, "daemon")
    write_heartbeat(layout, time.time() - 100)
    code, found = examine(layout, capsys)
    assert code == 1
    assert "last heartbeat was 1m" in of(found, "daemon")[0][1]
    layout.public.daemon_status.unlink()
    assert "none ever ran" in of(examine(layout, capsys)[1], "daemon")[0][1]


def test_each_origin_is_listed_once_and_no_file_is_fetched(
    layout: Layout, control: ControlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each origin one version is listed: reached or not, allowed or not. Entries that the catalog rejects, and
    schemes that there are not, are told. No file's bytes are asked for, and no credentials are shown."""
    assert control.answers
    publish_files(tmp_path / "here", {"w.bin": b"w" * 100})
    with HostileOrigin(host="127.0.0.1") as origin:
        manifest = publish_files(tmp_path / "there", {"w.bin": b"w" * 100}).canonical()
        origin.put("/one/holdfast.json", manifest)
        catalog = tmp_path / "catalog.yaml"
        secret = origin.url("/one/").replace("://", "://user:sesame@")
        entries = {
            "web": {"versions": {"1": {"source": secret}, "2": {"source": origin.url("/two/")}}},
            "folder": {"versions": {"1": {"source": f"file://{tmp_path}/here"}}},
            "gone": {"versions": {"1": {"source": "http://127.0.0.1:9/x/"}}},
            "typo": {"versions": {"1": {"source": "gcs://b/x"}}},
            "bad": {"versions": {"1": {"sauce": "x"}}},
        }
        catalog.write_text(json.dumps({"models": entries}))
        code, found = examine(layout, capsys, "--kube", "off", "--catalog", str(catalog))
        asked = [request.path for request in origin.requests]
    assert code == 1
    sources = of(found, "source")
    verdicts = {message.split()[0].rstrip(":"): verdict for verdict, message in sources}
    assert verdicts == {
        "typo@1": "failed",
        f"file://{tmp_path}/here": "ok",
        "http://127.0.0.1:9/x/": "failed",
        origin.url("/one/"): "ok",
    }
    assert any("one of 2 versions there" in message for _, message in sources)
    assert "sauce" in of(found, "catalog")[0][1]
    assert not [path for path in asked if path.endswith("w.bin")]
    assert "sesame" not in json.dumps(found)


def test_the_cluster_says_what_the_daemon_may_and_what_the_node_is_labelled(
    layout: Layout,
    control: ControlServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A right that is missing, a snapshot without its label, a label without its snapshot and a webhook without a
    certificate are told; an API that does not answer is one finding."""
    assert control.answers
    digest = publish(layout, ModelRef("m", "1"), {"w": b"w"})
    other = Digest("f" * 64)
    with FakeApi() as api:
        labels = {weights_label(other): "ready"}
        api.create("/api/v1/nodes", {"metadata": {"name": "node1", "labels": labels}})
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, api)))
        for number in range(7):
            api.answer("POST", "selfsubjectaccessreviews", {"status": {"allowed": number != 0}})
        api.answer("GET", "mutatingwebhook", {"webhooks": [{"clientConfig": {}}]})
        code, found = examine(layout, capsys, "--node", "node1")
        assert code == 1
        assert len([m for _, m in of(found, "node object") if "no label" in m or other.hex[:40] in m]) == 2
        (rights,) = of(found, "rights")
        assert rights[0] == "failed"
        assert rights[1].startswith("the service account may not ")
        assert of(found, "webhook") == [("failed", "its configuration has no caBundle")]

        labelled = {weights_label(other): None, weights_label(digest): "ready"}
        api.patch("/api/v1/nodes/node1", {"metadata": {"labels": labelled}})
        for _ in range(7):
            api.answer("POST", "selfsubjectaccessreviews", {"status": {"allowed": True}})
        api.refuse("GET", "mutatingwebhook", 403)
        code, found = examine(layout, capsys, "--node", "node1")
        assert (code, of(found, "rights")[0][0], of(found, "node object")[0][0]) == (0, "ok", "ok")
        assert of(found, "webhook")[0][0] == "skipped"
        missing = of(examine(layout, capsys, "--node", "node2")[1], "node object")
        assert missing[0][0] == "failed"
    found = examine(layout, capsys, "--node", "node1")[1]
    assert any("no answer from" in message for _, message in of(found, "node object"))


def test_the_injector_is_looked_for_where_holdfast_is_installed(
    layout: Layout,
    control: ControlServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a pod the injector's service is that of the pod's own namespace, which the chart lets a person choose."""
    assert control.answers

    def resolve(host: str, *_: object) -> NoReturn:
        raise socket.gaierror(socket.EAI_NONAME, f"no {host}")

    (tmp_path / "namespace").write_text("serving\n")
    monkeypatch.setattr(cluster, "_NAMESPACE", tmp_path / "namespace")
    with FakeApi() as api:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, api)))
        api.create("/api/v1/nodes", {"metadata": {"name": "node1"}})
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        _, found = examine(layout, capsys, "--node", "node1")
    (told,) = [each for each in found if "holdfast-injector.serving.svc" in each["message"]]
    assert told["verdict"] == "skipped"
    assert "kubectl -n serving get service holdfast-injector" in told["remedy"]


def test_many_places_are_not_all_looked_at(
    layout: Layout, control: ControlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repositories are places of their own, as their rights may differ; of more than 64 the others are told by their
    number. A version that only a prefetch rule names is one too."""
    assert control.answers
    publish_files(tmp_path / "m" / "1", {"w.bin": b"w"})
    entries: dict[str, Any] = {
        f"m{number}": {"versions": {"1": {"source": f"file://{tmp_path}/{number}"}}} for number in range(70)
    }
    entries = {"m": {"source": f"file://{tmp_path}/{{name}}/{{version}}", "prefetch": {"versions": ["1"]}}, **entries}
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(json.dumps({"models": entries}))
    found = of(examine(layout, capsys, "--kube", "off", "--catalog", str(catalog))[1], "source")
    assert found[0] == ("ok", f"file://{tmp_path}/m/1 (m@1): 1 files, published with a manifest")
    assert [verdict for verdict, _ in found] == ["ok", *["failed"] * 63, "skipped"]
    assert found[-1][1] == "7 more places are not looked at"
