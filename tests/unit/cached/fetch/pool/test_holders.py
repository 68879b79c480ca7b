"""The search for the members that have a snapshot: bounded, whatever asks and whatever the members do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cached.contract.digest import Digest
from cached.fetch.pool.holders import HolderSearch
from cached.peers.messages import MAX_HOLDERS
from cached.peers.trackers import TooMany

MEMBERS = [f"10.0.0.{number}:9402" for number in range(1, 101)]
DIGESTS = [Digest(f"{number:064x}") for number in range(20)]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def test_some_holders_are_enough(executor: ThreadPoolExecutor) -> None:
    """Where all members have a snapshot, a bounded number is named, and not all are asked."""
    asked = []

    def ask(member: str, digest: Digest) -> bool:
        asked.append(member)
        return True

    found = HolderSearch(ask, executor).find(DIGESTS[0], MEMBERS)
    assert len(set(found)) == MAX_HOLDERS
    assert set(found) <= set(MEMBERS)
    assert len(asked) < len(MEMBERS)


def test_a_silent_member_delays_nobody_for_long(executor: ThreadPoolExecutor) -> None:
    """Members that do not answer cost the search its limit, and the others count."""
    let_go = threading.Event()

    def ask(member: str, digest: Digest) -> bool:
        return member == MEMBERS[0] or not let_go.wait(20)

    try:
        assert HolderSearch(ask, executor).find(DIGESTS[0], MEMBERS[:3]) == (MEMBERS[0],)
    finally:
        let_go.set()


def test_a_member_that_fails_is_none(executor: ThreadPoolExecutor) -> None:
    """An error of the question is no holder, and ends no search."""

    def ask(member: str, digest: Digest) -> bool:
        if member == MEMBERS[0]:
            raise OSError("no")
        return member == MEMBERS[1]

    assert HolderSearch(ask, executor).find(DIGESTS[0], MEMBERS[:3]) == (MEMBERS[1],)


def test_searches_are_bounded(executor: ThreadPoolExecutor) -> None:
    """Beyond a number of searches at once, a question for one more is refused; those that run go on."""
    asked, let_go = threading.Semaphore(0), threading.Event()

    def ask(member: str, digest: Digest) -> bool:
        asked.release()
        return let_go.wait(20)

    search = HolderSearch(ask, executor)
    began = [threading.Thread(target=search.find, args=(each, MEMBERS[:1])) for each in DIGESTS[:8]]
    for each in began:
        each.start()
    try:
        assert all(asked.acquire(timeout=20) for _ in began)
        with pytest.raises(TooMany):
            search.find(DIGESTS[8], MEMBERS[:1])
    finally:
        let_go.set()
        for each in began:
            each.join()


def test_that_no_member_has_it_is_soon_asked_again(executor: ThreadPoolExecutor) -> None:
    """The first node that has a snapshot is found by one that asks a second later, though another asked in vain before:
    it would fetch from the origin what its neighbour has."""
    here: set[str] = set()
    search = HolderSearch(lambda member, digest: member in here, executor)
    assert search.find(DIGESTS[0], MEMBERS[:3]) == ()
    here.add(MEMBERS[1])
    time.sleep(1.0)
    assert search.find(DIGESTS[0], MEMBERS[:3]) == (MEMBERS[1],)
