"""`holdfast why` in a cluster: from a pod's annotation to its bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached.commands import why
from tests.support.joined import Joined, joined, ref

MIB = 1024 * 1024


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    with joined(tmp_path) as made:
        yield made


def test_why_explains_each_pod_and_version(node: Joined, capsys: pytest.CaptureFixture[str]) -> None:
    """Each pod of a node hears what keeps it: its annotations, the catalog, its pin, its namespace, the source, the
    speed of the fetch (also of each file), or nothing; each version who asks for it. Who is not here is named, with
    those that are; without the daemon the status files answer."""

    def explain(target: str) -> dict[str, Any]:
        assert why.main([target, "--root", str(node.daemon.layout.root), "--json"]) == 0
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    def say(target: str) -> str:
        why.main([target, "--root", str(node.daemon.layout.root)])
        said = capsys.readouterr()
        return said.out + said.err

    slow, gone = node.entry("slow", 64 * MIB), {"source": "http://127.0.0.1:9/x/"}
    versions = {"slow": slow, "gone": gone, "absent": {"source": "file:///nowhere/at/all"}, "idle": gone}
    listed = {"versions": {"here": node.entry("here"), **versions}}
    daemon = node.daemon
    template = {"source": "https://user:sesame@models.example/{name}/{version}/?sig=sesame"}
    daemon.write_catalog({"m": listed, "templated": template})
    daemon.start("--max-bandwidth", "1MiB/s")
    node.pod("ready", "here")
    daemon.wait_ready(ref("here"))
    for name, version in {"slow": "slow", "gone": "gone", "absent": "absent", "unlisted": "unlisted"}.items():
        node.pod(name, version)
    node.pod("pinned", "here", digest="sha256:" + "0" * 64)
    node.pod("typing", "here", verfy="full")
    daemon.wait_state(ref("absent"), "failed")
    daemon.wait_state(ref("slow"), "fetching")
    daemon.wait(lambda: len(daemon.control.list_files(ref("slow")).receiving) == 1, "a file that is received")
    assert daemon.control.list_files(ref("slow")).receiving[0][:2] == ("a.bin", 64 * MIB)
    daemon.wait(lambda: bool(daemon.error(ref("gone"))), "the trouble with a source")
    daemon.wait_state(ref("unlisted"), "failed")

    reasons = {
        name: [v["reason"] for v in explain(name)["versions"]] for name in ("ready", "slow", "absent", "unlisted")
    }
    assert reasons == {
        "ready": ["ready"],
        "slow": ["fetching"],
        "absent": ["not_found"],
        "unlisted": ["unknown_model"],
    }
    assert "kubectl -n default describe pod ready" in say("ready")
    assert "64.0 MiB" in say("default/slow")
    assert "Connection refused" in say("gone")
    assert "expected the version in the catalog" in say("unlisted")
    assert f"sha256:{'0' * 12}" in (text := say("pinned"))
    assert explain("pinned")["versions"][0]["reason"] == "digest_mismatch", text
    assert "holdfast.dev/verfy" in say("typing")
    assert "Nothing on this node asks for m@idle. The catalog has it from http://127.0.0.1:9/x/." in say("m@idle")
    assert "The catalog has it from https://models.example/templated/v7/." in (text := say("templated@v7"))
    assert "sesame" not in text
    assert "asked for by pod default/slow" in say("m@slow")
    elsewhere = say("elsewhere")
    assert "no pod elsewhere" in elsewhere
    assert "default/slow" in elsewhere

    daemon.kill()
    assert "the daemon does not answer" in say("m@slow")
    assert "fetching" in say("m@slow")
    assert "ready" in say("m@here")
    assert "it alone knows the pods" in (text := say("slow"))
    assert "Connection refused" in text
