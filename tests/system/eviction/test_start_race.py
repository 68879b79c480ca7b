"""Pods that start while the daemon evicts, and whose watch has not told it of them: once a pod's gate has ended, only
the API server knows that the weights are in use."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError
from tests.support.gates import Gates, wait_for
from tests.support.joined import EVERY, Joined, joined, ref

A, B = ref("a"), ref("b")
VERSION = ("--model", A.name, "--version", A.version)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Joined]:
    """A daemon that holds `a`, which nothing wants, and whose watch hears of nothing any more."""
    with joined(tmp_path) as made:
        made.catalog(a=made.entry("a"), b=made.entry("b"))
        made.daemon.start()
        made.daemon.pull(str(A))
        made.daemon.wait_ready(A)
        made.daemon.wait(lambda: made.daemon.metric("holdfast_kube_connected") == 1, "a watch")
        made.api.order_watchers("mute")
        made.daemon.wait(lambda: not any(watcher.order for watcher in made.api.watchers), "a watch that is mute")
        yield made


@pytest.fixture
def gates(node: Joined, tmp_path: Path) -> Iterator[Gates]:
    gates = Gates(node.daemon.layout.public, tmp_path)
    yield gates
    gates.end()


def test_a_start_that_the_watch_has_not_told_of_keeps_its_version(node: Joined, gates: Gates) -> None:
    """What a pod's gate let in is not evicted while the pod lives, though the watch says nothing of the pod, and no
    process holds a lease."""
    node.pod("p", "a")
    assert gates.start_bare(*VERSION, "--once").wait() == 0
    assert node.daemon.control.gc(dry_run=False).versions == ()
    assert node.daemon.path(A).is_dir()
    node.end("p")
    assert [each.ref for each in node.daemon.control.gc(dry_run=False).versions] == [A]


@pytest.mark.parametrize("answer", [503, 403])
def test_without_the_pods_nothing_is_evicted(node: Joined, answer: int) -> None:
    """Where the API server does not say which pods there are, nothing goes, who asks for it hears why, and it goes
    once the API server answers again."""
    node.api.refuse("GET", "/api/v1/pods", answer, times=EVERY)
    with pytest.raises(HoldfastError, match="pods of this node are unknown"):
        node.daemon.control.gc(dry_run=False)
    assert node.daemon.path(A).is_dir()
    node.daemon.wait_state(A, "ready")
    node.api.heal()
    assert [each.ref for each in node.daemon.control.gc(dry_run=False).versions] == [A]


def test_the_lock_of_an_eviction_is_no_use(node: Joined) -> None:
    """While an eviction holds its lock and waits for the pods, its version does not count as used by that."""
    node.api.hang("GET", "/api/v1/pods", times=EVERY)
    asked = len(node.api.asked)
    thread = threading.Thread(target=lambda: node.daemon.control.gc(dry_run=False))
    thread.start()
    try:
        wait_for(lambda: any(each.path == "/api/v1/pods" for each in node.api.asked[asked:]), "the list")
        assert [each.ref for each in node.daemon.control.gc(dry_run=True).versions] == [A]
    finally:
        node.api.heal()
        node.api.drop_hanging()
        thread.join()


def test_starts_race_evictions(node: Joined, gates: Gates) -> None:
    """Pods start one after the other while the version is evicted and fetched without pause: from the end of each gate
    until its pod ends, what it let in is there."""
    over = threading.Event()
    evictions: list[int] = []

    def evict() -> None:
        while not over.is_set():
            evictions.append(len(node.daemon.control.gc(dry_run=False).versions))
            node.daemon.pull(str(A))
            over.wait(random.uniform(0, 0.1))

    thread = threading.Thread(target=evict)
    thread.start()
    try:
        for number in range(12):
            if number % 2:  # else the next pod comes in the middle of what the daemon does
                before = sum(evictions)
                wait_for(lambda: sum(evictions) > before, "an eviction")  # noqa: B023 - ends here
            node.pod(f"p{number}", "a")
            gate = gates.start_bare(*VERSION, "--once")
            assert gate.wait() == 0, gate.said()
            snapshot = node.daemon.path(A).resolve(strict=True)
            over.wait(random.uniform(0, 0.4))
            assert snapshot.is_dir()
            node.end(f"p{number}")
    finally:
        over.set()
        thread.join()
