"""This node in its pool: what other nodes can make it do. The way to other nodes is the test's."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import Layout
from cached.fetch.pool.membership import MemberAddress, Membership
from cached.fetch.pool.node import PoolNode
from cached.peers.bits import all_bits
from cached.peers.messages import Announce, Reply
from cached.peers.neighbours import Load
from cached.peers.pieces import PIECE_BYTES, Piece, PieceMap
from cached.transport.client import Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.target import HttpTarget
from tests.support.fetching import eventually

MEMBERS = 3000


class Link:
    """Members of whom none answers before it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.asked = 0
        self._lock = threading.Lock()

    def announce(self, message: Announce) -> Reply | None:
        return None

    def ask_for_seed(self, peer: str, message: Announce) -> Announce | None:
        self.let_go.wait(60)
        with self._lock:
            self.asked += 1
        return None

    def wait_asked(self, count: int) -> None:
        eventually(lambda: self.asked == count)

    def poll(self, peer: str, version: str, pieces: int) -> tuple[int, Load] | None:
        return None

    def list_trackers(self, version: str) -> tuple[str, ...]:
        return ()

    def read_chain(self, peer: str, version: str) -> bytes | None:
        return None

    def want_digests(self, peer: str, version: str) -> None:
        """Ask no node."""

    def find_holders(self, digest: Digest) -> tuple[str, ...] | None:
        return None

    def has_snapshot(self, peer: str, digest: Digest) -> bool:
        return False

    def read_manifest(self, peer: str, digest: Digest, cancellation: Cancellation) -> Response:
        raise Transient("unreachable", f"no manifest from {peer}", "ask another")

    def read_bundle(self, peer: str, sha256s: Sequence[str], cancellation: Cancellation) -> bytes:
        raise Transient("unreachable", f"no bundle from {peer}", "ask another")

    def note_transfer(self, peer: str, error: HoldfastError | None) -> None:
        """Note nothing."""

    def target_of(self, peer: str, piece: Piece, version: str | None) -> HttpTarget:
        return HttpTarget(f"http://{peer}/{piece.sha256}")


def test_a_flood_of_versions_asks_a_bounded_number_of_members(tmp_path: Path) -> None:
    """Each announce of a version that this node never heard of has it ask all members for seeds; where too many
    questions wait already, no node is asked, and the version is answered all the same."""
    link = Link()
    places = [MemberAddress(f"10.0.{n >> 8}.{n & 255}", 9402) for n in range(MEMBERS)]
    membership = Membership(places, 1, lambda host, port: [f"{host}:{port}"])
    membership.start()
    node = PoolNode(Layout(tmp_path), str, membership, link, lambda: True, lambda: None)
    try:
        for n in range(20):
            pieces = PieceMap([(f"{n:064x}", 1 << 20)])
            message = Announce(pieces.key, 1, "", 0, 1, blobs=pieces.blobs)
            assert node.announce(f"10.9.0.{n}:9402", message, n / 10).active
    finally:
        link.let_go.set()
        membership.close()
        node.close()
    assert link.asked <= 3 * MEMBERS


def test_a_version_that_all_left_is_asked_about_again(tmp_path: Path) -> None:
    """The first announce of a version after its nodes were forgotten asks all members for seeds, as the first one ever
    did: a node that comes later finds those that have it."""
    link = Link()
    link.let_go.set()
    membership = Membership(
        [MemberAddress("10.0.0.1", 9402), MemberAddress("10.0.0.2", 9402)], 1, lambda host, port: [f"{host}:{port}"]
    )
    membership.start()
    node = PoolNode(Layout(tmp_path), str, membership, link, lambda: True, lambda: None)
    pieces = PieceMap([("a" * 64, 1 << 20)])
    message = Announce(pieces.key, 1, "", 0, 1, blobs=pieces.blobs)
    try:
        for times, now in ((1, 100.0), (1, 101.0), (2, 160.0), (2, 161.0)):
            node.announce("10.0.0.1:9402", message, now)
            link.wait_asked(times)  # the other one
    finally:
        membership.close()
        node.close()


def test_a_seed_that_left_is_asked_again(tmp_path: Path) -> None:
    """A node that joins when the last seed has just left, and is remembered as alive, makes the tracker ask all members
    again once that is known to be gone: else it fetched a second copy, or nothing where the origin is gone too."""
    link = Link()
    link.let_go.set()
    membership = Membership([MemberAddress("10.0.0.1", 9402)], 1, lambda host, port: [f"{host}:{port}"])
    membership.start()
    node = PoolNode(Layout(tmp_path), str, membership, link, lambda: True, lambda: None)
    pieces = PieceMap([("a" * 64, 1 << 20)])
    seed = Announce(pieces.key, 1, "", 1, 0, blobs=pieces.blobs)
    joiner = Announce(pieces.key, 1, "", 0, 1, blobs=pieces.blobs)
    try:
        node.announce("10.0.0.1:9402", seed, 100.0)
        link.wait_asked(1)
        for second in range(1, 15):
            node.announce("10.0.0.1:9402", seed, 100.0 + second)
        granted = [node.announce("10.0.0.2:9402", joiner, 117.0 + second).grants for second in range(3)]
        link.wait_asked(2)
        assert granted == [()] * 3
    finally:
        membership.close()
        node.close()


class SeededLink(Link):
    """Members that all have the version, of which one knows its chaining values."""

    def __init__(self, chain: bytes) -> None:
        super().__init__()
        self._chain = chain

    def ask_for_seed(self, peer: str, message: Announce) -> Announce | None:
        return replace(message, have=all_bits(message.pieces), want=0)

    def read_chain(self, peer: str, version: str) -> bytes | None:
        return self._chain if peer == "10.0.0.2:9402" else None


def test_a_tracker_knows_the_chain_that_a_seed_told(tmp_path: Path) -> None:
    """The tracker of a version that it neither has nor fetches tells the chaining values that a seed knows, so that no
    node has to find that seed; of another version it tells nothing."""
    chain = bytes(32)
    membership = Membership(
        [MemberAddress(f"10.0.0.{n}", 9402) for n in (1, 2)], 1, lambda host, port: [f"{host}:{port}"]
    )
    membership.start()
    node = PoolNode(Layout(tmp_path), str, membership, SeededLink(chain), lambda: True, lambda: None)
    versions = [PieceMap([(digit * 64, 2 * PIECE_BYTES)]) for digit in "ab"]
    try:
        for pieces in versions:
            node.announce("10.0.0.9:9402", Announce(pieces.key, 2, "", 0, 3, blobs=pieces.blobs), time.monotonic())
            eventually(partial(node.read_chain, pieces.key))
        assert [node.read_chain(each.key) for each in versions] == [chain, chain]
        assert node.read_chain("b" * 64) is None
        assert not node.want_digests(pieces.key)
    finally:
        membership.close()
        node.close()


def test_a_node_that_announces_is_not_asked(tmp_path: Path) -> None:
    """A node that has announced a version before its turn comes is not asked whether it has it: when a thousand
    nodes begin together, nothing is dealt before the last one is asked."""
    link = Link()
    count = 200
    places = [MemberAddress(f"10.0.0.{n}", 9402) for n in range(count)]
    membership = Membership(places, 1, lambda host, port: [f"{host}:{port}"])
    membership.start()
    node = PoolNode(Layout(tmp_path), str, membership, link, lambda: True, lambda: None)
    pieces = PieceMap([("a" * 64, 1 << 20)])
    message = Announce(pieces.key, 1, "", 0, 1, blobs=pieces.blobs)
    try:
        for n in range(count):
            node.announce(f"10.0.0.{n}:9402", message, n / 1000)
        link.let_go.set()
        late = (f"10.{n >> 8}.{n & 255}.9:9402" for n in range(256, 4000))
        eventually(lambda: node.announce(next(late), message, 1.0).grants)
    finally:
        link.let_go.set()
        membership.close()
        node.close()
    assert link.asked <= 32
