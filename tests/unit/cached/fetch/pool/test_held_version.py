"""A pinned version that other nodes hold: who is asked, and which manifest counts.

The other nodes are scripted servers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.contract.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest
from cached.fetch.pool.held_version import VersionAtPeers
from cached.fetch.pool.link import HttpPoolLink
from cached.fetch.pool.membership import MemberAddress, Membership
from cached.fetch.pool.node import PoolNode
from cached.fetch.workers import PEER_HTTP
from cached.peers.access import PoolKeys
from cached.peers.members import trackers_of
from cached.peers.messages import encode_holders
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.origin import HostileOrigin

MANIFEST = Manifest.build([FileEntry("a", "0" * 64, 3)])
PIN = MANIFEST.digest
HOLDERS, MANIFESTS, SNAPSHOTS = (f"/v1/{each}/sha256/{PIN.hex}" for each in ("holders", "manifests", "snapshots"))
KEYS = PoolKeys([b"a key of thirty-two characters.."])


class Others:
    """The other nodes of a pool, scripted; `ranked`: in their order as trackers of the pin."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        nodes = [stack.enter_context(HostileOrigin(host="127.0.0.1")) for _ in range(count)]
        self.by_address = {each.url("").removeprefix("http://"): each for each in nodes}
        self.ranked = [self.by_address[each] for each in trackers_of(PIN.hex, self.by_address)]
        self.wrong = self.counted = 0

    def count_wrong(self) -> None:
        self.wrong += 1

    def count(self) -> None:
        self.counted += 1

    def give(self, node: HostileOrigin, data: bytes | None) -> str:
        """Let a node have a snapshot and answer this for its manifest; return its address."""
        node.put(SNAPSHOTS, b"")
        if data is not None:
            node.put(MANIFESTS, data)
        return node.url("").removeprefix("http://")

    def asked(self, node: HostileOrigin, path: str) -> int:
        return sum(seen.path == path for seen in node.requests)


@contextmanager
def pool_node(tmp_path: Path, others: Others) -> Iterator[PoolNode]:
    """The node under test, which serves nothing itself."""
    places = [MemberAddress(host, int(port)) for host, _, port in (each.partition(":") for each in others.by_address)]
    with ExitStack() as stack:
        client = stack.enter_context(closing(HttpClient(PEER_HTTP)))
        membership = Membership(places, 1)
        membership.start()
        stack.callback(membership.close)
        link = HttpPoolLink(client, membership, lambda: KEYS, 1, Cancellation())
        node = PoolNode(Layout(tmp_path), str, membership, link, lambda: True, others.count)
        stack.callback(node.close)
        yield node


@pytest.fixture
def others() -> Iterator[Others]:
    with ExitStack() as stack:
        yield Others(stack, 3)


def find(node: PoolNode, others: Others) -> VersionAtPeers | None:
    return node.find_version(PIN, others.count_wrong, Cancellation())


def test_the_first_tracker_knows_who_has_it(tmp_path: Path, others: Others) -> None:
    """The first tracker of a manifest names its holders, of which one sends it: no other node is asked for anything."""
    tracker, holder, idle = others.ranked
    address = others.give(holder, MANIFEST.canonical())
    tracker.put(HOLDERS, encode_holders([address]))
    with pool_node(tmp_path, others) as node:
        found = find(node, others)
    assert found is not None
    assert (found.manifest, found.given_by) == (MANIFEST, address)
    assert (others.wrong, others.counted, len(idle.requests)) == (0, 1, 0)
    assert "authorization" in holder.requests[0].headers


def test_a_tracker_without_a_holder_is_believed(tmp_path: Path, others: Others) -> None:
    """Where the first tracker knows no holder there is none, until the members themselves are asked."""
    tracker, holder, _ = others.ranked
    tracker.put(HOLDERS, encode_holders([]))
    others.give(holder, MANIFEST.canonical())
    with pool_node(tmp_path, others) as node:
        assert find(node, others) is None
        assert not holder.requests
        assert node.search_version(PIN, others.count_wrong, Cancellation()) is not None


def test_members_are_asked_where_no_tracker_answers(tmp_path: Path, others: Others) -> None:
    """Trackers that know no such question, or answer nonsense, are passed over; then all members are asked."""
    first, second, holder = others.ranked
    first.put(HOLDERS, b"[]")
    second.put(HOLDERS, encode_holders(["nowhere"]))
    address = others.give(holder, MANIFEST.canonical())
    with pool_node(tmp_path, others) as node:
        found = find(node, others)
    assert found is not None
    assert found.given_by == address
    assert all(others.asked(each, HOLDERS) == 1 for each in others.ranked)


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (Manifest.build([FileEntry("a", "1" * 64, 3)]).canonical(), 1),
        (MANIFEST.canonical() + b" ", 1),
        (b"", 1),
        (bytes(MAX_MANIFEST_BYTES + 1), 1),
        (None, 0),
    ],
)
def test_another_manifest_is_refused(tmp_path: Path, others: Others, answer: bytes | None, wrong: int) -> None:
    """A holder that sends another manifest, more than a manifest may have, or none, is left, and wrong bytes are
    counted; the next holder is asked."""
    tracker, liar, honest = others.ranked
    peers = [others.give(liar, answer), others.give(honest, MANIFEST.canonical())]
    tracker.put(HOLDERS, encode_holders(peers))
    with pool_node(tmp_path, others) as node:
        found = find(node, others)
        assert found is not None
        assert found.given_by == peers[1]
        assert (others.wrong, others.counted) == (wrong, 1)
        piece = found.holders.choose("0" * 64, 3, ())
        assert piece is not None
        assert piece.peer == peers[1]
        assert found.holders.choose("0" * 64, 3, peers[1:]) is None


def test_who_is_asked_at_once_asks_once(tmp_path: Path, others: Others) -> None:
    """A node that is asked by many which members have a snapshot asks each member once, and names those that do."""
    _, holder, _ = others.ranked
    address = others.give(holder, None)
    with pool_node(tmp_path, others) as node:
        assert [node.find_holders(PIN) for _ in range(5)] == [(address,)] * 5
    assert all(others.asked(each, SNAPSHOTS) == 1 for each in others.ranked)


def test_a_lone_node_asks_nobody(tmp_path: Path) -> None:
    """Without other members there is no version to find, and no wait."""
    with ExitStack() as stack:
        others = Others(stack, 0)
        with pool_node(tmp_path, others) as node:
            assert find(node, others) is None
            assert node.find_holders(PIN) == ()
