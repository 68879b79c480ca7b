"""The time from a pod's binding to its weights: who counts, and how long."""

from __future__ import annotations

from cached.contract.digest import Digest
from cached.contract.reference import ModelRef
from cached.core.demand import PodWant
from cached.core.pod_fills import PodFills, WaitingPod

A, B = ModelRef("m", "a"), ModelRef("m", "b")
HERE, OTHER = Digest.of(b"here"), Digest.of(b"other")


def want(uid: str, ref: ModelRef, pin: Digest | None = None) -> PodWant:
    return PodWant(uid, f"default/{uid}", ref, pin)


def test_a_pod_is_filled_once_all_its_versions_are_here() -> None:
    """A pod counts from when it is first seen until the last of its versions comes, and once only."""
    fills = PodFills()
    assert fills.update([], {}, 0) == []
    pods = [want("p", A), want("p", B)]
    assert fills.update(pods, {}, 10) == []
    assert fills.update(pods, {A: HERE}, 15) == []
    assert fills.update(pods, {A: HERE, B: HERE}, 17) == [7]
    assert fills.update(pods, {A: HERE, B: HERE}, 20) == []
    assert fills.update(pods, {A: HERE}, 25) == []  # withdrawn while it runs: its gate has opened


def test_a_warm_pod_takes_no_time() -> None:
    """A pod whose version is here when it comes counts as zero seconds."""
    fills = PodFills()
    fills.update([], {A: HERE}, 0)
    assert fills.update([want("p", A)], {A: HERE}, 5) == [0]


def test_pods_of_an_earlier_daemon_count_from_now_or_not_at_all() -> None:
    """Of the pods that a daemon finds, those that have their versions count nothing, the others from then on."""
    fills = PodFills()
    pods = [want("filled", A), want("cold", B)]
    assert fills.update(pods, {A: HERE}, 100) == []
    assert fills.update(pods, {A: HERE, B: HERE}, 103) == [3]


def test_a_wrong_digest_fills_no_pod() -> None:
    """A pod with a pin is not filled by other content under the name."""
    fills = PodFills()
    fills.update([], {}, 0)
    pods = [want("p", A, OTHER)]
    assert fills.update(pods, {A: HERE}, 1) == []
    assert fills.update(pods, {A: OTHER}, 4) == [3]


def test_a_pod_with_volumes_is_filled_once_they_are_mounted() -> None:
    """A pod counts until its volumes are mounted, which may be long after its versions came: the kubelet asks again
    minutes later. A volume that is asked for later is no second fill."""
    fills = PodFills()
    fills.update([], {A: HERE}, 0)
    warm, cold = want("warm", A), want("cold", B)
    assert fills.update([warm, cold], {A: HERE}, 5, {"warm", "cold"}) == []
    assert fills.update([warm, cold], {A: HERE}, 6, {"cold"}) == [1]
    assert fills.update([warm, cold], {A: HERE, B: HERE}, 20, {"cold"}) == []
    assert fills.update([warm, cold], {A: HERE, B: HERE}, 95) == [90]
    assert fills.update([warm, cold], {A: HERE, B: HERE}, 99, {"warm"}) == []
    assert fills.update([warm, cold], {A: HERE, B: HERE}, 100) == []


def test_each_waiting_pod_has_its_own_time() -> None:
    """A pod waits since it was first seen, whatever others wait for; one whose version is lost since the version is, if
    that is known. Pods that have theirs are not listed, and the longest wait is the first."""
    fills = PodFills()
    early, late, lost = want("early", A), want("late", A), want("lost", B)
    fills.update([early, lost], {B: HERE}, 10)
    fills.update([early, late, lost], {B: HERE}, 25)
    found = fills.list_waiting([late, early, early, lost], {}, {A: 10.0})
    assert found == (
        WaitingPod("default/early", A, 10),
        WaitingPod("default/late", A, 25),
        WaitingPod("default/lost", B, None),
    )
    assert fills.list_waiting([lost], {}, {B: 30.0}) == (WaitingPod("default/lost", B, 30),)
    assert fills.list_waiting([early, lost], {A: HERE, B: HERE}, {}) == ()


def test_a_pod_that_goes_counts_nothing() -> None:
    """A pod that ends while it waits is forgotten, and a later one starts anew."""
    fills = PodFills()
    fills.update([], {}, 0)
    assert fills.update([want("p", A)], {}, 1) == []
    assert fills.update([], {}, 2) == []
    assert fills.update([want("q", A)], {}, 10) == []
    assert fills.update([want("q", A)], {A: HERE}, 12) == [2]
