"""What running pods read is kept without a lease: their gates have ended, and only the API server knows of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.manifest import Manifest
from tests.support.daemon import publish_files
from tests.support.joined import PODS, Joined, joined, ref

A = ref("a")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    """A daemon that holds `a`."""
    with joined(tmp_path) as made:
        made.catalog(a=made.entry("a"))
        made.daemon.start()
        made.daemon.wait(lambda: made.daemon.metric("holdfast_kube_connected") == 1, "a watch")
        made.daemon.pull(str(A))
        made.daemon.wait_ready(A)
        yield made


def publish_anew(node: Joined) -> Manifest:
    """Put other content of the version at the source, and have the name lead to it."""
    manifest = publish_files(node.source / "a", {"a.bin": b"other" * 1000})
    node.daemon.control.pull(A, None, refresh=True)
    node.daemon.wait(lambda: node.daemon.digest(A) == manifest.digest, "the name that has moved")
    return manifest


def test_a_name_that_moves_leaves_its_pods_what_they_read(node: Joined) -> None:
    """The content that a name led to stays, over a kill of the daemon too, while a pod lives that wanted the name
    then, and goes after the last one."""
    for name in ("p", "q"):
        node.wait_told(node.pod(name, "a"), "WeightsReady")
    before = node.daemon.path(A).resolve()
    publish_anew(node)
    node.end("p")
    node.daemon.control.gc(dry_run=False)
    assert before.is_dir()
    node.daemon.kill()
    node.daemon.start()
    node.daemon.wait(lambda: node.daemon.metric("holdfast_kube_connected") == 1, "a watch")
    node.daemon.control.gc(dry_run=False)
    assert before.is_dir()
    node.end("q")
    node.daemon.wait(lambda: not (node.daemon.control.gc(dry_run=False).versions or before.exists()), "it is gone")
    assert list(node.daemon.layout.kept.iterdir()) == []


def test_a_name_that_moves_without_pods_leaves_nothing(node: Joined) -> None:
    """Where no pod wanted the name, the earlier content goes with the next sweep."""
    before = node.daemon.path(A).resolve()
    publish_anew(node)
    node.daemon.wait(lambda: not (node.daemon.control.gc(dry_run=False).versions or before.exists()), "it is gone")
    assert list(node.daemon.layout.kept.iterdir()) == []


def test_a_pod_that_ends_is_still_a_user(node: Joined) -> None:
    """A pod that is being deleted wants nothing any more, and what its containers may still read stays until it is
    gone."""
    node.wait_told(node.pod("p", "a"), "WeightsReady")
    node.api.patch(f"{PODS}/p", {"metadata": {"deletionTimestamp": "2026-11-30T05:00:00Z"}})
    assert node.daemon.control.gc(dry_run=False).versions == ()
    assert node.daemon.path(A).is_dir()
    node.end("p")
    node.daemon.wait(lambda: bool(node.daemon.control.gc(dry_run=False).versions), "it is evicted")


def test_a_record_that_is_none_keeps_nothing(node: Joined) -> None:
    """A file among the records of kept snapshots that is no record is removed at the start, and said."""
    node.daemon.stop()
    (node.daemon.layout.kept / "x.json").write_text(json.dumps({"digest": "sha256:1", "pods": []}))
    node.daemon.start()
    assert "not a record of kept pods" in node.daemon.log()
    assert list(node.daemon.layout.kept.iterdir()) == []
