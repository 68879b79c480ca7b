"""Models that the catalog gives to some namespaces only, on a node of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.joined import Joined, joined, ref
from tests.support.kube_shapes import make_pod

A, B = ref("a"), ref("b")
TEAM = "/api/v1/namespaces/team-a/pods"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    with joined(tmp_path) as made:
        yield made


def write(node: Joined, **model: Any) -> None:
    """The catalog of the model `m` with its versions `a` and `b`, and more keys."""
    node.daemon.write_catalog({"m": {"versions": {name: node.entry(name) for name in "ab"}, **model}})


def test_a_pod_of_another_namespace_gets_nothing_but_the_reason(node: Joined) -> None:
    """Its want is not fetched, its Event and the status say why and what to do; a pod that may have the model makes the
    daemon fetch it, and a corrected catalog does too."""
    write(node, namespaces=["team-a"])
    node.daemon.start()
    uid = node.pod("p", "a")
    told = node.wait_told(uid, "WeightsFailed")
    assert "team-a" in told and "'default'" in told and "`namespaces`" in told
    node.daemon.wait(lambda: node.daemon.error(A).get("code") == "forbidden_namespace", "the reason in the status")
    node.daemon.pull("m@b")  # it has planned since
    node.daemon.wait_ready(B)
    assert not node.daemon.path(A).exists()
    write(node, namespaces=["team-a", "default"])
    node.wait_told(uid, "WeightsReady")
    node.daemon.wait_ready(A)
    node.daemon.wait(lambda: (node.daemon.status(A) or {})["refused_namespaces"] == {}, "the refusal's end")


def test_the_refused_pod_is_told_beside_one_that_is_not(node: Joined) -> None:
    """Where another pod may have the version it is fetched for that one, and the refused pod hears so, not that its
    weights are ready."""
    write(node, namespaces=["team-a"])
    node.daemon.start()
    notes = {"holdfast.dev/model": "m", "holdfast.dev/version": "a"}
    node.api.create(TEAM, make_pod("allowed", "node1", notes, namespace="team-a"))
    node.daemon.wait_ready(A)
    uid = node.pod("p", "a")
    node.wait_told(uid, "WeightsFailed")
    node.daemon.wait(lambda: list((node.daemon.status(A) or {})["refused_namespaces"]) == ["default"], "the refusal")
    assert node.daemon.state(A) == "ready"


def test_a_refused_pod_keeps_nothing_from_eviction(node: Joined) -> None:
    """A version that only pods of other namespaces ask for is not wanted: it goes when space is needed."""
    write(node)
    node.daemon.start()
    node.pod("p", "a")
    node.daemon.wait_ready(A)
    assert node.daemon.control.gc(dry_run=True).versions == ()
    write(node, namespaces=["team-a"])
    node.daemon.wait(lambda: bool(node.daemon.control.gc(dry_run=True).versions), "a version that nothing wants")
