"""One version's fetch in a pool: what it serves, and when it ends. The way to other nodes is the test's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cached.contract.layout import Layout
from cached.fetch.attempt import Segment
from cached.fetch.pool.version import BlobSupply, VersionPool, parse_load
from cached.fetch.supply import Receipt
from cached.peers.messages import Announce, Reply
from cached.peers.pieces import PIECE_BYTES, PieceMap
from cached.peers.swarm import Load
from cached.transport.target import HttpTarget
from tests.support.fetching import eventually

BLOB, SIZE = "a" * 64, PIECE_BYTES + 5
PIECES = PieceMap([(BLOB, SIZE)])
FIRST, LAST = Segment(0, PIECE_BYTES), Segment(PIECE_BYTES, SIZE)


class Link:
    """A tracker that grants everything, or does not answer; there are no peers."""

    def __init__(self) -> None:
        self.answers = True
        self.active = True
        self.announces: list[Announce] = []

    def announce(self, message: Announce) -> Reply | None:
        self.announces.append(message)
        return Reply((0, 1), (), (), (), "ab", 0, self.active) if self.answers else None

    def poll(self, peer: str, version: str, pieces: int) -> tuple[int, Load] | None:
        return None

    def target_of(self, peer: str, sha256: str, start: int, end: int) -> HttpTarget:
        return HttpTarget(f"http://{peer}/{sha256}")


@contextmanager
def version_pool(tmp_path: Path, link: Link, have: int = 0) -> Iterator[tuple[VersionPool, threading.Event]]:
    """A version's pool, and an event that is set when it has ended."""
    ended = threading.Event()
    pool = VersionPool(PIECES, lambda: "", have, link, Layout(tmp_path), lambda _: ended.set())
    try:
        yield pool, ended
    finally:
        pool.close()


def open_supply(pool: VersionPool) -> tuple[BlobSupply, threading.Event]:
    """The supply of the blob, and an event that is set when its download is woken."""
    woken = threading.Event()
    make = pool.make_supply_of(BLOB)
    assert make is not None
    supply = make(woken.set)
    assert isinstance(supply, BlobSupply)
    return supply, woken


def test_a_piece_is_served_from_its_check_to_its_loss(tmp_path: Path) -> None:
    """A piece may be served once it was received and told, and no more when its attempt ended without the blob; a
    committed blob is served whole."""
    link = Link()
    link.answers = False
    with version_pool(tmp_path, link) as (pool, _):
        supply, woken = open_supply(pool)
        assert supply.choose((FIRST,)) is None
        link.answers = True
        assignment = None
        while assignment is None:
            assert woken.wait(120)
            woken.clear()
            assignment = supply.choose((FIRST,))
        assert (assignment.segment, assignment.piece, assignment.is_told) == (FIRST, None, True)
        assert pool.find_checked(BLOB, 0, 9) is None
        supply.received(assignment, Receipt("1" * 64, 1.0, ""))
        assert pool.find_checked(BLOB, 0, PIECE_BYTES) == SIZE
        assert pool.find_checked(BLOB, PIECE_BYTES - 1, PIECE_BYTES + 1) is None
        assert pool.find_checked("b" * 64, 0, 1) is None
        supply.lose()
        assert pool.find_checked(BLOB, 0, 9) is None
        pool.end_supply(BLOB, is_committed=True)
        assert pool.find_checked(BLOB, 0, SIZE) == SIZE
        assert pool.find_checked(BLOB, 0, SIZE + 1) is None


def test_what_is_left_of_a_piece_is_the_origins(tmp_path: Path) -> None:
    """A part of a piece is fetched from the origin at once, without a grant."""
    with version_pool(tmp_path, Link()) as (pool, _):
        supply, _ = open_supply(pool)
        part = Segment(4096, PIECE_BYTES)
        found = supply.choose((part, LAST))
        assert found is not None
        assert (found.segment, found.piece, found.is_told) == (part, None, False)


def test_a_blob_that_is_distrusted_is_the_origins(tmp_path: Path) -> None:
    """After its pieces were wrong as a whole, a blob is fetched from the origin alone."""
    link = Link()
    link.answers = False
    with version_pool(tmp_path, link) as (pool, _):
        supply, _ = open_supply(pool)
        assert supply.choose((FIRST, LAST)) is None
        supply.lose()
        supply.distrust()
        assert supply.has_work((FIRST, LAST))
        found = supply.choose((FIRST, LAST))
        assert found is not None
        assert (found.segment, found.piece) == (FIRST, None)


def test_an_unfinished_version_ends_with_its_fetch(tmp_path: Path) -> None:
    """When the fetch of a version that is not complete ends, nothing of it is announced any more."""
    link = Link()
    with version_pool(tmp_path, link) as (pool, ended):
        eventually(lambda: link.announces)
        pool.leave()
        assert ended.wait(120)
        assert not pool.enter()


def test_a_seed_stays_while_others_fetch(tmp_path: Path) -> None:
    """A node that has all announces it after its fetch has ended, and may fetch the version again meanwhile."""
    link = Link()
    with version_pool(tmp_path, link, have=3) as (pool, ended):
        pool.leave()
        eventually(lambda: len(link.announces) > 1)
        assert not ended.is_set()
        assert link.announces[-1].have == 3
        assert pool.enter()


@given(st.text(max_size=30) | st.text(alphabet="0123456789,- \u0661\n", max_size=30))
def test_any_load_is_a_load(text: str) -> None:
    """Whatever a peer says of its load is two small numbers, or that of an idle node."""
    load = parse_load(text)
    assert 0 <= load.serving <= 9999
    assert 0 <= load.waiting <= 9999
