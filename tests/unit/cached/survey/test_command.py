"""`holdfast inspect URI`: a version as its source has it, before anything is fetched."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cached.cli import main
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.store.start.recovery import prepare
from tests.support.control import serve_control
from tests.support.daemon import publish_files, write_files
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Status
from tests.support.users import hidden_from_others
from tests.unit.cached.commands.conftest import publish

FILES = {"config.json": b"{}", "model.safetensors": bytes(2000), "pytorch_model.bin": bytes(10)}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_plain_folder_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files, sizes and trust of the version that a fetch would have, and what it would leave out; the digest is not
    known yet. Nothing is written."""
    write_files(tmp_path / "m", FILES)
    before = sorted(tmp_path.rglob("*"))
    assert main(["inspect", (tmp_path / "m").as_uri(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(file["path"], file["size"], file["trust"]) for file in found["files"]] == [
        ("config.json", 2, "versioned"),
        ("model.safetensors", 2000, "versioned"),
    ]
    assert (found["kind"], found["trust"], found["digest"], found["bytes"]) == ("file", "versioned", None, 2002)
    assert [each["example"] for each in found["left_out"]] == ["pytorch_model.bin"]
    assert main(["inspect", (tmp_path / "m").as_uri(), "--include", "*.json"]) == 0
    text = capsys.readouterr().out
    assert "digest   not known before it is fetched\ntrust    versioned\n" in text
    assert "in 1 file" in text and "\nmodel.safetensors" not in text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_published_version_has_its_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a manifest every file is known, and the digest that a pin would name is told."""
    manifest = publish_files(tmp_path / "m", FILES)
    assert main(["inspect", (tmp_path / "m").as_uri(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["digest"], found["trust"], found["published"]) == (str(manifest.digest), "known", True)
    assert {file["path"]: file["sha256"] for file in found["files"]} == {
        path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()
    }
    assert main(["inspect", (tmp_path / "m").as_uri()]) == 0
    assert f"digest   {manifest.digest}\ntrust    known\n" in capsys.readouterr().out


def test_a_secret_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Credentials of a URI are used, and neither printed nor part of an error."""
    with HostileOrigin(host="127.0.0.1") as origin:
        place = f"http://reader:s3cret@127.0.0.1:{origin.port}"
        origin.put("/m.bin", b"abc", etag='"v1"')
        assert main(["inspect", f"{place}/m.bin"]) == 0
        assert all("authorization" in seen.headers for seen in origin.requests)
        for _ in range(3):
            origin.always("/gone/holdfast.json", Status(403))
        assert main(["inspect", f"{place}/gone/"]) == 1
    shown = capsys.readouterr()
    assert "s3cret" not in shown.out + shown.err
    assert "m.bin  3 B   versioned" in shown.out and "what to do: " in shown.err


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("huggingface://acme/m", "write it as hf://"),
        ("s3://?region=x", "expected s3://bucket/prefix/"),
        ("http://127.0.0.1:9/m/", "cannot connect to 127.0.0.1:9"),
        ("file:///no/such/folder", "No such file"),
    ],
)
def test_what_cannot_be_listed_says_why(uri: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 with the source's own error and remedy."""
    assert main(["inspect", uri]) == 1
    shown = capsys.readouterr()
    assert says in shown.err and "what to do: " in shown.err and shown.out == ""


def test_a_catalog_that_is_not_there_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error has the file and the reason, without the number and the second path of the system's text."""
    absent = tmp_path / "catalog.yaml"
    assert main(["inspect", "acme/m@v1", "--catalog", str(absent)]) == 1
    assert capsys.readouterr().err.splitlines()[0] == f"holdfast inspect: {absent}: No such file or directory"


def test_a_held_version_is_still_inspected_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name, also beside a root that is given as a path, is the node's own version, not a location."""
    assert main(["inspect", "acme/m@v1", "--root", str(tmp_path)]) == 1
    assert "no cache here" in capsys.readouterr().err


def test_a_root_of_another_user_leaves_the_fit_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where this user may not look into the root, the source is told all the same, and whether it fits is not known."""
    root = tmp_path / "root"
    (root / "public" / "models").mkdir(parents=True)
    with HostileOrigin(host="127.0.0.1") as origin:
        origin.put("/m/holdfast.json", Manifest.build([FileEntry("config.json", "0" * 64, 2)]).canonical())
        command = ["inspect", origin.url("/m/"), "--root", str(root), "--json"]
        assert main(command) == 0  # its modules, which an ordinary user may not read, are imported now
        assert json.loads(capsys.readouterr().out)["fits"] is True
        with hidden_from_others(root):
            assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["files"][0]["path"], found["fits"], found["needed_bytes"]) == ("config.json", None, None)


def test_a_version_must_fit_the_quota(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the daemon answers, `fits` is about the free bytes of its quota and not of the whole file system."""
    write_files(tmp_path / "m", {"config.json": b"{}", "a.safetensors": b"a" * 4000})
    layout = Layout(tmp_path / "root")
    prepare(layout)
    monkeypatch.chdir(layout.private)  # a test's folder may be too deep for a socket's address
    disk = {"capacity": 4096, "used": 1000, "reserved": 96, "free": 3000, "error": None}
    with serve_control(layout) as control:
        control.answers["GET /v1/waiting"] = 200, {"pods": [], "disk": disk}
        assert main(["inspect", (tmp_path / "m").as_uri(), "--root", str(layout.root)]) == 0
    assert "fits     not now: 3.9 KiB are to come, 2.9 KiB are free here without an eviction" in capsys.readouterr().out


def test_what_filters_leave_out_and_whether_it_fits_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Globs of the options, or of a catalog's entry, are the version's: what they do not select is counted and named;
    what the node has already need not fit."""
    write_files(tmp_path / "m", {"config.json": b"{}", "a.safetensors": b"a" * 4000, "b.gguf": b"GGUF" + b"b" * 600})
    catalog = tmp_path / "catalog.yaml"
    entry = {"exclude": ["*.gguf"], "versions": {"1": {"source": (tmp_path / "m").as_uri()}}}
    catalog.write_text(json.dumps({"models": {"acme/m": entry}}))
    (tmp_path / "root" / "public" / "models").mkdir(parents=True)
    arguments = ["--root", str(tmp_path / "root"), "--json"]
    for target in (["acme/m@1", "--catalog", str(catalog)], [(tmp_path / "m").as_uri(), "--exclude", "*.gguf"]):
        assert main(["inspect", *target, *arguments]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["filtered"] == {"files": 1, "bytes": 604, "examples": ["b.gguf"]}
        assert (found["needed_bytes"], found["fits"]) == (4002, True)
    assert main(["inspect", "acme/m@2", "--catalog", str(catalog)]) == 1
    assert "found of 'acme/m': 1" in capsys.readouterr().err
    manifest = publish_files(tmp_path / "p", {"a.bin": b"a" * 4000, "b.bin": b"b"})
    layout = Layout(tmp_path / "root")
    publish(layout, ModelRef("m", "1"), {"a.bin": b"a" * 4000})
    assert main(["inspect", (tmp_path / "p").as_uri(), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["digest"], found["needed_bytes"]) == (str(manifest.digest), 1)
