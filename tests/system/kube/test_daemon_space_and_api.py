"""The daemon of a cluster node when space is short, and when the API is."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cached.contract.reference import ModelRef
from tests.support.daemon import DaemonProcess
from tests.support.joined import EVERY, NODE, PODS, Joined, Noted, joined, label, ref
from tests.support.kube_shapes import make_pod

A, B, C, D = (ref(version) for version in "abcd")
MIB = 1024 * 1024


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    """A daemon that may hold 10 MiB, and evicts only for space."""
    with joined(tmp_path, "--quota", "10MiB") as made:
        yield made


def _fill(node: Joined) -> None:
    """Have `a` and `b` here, 4 MiB each, which their pods do not want any more."""
    node.catalog(**{name: node.entry(name, 4 * MIB) for name in "abc"}, d=node.entry("d", 1000))
    node.daemon.start()
    for name in "ab":
        node.pod(name, name)
        node.daemon.wait_ready(ref(name))
        node.daemon.wait(lambda: node.is_labelled(node.daemon.digest(ref(name))), "the label")  # noqa: B023 - ends here
        node.end(name)
    node.daemon.wait(lambda: len(node.daemon.control.gc(dry_run=True).versions) == 2, "two that nothing wants")


def _lacks_space(daemon: DaemonProcess) -> Callable[[], bool]:
    return lambda: daemon.error(C).get("code") == "no_space"


def _has_planned_since(node: Joined) -> None:
    """Wait until the daemon has planned once more: it fetched something that needs no room."""
    node.daemon.pull("m@d")
    node.daemon.wait_ready(D)


def test_what_a_pod_wants_is_never_evicted(node: Joined) -> None:
    """A version that a pod of this node wants stays while another pod lacks its space, and goes when the pod has."""
    node.catalog(**{name: node.entry(name, 4 * MIB) for name in "abc"}, d=node.entry("d", 1000))
    node.daemon.start()
    for name in "ab":
        node.pod(name, name)
        node.daemon.wait_ready(ref(name))
    node.pod("c", "c")
    node.daemon.wait(_lacks_space(node.daemon), "no_space")
    _has_planned_since(node)
    assert {item.ref for item in node.daemon.control.gc(dry_run=True).versions} == {D}
    assert node.daemon.path(A).exists()
    assert node.daemon.path(B).exists()
    node.daemon.wait(lambda: node.daemon.metric("holdfast_fetches", state="no_room") == 1, "a fetch without room")
    assert 0 < node.daemon.metric("holdfast_space_short_bytes") <= 4 * MIB
    node.end("a")
    node.daemon.wait_ready(C)
    assert node.daemon.metric("holdfast_space_short_bytes") == 0
    assert node.daemon.metric("holdfast_fetches") == 0
    assert not node.daemon.path(A).exists()
    assert node.daemon.path(B).exists()


def test_a_version_is_used_until_its_pod_is_gone(node: Joined) -> None:
    """Of two versions that nothing wants any more the one goes first whose pod ended first, whichever came first."""
    node.catalog(a=node.entry("a"), b=node.entry("b"))
    node.daemon.start()
    for name in "ab":
        node.pod(name, name)
        node.daemon.wait_ready(ref(name))
    for name, unwanted in (("b", {B}), ("a", {A, B})):
        node.end(name)
        node.daemon.wait(partial(_is_evictable, node.daemon, unwanted), f"the end of {name}")
    assert [item.ref for item in node.daemon.control.gc(dry_run=True).versions] == [B, A]


def _is_evictable(daemon: DaemonProcess, refs: set[ModelRef]) -> bool:
    return {item.ref for item in daemon.control.gc(dry_run=True).versions} == refs


def test_a_wrong_pin_makes_no_other_pod_lose_its_weights(node: Joined) -> None:
    """A pod that pins what is not there does not make evictable what another pod wants."""
    node.catalog(a=node.entry("a", 8 * MIB), c=node.entry("c", 4 * MIB), d=node.entry("d", 1000))
    node.daemon.start()
    node.pod("good", "a")
    node.daemon.wait_ready(A)
    node.wait_told(node.pod("wrong", "a", digest="sha256:" + "f" * 64), "WeightsFailed")
    node.pod("c", "c")
    node.daemon.wait(_lacks_space(node.daemon), "no_space")
    _has_planned_since(node)
    assert node.daemon.path(A).exists()
    assert node.daemon.metric("holdfast_evictions_total") == 0


def test_the_label_goes_before_the_snapshot(node: Joined) -> None:
    """While the API has not answered that the label is gone, the version is there; when it never answers, the version
    goes after a while, and the label as soon as the API is back."""
    _fill(node)
    name, daemon = label(node.daemon.digest(A)), node.daemon
    node.api.asked = noted = Noted(daemon.path(A))
    node.api.hang("PATCH", NODE)
    node.pod("c", "c")
    daemon.wait(lambda: bool(noted.labelling(name, None)), "the withdrawal")
    assert daemon.get("/healthz")[0] == 200
    daemon.wait_state(A, "evicting")
    assert daemon.path(A).exists()
    node.api.drop_hanging()
    daemon.wait_ready(C)
    assert not daemon.path(A).exists()
    daemon.wait(lambda: name not in node.labels(), "the label's end")
    assert noted.labelling(name, None)[0] is True


def test_the_label_goes_before_the_snapshot_also_when_all_is_well(node: Joined) -> None:
    """A version is still there when the API is asked to withdraw its label, and its label is gone when it is."""
    _fill(node)
    name, daemon = label(node.daemon.digest(A)), node.daemon
    node.api.asked = noted = Noted(daemon.path(A))
    node.pod("c", "c")
    daemon.wait(lambda: not daemon.path(A).exists(), "the eviction")
    assert name not in node.labels()
    assert noted.labelling(name, None) == [True]
    daemon.wait_ready(C)
    assert label(daemon.digest(B)) in node.labels()


def test_a_pod_that_comes_during_the_withdrawal_keeps_its_version(node: Joined) -> None:
    """Who binds while the label is being withdrawn finds the version: another one goes."""
    _fill(node)
    name, daemon = label(node.daemon.digest(A)), node.daemon
    node.api.asked = noted = Noted(daemon.path(A))
    node.api.hang("PATCH", NODE)
    node.pod("c", "c")
    daemon.wait(lambda: bool(noted.labelling(name, None)), "the withdrawal")
    inode = daemon.path(A).resolve().stat().st_ino
    both = {"holdfast.dev/models": "x=m@a,y=m@unknown"}
    node.api.create(PODS, make_pod("late", "node1", both))
    daemon.wait(lambda: daemon.metric("holdfast_pods_waiting") == 2, "the late pod's want")
    node.api.drop_hanging()
    daemon.wait_ready(C)
    assert daemon.path(A).resolve().stat().st_ino == inode
    assert not daemon.path(B).exists()
    daemon.wait(lambda: name in node.labels(), "the label again")
    daemon.wait_state(A, "ready")


def test_before_the_first_list_nothing_is_evicted(node: Joined) -> None:
    """A daemon that has not heard of the pods is not ready and evicts nothing, whatever needs the space."""
    _fill(node)
    daemon = node.daemon
    assert daemon.stop() == 0
    node.api.refuse("GET", "/api/v1/pods", 503, times=EVERY)
    daemon.listen()
    daemon.wait(lambda: "first list" in daemon.get("/readyz")[1], "a reason")
    assert daemon.get("/readyz")[0] == 503
    daemon.pull("m@c")
    daemon.wait(_lacks_space(daemon), "no_space")
    _has_planned_since(node)
    assert daemon.control.gc(dry_run=False).versions == ()
    assert daemon.path(A).exists()
    assert daemon.path(B).exists()
    node.api.heal()
    daemon.wait(lambda: daemon.get("/readyz")[0] == 200, "200 from /readyz")
    daemon.wait_ready(C)


def test_before_the_labels_are_known_what_is_prefetched_stays(node: Joined) -> None:
    """A version that a node selector asks for is not evicted while it is not known whether it selects this node."""
    rule = {"versions": ["a"], "nodeSelector": {"gpu": "h100"}}
    versions = {"a": node.entry("a", 8 * MIB), "c": node.entry("c", 4 * MIB), "d": node.entry("d", 1000)}
    node.daemon.write_catalog({"m": {"versions": versions, "prefetch": rule}})
    node.daemon.start()
    node.daemon.wait_ready(A)
    assert node.daemon.stop() == 0
    node.api.refuse("GET", NODE, 403, times=EVERY)
    node.daemon.start()
    node.pod("c", "c")
    node.daemon.wait(_lacks_space(node.daemon), "no_space")
    _has_planned_since(node)
    assert node.daemon.path(A).exists()
    assert node.daemon.metric("holdfast_evictions_total") == 0


def test_without_an_api_at_start_what_is_here_is_served(node: Joined) -> None:
    """Where nothing listens at the API's address the daemon is not ready and says so; what it holds stays in place, and
    pulls are met."""
    node.catalog(a=node.entry("a"), b=node.entry("b"))
    daemon = node.daemon
    daemon.start()
    node.pod("p", "a")
    daemon.wait_ready(A)
    assert daemon.stop() == 0
    with socket.create_server(("127.0.0.1", 0)) as closed:
        node.know_api_as(f"https://127.0.0.1:{closed.getsockname()[1]}")
    daemon.listen()
    daemon.pull("m@b")
    daemon.wait_ready(A, B)
    assert daemon.get("/healthz")[0] == 200
    assert daemon.get("/readyz")[0] == 503
    assert daemon.samples("holdfast_kube_connected") == {frozenset(): 0}
    assert daemon.samples("holdfast_kube_node_in_force") == {frozenset(): 0}
    assert "lost the API" in daemon.log()
    assert daemon.stop() == 0


def test_an_api_that_is_lost_stops_nothing(node: Joined) -> None:
    """Without the API the daemon stays ready and fetches; when it is back it learns of what it missed."""
    node.catalog(a=node.entry("a"), b=node.entry("b"), d=node.entry("d"))
    daemon = node.daemon
    daemon.start()
    node.pod("first", "a")
    daemon.wait_ready(A)
    daemon.wait(lambda: daemon.metric("holdfast_kube_connected") == 1, "a watch")
    node.lose_api()
    daemon.wait(lambda: daemon.metric("holdfast_kube_connected") == 0, "the loss")
    missed = node.pod("missed", "b")
    daemon.pull("m@d")
    daemon.wait_ready(D)
    assert daemon.get("/readyz")[0] == 200
    assert daemon.state(B) is None
    assert {item.ref for item in daemon.control.gc(dry_run=True).versions} == {D}
    node.api.heal()
    daemon.wait_ready(B)
    node.wait_told(missed, "WeightsReady")
    daemon.wait(lambda: node.is_labelled(daemon.digest(D)), "the label of what came since")
    assert daemon.metric("holdfast_kube_connected") == 1


def test_a_watch_that_fell_behind_lists_again(node: Joined) -> None:
    """410 is answered by a list, which is counted, and finds what came and went since."""
    node.catalog(a=node.entry("a"), b=node.entry("b"))
    daemon = node.daemon
    daemon.start()
    node.pod("first", "a")
    daemon.wait_ready(A)
    node.api.refuse("GET", "/api/v1/pods", 410)
    node.api.order_watchers("drop")
    node.pod("second", "b")
    node.end("first")
    node.api.compact()
    daemon.wait_ready(B)
    daemon.wait(lambda: daemon.metric("holdfast_kube_relists") >= 1, "a list that is counted")
    daemon.wait(lambda: {each.ref for each in daemon.control.gc(dry_run=True).versions} == {A}, "the first pod's end")
    assert daemon.get("/readyz")[0] == 200
