"""Small blobs from other nodes: many in one request, by real sockets."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from cached.fetch.pool.held_version import Holders
from cached.fetch.pool.node import PoolNode
from cached.peers import bundles
from cached.peers.bundles import SMALL_BYTES, encode_record, encode_wanted
from cached.transport.connection.cancel import Cancellation
from tests.support.fetching import eventually
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Content, Endless, Fault, FlipBit, Raw, Status, Truncate
from tests.support.pooling import PoolMember, open_pools

FILES = [random.Random(n).randbytes(n % 97 + 1) + str(n).encode() for n in range(2000)]
BLOBS = {hashlib.sha256(content).hexdigest(): content for content in FILES}
SIZES = {sha256: len(content) for sha256, content in BLOBS.items()}


def commit(member: PoolMember, blobs: dict[str, bytes]) -> None:
    for sha256, content in blobs.items():
        path = member.engine.layout.blob(sha256)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


class CountingLink:
    """The way to other nodes, which counts the requests for bundles."""

    def __init__(self, member: PoolMember) -> None:
        self.requests: list[str] = []
        self._read = member.link.read_bundle
        member.link.read_bundle = self.read_bundle  # type: ignore[method-assign,assignment]

    def read_bundle(self, peer: str, sha256s: list[str], cancellation: Cancellation) -> bytes:
        self.requests.append(peer)
        return self._read(peer, sha256s, cancellation)


def receive(node: PoolNode, holders: Holders, sizes: dict[str, int]) -> tuple[dict[str, bytes], int]:
    """What was received, and how many answers were wrong."""
    wrong: list[None] = []
    return node.receive_small(holders, sizes, lambda: wrong.append(None), Cancellation()), len(wrong)


def test_two_thousand_small_files_are_one_request(tmp_path: Path) -> None:
    """All small files of a version come in one request from one node that has them; what it has not is asked of the
    next one, and what none has is left."""
    with open_pools(tmp_path, 3) as pools:
        first, second, third = pools.add(), pools.add(), pools.add()
        commit(first, BLOBS)
        link = CountingLink(third)
        found, wrong = receive(third.node, Holders(third.link, [first.address]), SIZES)
        assert (found, wrong, len(link.requests)) == (BLOBS, 0, 1)
        eventually(lambda: first.served.sent_bytes == sum(SIZES.values()))
        some = dict(list(BLOBS.items())[:5])
        commit(second, some)
        found, wrong = receive(third.node, Holders(third.link, [second.address]), SIZES)
        assert (found, wrong) == (some, 0)
        for path in [first.engine.layout.blob(sha256) for sha256 in some]:
            path.unlink()
        found, _ = receive(third.node, Holders(third.link, [first.address, second.address]), SIZES)
        assert found == BLOBS


def test_more_than_a_bundle_comes_in_several(tmp_path: Path) -> None:
    """Blobs that do not fit in one answer come in the next; memory is bounded, and the rest is left to the source."""
    contents = [bytes([n]) * SMALL_BYTES for n in range(70)]
    blobs = {hashlib.sha256(each).hexdigest(): each for each in contents}
    with open_pools(tmp_path, 2) as pools:
        first, second = pools.add(), pools.add()
        commit(first, blobs)
        link = CountingLink(second)
        found, _ = receive(second.node, Holders(second.link, [first.address]), dict.fromkeys(blobs, SMALL_BYTES))
        assert (len(link.requests), len(found)) == (2, 64)
        assert all(blobs[sha256] == content for sha256, content in found.items())


@pytest.mark.parametrize(
    "fault",
    [
        FlipBit(40),
        FlipBit(3),
        Truncate(50),
        Status(404),
        Status(503),
        Endless(),
        Raw(b"\x16\x03\x01 no HTTP at all \x00" * 100),
        Content(b"short"),
        Content(encode_record("a" * 64, 3) + b"abc"),
        Content(encode_record("a" * 64, 1 << 31)),
        Content(b""),
    ],
    ids=repr,
)
def test_a_node_that_sends_no_good_bundle_is_left(tmp_path: Path, fault: Fault) -> None:
    """Bytes that are wrong, cut off, without an end or none at all give no wrong file: the other node has them."""
    blobs = dict(list(BLOBS.items())[:9])
    with HostileOrigin(host="127.0.0.1") as liar, open_pools(tmp_path, 2, [liar.port]) as pools:
        first, second = pools.add(), pools.add()
        commit(first, blobs)
        liar.put("/v1/blobs", b"".join(encode_record(sha256, len(each)) + each for sha256, each in blobs.items()))
        liar.always("/v1/blobs", fault)
        bad = liar.url("").removeprefix("http://").rstrip("/")
        sizes = {sha256: len(content) for sha256, content in blobs.items()}
        found, wrong = receive(second.node, Holders(second.link, [bad]), sizes)
        assert found.items() < blobs.items()
        assert wrong <= 1
        assert receive(second.node, Holders(second.link, [bad, first.address]), sizes)[0] == blobs


def test_a_request_is_bounded(tmp_path: Path) -> None:
    """What is no list of digests gets an error, and no bytes."""
    with open_pools(tmp_path, 1) as pools:
        member = pools.add()
        for body in (b"x", encode_wanted(["a" * 64]) * (bundles.MAX_BUNDLED + 1)):
            member.link._post(member.address, "/v1/blobs", body, bytes)
        assert member.served.refusals == [400, 400]
