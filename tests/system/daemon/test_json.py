"""The JSON of the commands, as docs/reference/json.md has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cached.cli import main
from tests.support.joined import Joined, joined, ref
from tests.support.shapes import find_difference, read_shapes


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    with joined(tmp_path) as made:
        yield made


def test_each_command_prints_what_its_shape_says(
    node: Joined, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `--json` of a command for people has the keys and types of its documented shape, with a daemon and without
    one."""
    shapes = read_shapes()
    seen = set()

    def check(heading: str, *arguments: object, absent: tuple[str, ...] = (), **renamed: str) -> Any:
        main([*map(str, arguments), "--json"])
        output = capsys.readouterr().out
        document = json.loads(output.splitlines()[0] if heading == "publish" else output)
        found = {renamed.get(key, key): value for key, value in document.items()} if renamed else document
        assert find_difference(found, shapes[heading], absent=absent) is None, (arguments, document)
        seen.add(heading)
        return document

    monkeypatch.setenv("HOLDFAST_ROOT", str(node.daemon.layout.root))
    monkeypatch.setenv("HOLDFAST_CATALOG", str(node.daemon.catalog))
    daemon = node.daemon
    node.catalog(a=node.entry("a"), b=node.entry("b"), gone={"source": "http://127.0.0.1:9/x/"})
    daemon.start()
    node.pod("p", "gone")
    daemon.wait(lambda: bool(daemon.error(ref("gone"))), "the trouble with a source")
    check("pull, export, import", "pull", "m@a")
    check("pull, export, import", "pull", "m@b", "--no-wait")
    daemon.wait_ready(ref("b"))
    tar = tmp_path / "a.tar"
    check("pull, export, import", "export", "m@a", tar, absent=("state",), file="path")
    check("pull, export, import", "import", tar, absent=("state",))
    check("pin, unpin", "pin", "m@a", absent=("was_pinned",))
    check("ls", "ls")
    waiting = check("status", "status")["waiting"]
    assert [(each["pod"], each["version"]) for each in waiting] == [("default/p", "gone")]
    told = check("why", "why", "p")["versions"][0]["pods"]
    assert told[0]["waiting_s"] > 0
    check("why", "why", "m@a")
    check("doctor", "doctor", "--kube", "off", "--timeout", "20")
    check("gc", "gc", "--dry-run")
    check("gc", "gc", absent=("staying",))
    check("pin, unpin", "unpin", "m@a")
    check("verify", "verify")
    check("inspect", "inspect", "m@a")
    check("inspect URI", "inspect", f"file://{node.source}/a")
    found = check("inspect URI", "inspect", "m@b", "--catalog", daemon.catalog)
    assert (found["digest"], found["fits"]) == (str(node.publish("b").digest), True)
    check("publish", "publish", node.source / "a", tmp_path / "out", "--force")
    daemon.kill()
    check("ls", "ls")
    check("status", "status")
    check("why", "why", "m@gone")
    check("verify", "verify")
    assert seen == shapes.keys() - {"golden record"}
