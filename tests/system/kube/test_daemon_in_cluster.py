"""The daemon as a member of a cluster: pods want, and the cluster is told."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cached.contract.digest import Digest
from tests.support.bitrot import flip
from tests.support.joined import NODE, PODS, Joined, Noted, joined, label, ref
from tests.support.kube_shapes import make_pod
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Pause

A, B = ref("a"), ref("b")
MIB = 1024 * 1024


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    with joined(tmp_path) as made:
        yield made


def test_a_pod_makes_the_daemon_fetch_and_hears_of_it(node: Joined, origin: HostileOrigin) -> None:
    """From a pod's binding to its weights: what waits is counted, the pod hears how it goes, the wait is measured, and
    the next pod of the version costs no byte."""
    daemon, let_go = node.daemon, threading.Event()
    origin.publish("/a/", {"a.bin": random.Random(1).randbytes(3 * MIB)})
    origin.always("/a/a.bin", Pause(MIB, let_go))
    node.catalog(a={"source": origin.url("/a/")})
    daemon.start()
    uid = node.pod("first", "a")
    daemon.wait(lambda: daemon.metric("holdfast_model_pods_waiting", model="m", version="a") == 1, "a pod that waits")
    assert daemon.metric("holdfast_pods_waiting") == 1
    assert 0 < daemon.metric("holdfast_model_waiting_since_timestamp_seconds") <= time.time()
    daemon.wait(lambda: daemon.metric("holdfast_model_expected_bytes") == 3 * MIB, "a fetch whose files are listed")
    assert daemon.metric("holdfast_fetches", state="running") == 1
    let_go.set()
    daemon.wait_ready(A)
    assert "3.0 MiB from http://" in node.wait_told(uid, "WeightsFetching")
    assert "3.0 MiB, after " in node.wait_told(uid, "WeightsReady")
    assert node.reasons(uid) == ["WeightsFetching", "WeightsReady"]
    daemon.wait(lambda: node.is_labelled(daemon.digest(A)), "the label")
    daemon.wait(lambda: daemon.metric("holdfast_pod_fill_seconds_count") == 1, "a wait that is over")
    assert daemon.metric("holdfast_pods_waiting") == 0
    assert daemon.metric("holdfast_gate_wait_seconds_count") == 1
    assert not daemon.samples("holdfast_model_pods_waiting") and not daemon.samples("holdfast_model_fetched_bytes")
    assert daemon.metric("holdfast_requests_total", result="miss") == 1
    fetched = daemon.metric("holdfast_fetch_bytes_total")
    second = node.pod("second", "a")
    assert node.wait_told(second, "WeightsReady").endswith("was on this node already")
    assert node.reasons(second) == ["WeightsReady"]
    assert daemon.metric("holdfast_fetch_bytes_total") == fetched
    daemon.wait(lambda: daemon.metric("holdfast_pod_fill_seconds_count") == 2, "that of the warm one")
    assert daemon.metric("holdfast_gate_wait_seconds_count") == 1
    node.end("first")
    node.end("second")
    daemon.wait(lambda: bool(daemon.control.gc(dry_run=True).versions), "a version that nothing wants")
    third = node.pod("third", "a")
    node.wait_told(third, "WeightsReady")
    assert daemon.metric("holdfast_requests_total", result="hit") == 1
    assert daemon.metric("holdfast_fetch_bytes_total") == fetched


def test_a_short_fetch_is_told_too(node: Joined) -> None:
    """A pod whose weights come within a moment hears that they were fetched, and how long it took."""
    node.catalog(a=node.entry("a"))
    node.daemon.start()
    uid = node.pod("p", "a")
    assert "after " in node.wait_told(uid, "WeightsReady")
    assert node.reasons(uid) == ["WeightsFetching", "WeightsReady"]


def test_the_label_is_set_after_publication(node: Joined) -> None:
    """When the label arrives at the API, the version is there already."""
    node.catalog(a=node.entry("a"))
    node.daemon.start()
    node.api.asked = noted = Noted(node.daemon.path(A))
    node.pod("p", "a")
    node.daemon.wait_ready(A)
    name = label(node.daemon.digest(A))
    node.daemon.wait(lambda: name in node.labels(), "the label")
    assert noted.labelling(name, "ready") == [True]


def test_who_does_not_ask_here_gets_nothing(node: Joined) -> None:
    """Pods of other nodes, unannotated, finished, or being deleted make the daemon fetch nothing."""
    ours = {"holdfast.dev/model": "m", "holdfast.dev/version": "a"}
    node.catalog(a=node.entry("a"), b=node.entry("b"))
    node.pod("elsewhere", "a", node="node2")
    node.pod("unbound", "a", node="")
    node.api.create(PODS, make_pod("plain", "node1"))
    node.api.create(PODS, make_pod("done", "node1", ours, phase="Succeeded"))
    node.api.create(PODS, make_pod("failed", "node1", ours, phase="Failed"))
    going = make_pod("going", "node1", ours)
    going["metadata"] |= {"deletionTimestamp": "2026-11-20T00:00:00Z", "finalizers": ["example/wait"]}
    node.api.create(PODS, going)
    node.daemon.start()
    node.pod("late", "a", node="node2")
    node.pod("p", "b")
    node.daemon.wait_ready(B)
    assert node.daemon.state(A) is None
    assert node.daemon.metric("holdfast_requests_total") == 1
    assert node.daemon.metric("holdfast_pods_waiting") == 0


def test_a_pod_that_can_never_start_hears_why(node: Joined) -> None:
    """Annotations that are wrong and versions that the catalog lacks are Events with a remedy; a version that the
    catalog gains is fetched."""
    node.catalog(a=node.entry("a"))
    node.daemon.start()
    bad = node.pod("bad", "a", verfy="full")
    early = node.pod("early", "b")
    assert "holdfast.dev/verfy" in node.wait_told(bad, "WeightsFailed")
    assert "m@b" in node.wait_told(early, "WeightsFailed")
    assert {kind for kind, _, _ in node.events(bad) + node.events(early)} == {"Warning"}
    assert node.daemon.state(A) is None
    assert node.daemon.metric("holdfast_pods_refused", reason="unknown_model") == 1
    node.catalog(a=node.entry("a"), b=node.entry("b"))
    node.wait_told(early, "WeightsReady")
    node.daemon.wait_ready(B)
    assert node.daemon.metric("holdfast_pods_refused") == 0


def test_a_wrong_pin_publishes_nothing(node: Joined) -> None:
    """A pod whose pin is not the catalog's digest hears both; with a right pod beside it only the wrong one fails."""
    right, wrong = node.publish("a").digest, Digest("f" * 64)
    node.catalog(a=node.entry("a", digest=right), b=node.entry("b"))
    node.daemon.start()
    first = node.pod("first", "a", digest=str(wrong))
    second = node.pod("second", "b", digest=str(wrong))
    message = node.wait_told(first, "WeightsFailed")
    assert str(right) in message
    assert str(wrong) in message
    assert str(wrong) in node.wait_told(second, "WeightsFailed")
    assert not node.daemon.path(A).exists()
    assert not node.daemon.path(B).exists()
    assert not any(name.startswith("weights.") for name in node.labels())
    good = node.pod("good", "a", digest=str(right))
    node.wait_told(good, "WeightsReady")
    assert node.daemon.digest(A) == right
    assert "WeightsReady" not in node.reasons(first)
    assert node.daemon.metric("holdfast_pods_waiting") == 2
    assert node.daemon.metric("holdfast_pods_refused", reason="digest_mismatch") == 2


def test_a_new_pod_has_a_failure_tried_again(node: Joined) -> None:
    """What failed for good is tried again for a pod that is new, and for no other reason."""
    node.catalog(a={"source": f"file://{node.source}/a"})
    node.daemon.start()
    first = node.pod("p", "a")
    node.wait_told(first, "WeightsFailed")
    node.publish("a")
    node.api.patch(f"{PODS}/p", {"metadata": {"labels": {"touched": "yes"}}})
    node.end("p")
    second = node.pod("p", "a")
    assert second != first
    node.wait_told(second, "WeightsReady")


def test_labels_are_reconciled_at_start(node: Joined) -> None:
    """A label of what is not here goes, one of what is here comes back, others stay; the summary says what is held."""
    node.catalog(a=node.entry("a"))
    node.daemon.start()
    node.pod("p", "a")
    node.daemon.wait_ready(A)
    held, stale = label(node.daemon.digest(A)), label(Digest("e" * 64))
    node.daemon.wait(lambda: held in node.labels(), "the label")
    assert node.daemon.stop() == 0
    assert held in node.labels()
    node.api.patch(NODE, {"metadata": {"labels": {held: None, stale: "ready", "other/x": "1"}}})
    node.daemon.start()
    node.daemon.wait(lambda: node.labels() == {"gpu": "h100", "other/x": "1", held: "ready"}, "the labels")
    node.daemon.wait(lambda: (node.summary() or "").startswith("1 version, "), "the summary")
    node.daemon.wait(lambda: node.daemon.metric("holdfast_kube_node_in_force") == 1, "a report in force")


def test_prefetch_follows_the_labels_of_the_node(node: Joined) -> None:
    """A node selector is compared with the labels that the API has of this node."""
    here, there = {"gpu": "h100"}, {"gpu": "b200"}
    entries: dict[str, Any] = {
        "here": {"versions": {"v1": node.entry("h")}, "prefetch": {"versions": ["v1"], "nodeSelector": here}},
        "there": {"versions": {"v1": node.entry("t")}, "prefetch": {"versions": ["v1"], "nodeSelector": there}},
    }
    node.daemon.write_catalog(entries)
    node.daemon.start()
    node.daemon.wait(lambda: node.daemon.metric("holdfast_model_ready", model="here") == 1, "the prefetch")
    assert node.daemon.metric("holdfast_requests_total") == 1


def test_bit_rot_is_told_to_the_pods_that_use_it(tmp_path: Path) -> None:
    """A pod whose weights went bad on the disk hears that, and that they are back; the label goes and comes."""
    with joined(tmp_path, "--scrub-rate", "1GiB/s", "--scrub-period", "1s") as node:
        daemon = node.daemon
        node.catalog(a=node.entry("a"))
        daemon.start()
        uid = node.pod("p", "a")
        node.wait_told(uid, "WeightsReady")
        digest = daemon.digest(A)
        daemon.wait(partial(node.is_labelled, digest), "the label")
        node.api.asked = noted = Noted(daemon.path(A))
        flip(daemon.path(A) / "a.bin")
        assert "went bad" in node.wait_told(uid, "WeightsFailed")
        daemon.wait(lambda: node.times(uid, "WeightsReady") == 2, "ready again")
        daemon.wait(partial(node.is_labelled, digest), "the label again")
        assert noted.labelling(label(digest), None) == [True]
        assert daemon.files(A)["a.bin"] == (node.source / "a" / "a.bin").read_bytes()
        assert node.times(uid, "WeightsFetching") == 2


def test_a_doubt_of_right_bytes_is_told_and_is_no_warning(node: Joined) -> None:
    """A pod whose weights are hashed again because they were doubted hears that, and that they are ready; nothing of it
    is a warning, and the label stays."""
    daemon = node.daemon
    node.catalog(a=node.entry("a", 3 * MIB))
    daemon.start()
    uid = node.pod("p", "a")
    node.wait_told(uid, "WeightsReady")
    daemon.wait(partial(node.is_labelled, daemon.digest(A)), "the label")
    os.utime(daemon.path(A) / "a.bin", ns=(1, 1))
    node.api.asked = noted = Noted(daemon.path(A))
    assert daemon.control.verify(A).was_outdated
    assert "3.0 MiB are hashed again now" in node.wait_told(uid, "WeightsChecking")
    daemon.wait(lambda: node.times(uid, "WeightsReady") == 2, "ready again")
    assert {kind for kind, _, _ in node.events(uid)} == {"Normal"}
    assert noted.labelling(label(daemon.digest(A)), None) == []
