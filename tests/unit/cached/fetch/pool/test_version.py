"""One version's fetch in a pool: what it serves, and when it ends. The way to other nodes is the test's."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cached.contract.errors import DigestMismatch, HoldfastError
from cached.contract.layout import Layout
from cached.fetch.blob import Segment
from cached.fetch.pool.version import BlobSupply, VersionPool, parse_load
from cached.fetch.supply import Assignment, Receipt
from cached.peers.chaining import step_at
from cached.peers.messages import Announce, PieceDigest, Reason, Reply
from cached.peers.neighbours import Load
from cached.peers.pieces import PIECE_BYTES, Piece, PieceMap
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
        self.seeds: dict[str, int] = {}  # what holders have
        self.chains: dict[str, bytes] = {}  # by tracker
        self.asked: list[str] = []  # who was asked for a chain
        self.wanted: list[str] = []  # who was asked for digests
        self.transfers: list[tuple[str, str | None]] = []  # how each piece of a peer ended

    def announce(self, message: Announce) -> Reply | None:
        self.announces.append(message)
        return Reply((0, 1), (), (), (), "ab", 0, self.active) if self.answers else None

    def poll(self, peer: str, version: str, pieces: int) -> tuple[int, Load] | None:
        return (self.seeds[peer], Load()) if peer in self.seeds else None

    def ask_for_seed(self, peer: str, message: Announce) -> Announce | None:
        have = self.seeds.get(peer)
        return None if have is None else replace(message, have=have, want=0)

    def list_trackers(self, version: str) -> tuple[str, ...]:
        return tuple(self.chains)

    def read_chain(self, peer: str, version: str) -> bytes | None:
        self.asked.append(peer)
        return self.chains.get(peer)

    def want_digests(self, peer: str, version: str) -> None:
        self.wanted.append(peer)

    def note_transfer(self, peer: str, error: HoldfastError | None) -> None:
        self.transfers.append((peer, None if error is None else error.code))

    def target_of(self, peer: str, piece: Piece, version: str | None) -> HttpTarget:
        return HttpTarget(f"http://{peer}/{piece.sha256}")


@contextmanager
def version_pool(
    tmp_path: Path, link: Link, have: int = 0, holders: Sequence[str] = ()
) -> Iterator[tuple[VersionPool, threading.Event]]:
    """A version's pool, and an event that is set when it has ended."""
    ended = threading.Event()
    pool = VersionPool(PIECES, lambda: "", have, link, Layout(tmp_path), lambda _: ended.set(), holders)
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


def test_a_failing_origin_stops_no_peer(tmp_path: Path) -> None:
    """While the origin is not asked, a part of a piece is asked of a holder, as the whole piece, and grants go back;
    afterwards it is the origin's again. A part that came does not have its piece served."""
    link = Link()
    link.seeds[HOLDER], link.chains[TRACKER] = 3, STATE
    with version_pool(tmp_path, link, holders=[HOLDER]) as (pool, _):
        supply, woken = open_supply(pool)
        part = Segment(4096, PIECE_BYTES)
        assert supply.pause_origin(time.monotonic() + 3600)
        found = choose(supply, woken, part)
        assert found.piece is not None
        assert (found.segment, found.piece.extent, found.piece.peer) == (part, FIRST, HOLDER)
        assert found.piece.step == step_at(BLOB, 0, STATE)
        supply.received(found, Receipt(None, 1.0, ""))
        assert pool.find_checked(BLOB, 0, 9) is None
        supply.pause_origin(0.0)
        assert choose(supply, woken, part) == Assignment(part, None)


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
    """A node that has all announces it after its fetch has ended, and may fetch the version again at the same time."""
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


HOLDER, TRACKER, STATE = "10.0.0.1:9402", "10.0.0.2:9402", bytes(range(32))


def choose(supply: BlobSupply, woken: threading.Event, *segments: Segment) -> Assignment:
    """What the supply gives, once it has something."""
    while (found := supply.choose(segments or (FIRST, LAST))) is None:
        assert woken.wait(20)
        woken.clear()
    return found


def test_a_holder_is_asked_at_once_and_checked_by_the_chain(tmp_path: Path) -> None:
    """A node that knows a holder asks it for pieces that no sha256 was told of, and checks them by the chain that a
    tracker told; it takes no grant of the origin, and gives those back that it gets."""
    link = Link()
    link.seeds[HOLDER], link.chains[TRACKER] = 3, STATE
    with version_pool(tmp_path, link, holders=[HOLDER]) as (pool, _):
        supply, woken = open_supply(pool)
        assert supply.keeps_chain
        found = choose(supply, woken, FIRST)
        assert found.piece is not None
        assert (found.piece.peer, found.piece.sha256) == (HOLDER, None)
        assert found.piece.step == step_at(BLOB, 0, STATE)
        supply.received(found, Receipt(None, 1.0, ""))
        last = choose(supply, woken, LAST)
        assert last.piece is not None
        assert last.piece.step == step_at(BLOB, PIECE_BYTES, STATE)
        assert pool.read_chain() == STATE


def test_grants_are_another_nodes_while_a_holder_is_known(tmp_path: Path) -> None:
    """A node that knows holders gives back what it is granted, also while none of them has answered."""
    link = Link()
    with version_pool(tmp_path, link, holders=[HOLDER]) as (pool, _):
        supply, _ = open_supply(pool)

        def is_given_back() -> bool:
            assert supply.choose((FIRST, LAST)) is None
            return {piece for each in link.announces for piece in each.failed} == {0, 1}

        eventually(is_given_back)


def test_a_contradicted_chain_is_dropped(tmp_path: Path) -> None:
    """A piece that contradicts a chain which another node told ends the chain and not its peer, of which none is told;
    who told it is not asked again, and the neighbours are asked for digests. The second time the peer is left."""
    link = Link()
    link.seeds[HOLDER], link.chains[TRACKER] = 3, STATE
    with version_pool(tmp_path, link, holders=[HOLDER]) as (pool, _):
        supply, woken = open_supply(pool)
        for giver in (TRACKER, "10.0.0.3:9402"):
            link.chains = {giver: STATE}
            found = choose(supply, woken)
            assert found.piece is not None
            supply.failed(found, DigestMismatch("a piece", "1", "2", ""))
            assert pool.read_chain() is None
        eventually(lambda: any(each.blames for each in link.announces))
        assert {each.blames for each in link.announces if each.blames} == {((HOLDER, Reason.GONE),)}
        assert link.asked.count(TRACKER) == 1
        assert link.wanted


def test_a_published_chain_is_used_and_told_on(tmp_path: Path) -> None:
    """A node that read the chain at the source asks no node for it, checks a peer's pieces by it, hashes what it is
    granted of the origin once, and tells it to others."""
    link = Link()
    link.seeds[HOLDER], link.chains[TRACKER] = 3, bytes(32)
    with version_pool(tmp_path, link, holders=[HOLDER]) as (pool, _):
        pool.take_published({BLOB: STATE})
        supply, woken = open_supply(pool)
        found = choose(supply, woken, FIRST)
        assert found.piece is not None
        assert (found.piece.sha256, found.piece.step) == (None, step_at(BLOB, 0, STATE))
        assert (pool.read_chain(), link.asked) == (STATE, [])
    with version_pool(tmp_path, Link()) as (pool, _):
        pool.take_published({BLOB: STATE})
        supply, woken = open_supply(pool)
        granted = choose(supply, woken, FIRST)
        assert (granted.piece, granted.is_told, granted.needs_sha256) == (None, True, False)
        pool.want_digests()
        last = choose(supply, woken, LAST)
        assert (last.piece, last.is_told, last.needs_sha256) == (None, True, True)


def test_a_wrong_published_chain_is_left(tmp_path: Path) -> None:
    """A piece that contradicts what was published ends that, and no node is blamed or left for it, also the one that
    told the same again; it is not taken again, and the neighbours are asked for digests."""
    link = Link()
    link.seeds[HOLDER], link.chains[TRACKER] = 3, STATE
    with version_pool(tmp_path, link, holders=[HOLDER]) as (pool, _):
        pool.take_published({BLOB: STATE})
        supply, woken = open_supply(pool)
        supply.failed(choose(supply, woken), DigestMismatch("a piece", "1", "2", ""))
        assert pool.read_chain() is None
        eventually(lambda: TRACKER in link.asked and link.wanted)
        assert pool.read_chain() is None
        assert not any(each.blames for each in link.announces)


def test_a_node_that_told_a_wrong_chain_is_no_liar(tmp_path: Path) -> None:
    """The node that told a chain which its own piece contradicts may have read it at the source: no node hears of it
    for the first time, and the chain goes."""
    link = Link()
    link.seeds[HOLDER], link.chains[HOLDER] = 3, STATE
    with version_pool(tmp_path, link, holders=[HOLDER]) as (pool, _):
        supply, woken = open_supply(pool)
        supply.failed(choose(supply, woken), DigestMismatch("a piece", "1", "2", ""))
        before = len(link.announces)
        eventually(lambda: len(link.announces) > before + 1)
        assert not any(each.blames for each in link.announces)
        assert pool.read_chain() is None


def test_digests_of_pieces_that_are_here_are_told_when_asked(tmp_path: Path) -> None:
    """A node that fetches by a published chain tells the sha256 of what it has so far once a node asks: that one may
    not have the chain, or not believe it."""
    link = Link()
    data = bytes(PIECE_BYTES)
    partial = Layout(tmp_path).ingest / BLOB / "data"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(data)
    with version_pool(tmp_path, link) as (pool, _):
        pool.take_published({BLOB: STATE})
        supply, woken = open_supply(pool)
        supply.received(choose(supply, woken, FIRST), Receipt(None, 1.0, ""))
        eventually(lambda: any(each.have for each in link.announces))
        assert not any(each.digests for each in link.announces)
        pool.want_digests()
        eventually(lambda: any(each.digests for each in link.announces))
        told = {digest for each in link.announces for digest in each.digests}
        assert told == {PieceDigest(0, hashlib.sha256(data).hexdigest())}


def test_a_chain_of_another_length_is_none(tmp_path: Path) -> None:
    """An answer that is too short, too long or empty tells nothing, and no piece is checked by it."""
    link = Link()
    link.chains = {
        f"10.0.0.{number}:9402": data for number, data in enumerate((b"", STATE[1:], STATE + b"x", STATE * 9))
    }
    with version_pool(tmp_path, link) as (pool, _):
        supply, _ = open_supply(pool)
        supply.choose((FIRST, LAST))
        eventually(lambda: set(link.asked) == set(link.chains))
        assert pool.read_chain() is None


def test_a_committed_blobs_chain_is_kept(tmp_path: Path) -> None:
    """The chain of a blob that was hashed here is told, and again by a later seed, which hashes nothing for others
    until one of them asks for digests."""
    link = Link()
    layout = Layout(tmp_path)
    layout.private.mkdir()
    layout.blob(BLOB).parent.mkdir(parents=True)
    with layout.blob(BLOB).open("wb") as blob:
        blob.truncate(SIZE)
    with version_pool(tmp_path, link) as (pool, _):
        supply, _ = open_supply(pool)
        supply.note_chain(STATE)
        assert pool.read_chain() == STATE
    link.announces.clear()
    with version_pool(tmp_path, link, have=3) as (pool, _):
        assert pool.read_chain() == STATE
        eventually(lambda: len(link.announces) > 1)
        assert not any(each.digests for each in link.announces)
        pool.want_digests()
        eventually(lambda: any(each.digests for each in link.announces))


def test_a_piece_comes_with_what_else_its_peer_has(tmp_path: Path) -> None:
    """What a peer says beside a piece that it has of the version is asked of it next, without a question between; what
    is no set of the version's pieces says nothing."""

    class OfPeers(Link):
        def announce(self, message: Announce) -> Reply | None:
            digests = (PieceDigest(0, "0" * 64), PieceDigest(1, "1" * 64))
            return Reply((), (), ("10.0.0.1:9402",), digests, "ab", 2, active=True)

        def poll(self, peer: str, version: str, pieces: int) -> tuple[int, Load] | None:
            self.polls += 1
            return (1, Load()) if self.polls == 1 else (0, Load())

        polls = 0

    for said, is_known in (("Aw==", True), ("Bw==", False), ("Aw", False), ("AwA=", False), ("", False)):
        with version_pool(tmp_path, OfPeers()) as (pool, _):
            supply, woken = open_supply(pool)
            assignment = supply.choose((FIRST, LAST))
            while assignment is None:
                assert woken.wait(60)
                woken.clear()
                assignment = supply.choose((FIRST, LAST))
            assert assignment.segment == FIRST
            supply.received(assignment, Receipt("0" * 64, 1.0, "1,0", said))
            following = supply.choose((LAST,))
            assert (following is not None) is is_known, said


def test_a_grant_is_what_others_wait_for(tmp_path: Path) -> None:
    """A blob with a granted piece that is not begun comes before others: the rest of the pool waits for that piece."""
    link = Link()
    link.answers = False
    with version_pool(tmp_path, link) as (pool, _):
        supply, _ = open_supply(pool)
        assert not supply.is_waited_for()
        assert supply.choose((FIRST, LAST)) is None
        link.answers = True
        eventually(supply.is_waited_for)
        for piece in (FIRST, LAST):
            assert supply.is_waited_for()
            assert supply.choose((piece,)) is not None
        assert not supply.is_waited_for()
