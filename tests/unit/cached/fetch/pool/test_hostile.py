"""A node of a pool whose only neighbour, by real sockets, is not what it says: the version is right, and nothing is the
source's fault."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.daemon.pool import PoolTls, TlsOptions
from cached.fetch.blob import SEGMENT_BYTES
from cached.fetch.pool.peer_states import PeerState
from cached.peers import bits
from cached.peers.access import PoolKeys
from cached.peers.messages import Announce, PieceDigest, encode_announce
from cached.peers.pieces import PieceMap
from cached.peers.serving.tls_files import TlsPaths
from tests.support.certificates import make_certificates
from tests.support.fetching import MIB, noise, ranges_of
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import (
    Content,
    Drip,
    Endless,
    Extra,
    Fault,
    FlipBit,
    IgnoreRange,
    Raw,
    Status,
)
from tests.support.pooling import PoolMember, open_pools

DATA = noise()[: SEGMENT_BYTES + MIB + 5]
SHA256 = hashlib.sha256(DATA).hexdigest()
PIECES = PieceMap([(SHA256, len(DATA))])
ALL = bits.all_bits(PIECES.count)
TRUE = tuple(
    PieceDigest(n, hashlib.sha256(DATA[n * SEGMENT_BYTES : (n + 1) * SEGMENT_BYTES]).hexdigest())
    for n in range(PIECES.count)
)
CLAIM = Announce(PIECES.key, PIECES.count, "", ALL, 0, digests=TRUE)


class Neighbour(HostileOrigin):
    """A member that says that it has the whole version, and tells the sha256 of its pieces."""

    def __init__(self, claim: Announce = CLAIM) -> None:
        super().__init__(host="127.0.0.1")
        self.blob_path = f"/v1/blobs/sha256/{SHA256}"
        self.bitmap_path = f"/v1/versions/{PIECES.key}/pieces"
        self.put(self.blob_path, DATA)
        self.always("/v1/seeds", Content(encode_announce(claim)))
        self.always(self.bitmap_path, Content(bits.encode(ALL, PIECES.count)))

    def was_asked_for_bytes(self) -> bool:
        return any(seen.path.partition("?")[0] == self.blob_path for seen in self.requests)


@contextmanager
def beside(neighbour: Neighbour, folder: Path) -> Iterator[PoolMember]:
    """A node whose only neighbour is this one, which runs already."""
    with open_pools(folder, 1, [neighbour.port]) as pools:
        yield pools.add()


@pytest.fixture
def source(origin: HostileOrigin) -> HostileOrigin:
    """The origin, with the blob."""
    origin.put("/f", DATA, etag='"v1"')
    return origin


def check_one_copy(node: PoolMember, source: HostileOrigin) -> None:
    """The origin sent each piece once at most, and neither an error nor a pause of it was counted."""
    starts = [first for first, _ in ranges_of(source.requests)]
    assert len(starts) == len(set(starts))
    assert node.engine.counts.failures == []


def test_a_neighbour_that_is_honest_is_enough(tmp_path: Path, source: HostileOrigin) -> None:
    """The claim of the neighbour is believed as far as its bytes check: then the origin sends nothing."""
    with Neighbour() as neighbour, beside(neighbour, tmp_path) as node:
        node.begin(DATA, source.url("/f"))()
        assert not source.requests
        assert node.link.states.count(PeerState.LIVE, [f"127.0.0.1:{neighbour.port}"]) == 1


@pytest.mark.parametrize(
    "fault",
    [
        FlipBit(5),
        Extra(),
        IgnoreRange(),
        Endless(),
        Drip(MIB),
        Status(404),
        Raw(b"\x16\x03\x01 no HTTP at all \x00" * 100),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_a_neighbour_that_claims_all_and_gives_no_good_byte_is_left(
    tmp_path: Path, source: HostileOrigin, fault: Fault
) -> None:
    """A neighbour whose every answer is wrong, too long, whole in place of a range, without an end, slow, an error or
    no HTTP is asked, left and reported: the origin sends the version, once, and is not blamed."""
    with Neighbour() as neighbour, beside(neighbour, tmp_path) as node:
        neighbour.always(neighbour.blob_path, fault)
        node.begin(DATA, source.url("/f"))()
        assert neighbour.was_asked_for_bytes()
        check_one_copy(node, source)
        assert (node.engine.counts.peer_mismatches > 0) == isinstance(fault, FlipBit)
        is_wrong = node.link.states.count(PeerState.WRONG, [f"127.0.0.1:{neighbour.port}"]) == 1
        assert is_wrong or not isinstance(fault, (FlipBit, IgnoreRange))


@pytest.mark.parametrize(
    "fault",
    [Content(b"\xff" * 16384), Content(b"\xff"), Endless()],
    ids=["length", "beyond", "endless"],
)
def test_an_absurd_bitmap_is_no_answer(tmp_path: Path, source: HostileOrigin, fault: Fault) -> None:
    """A bitmap of another length, with bits beyond the last piece, or without an end: the neighbour is left, and is not
    asked for a byte."""
    with Neighbour() as neighbour, beside(neighbour, tmp_path) as node:
        neighbour.always(neighbour.bitmap_path, fault)
        node.begin(DATA, source.url("/f"))()
        assert not neighbour.was_asked_for_bytes()
        check_one_copy(node, source)


def spoiled(**changes: object) -> bytes:
    return json.dumps(json.loads(encode_announce(CLAIM)) | changes).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        spoiled(protocol=2),
        spoiled(version="d" * 64),
        spoiled(pieces=1 << 17, have="A" * 22_000),
        bytes(2 * MIB),
    ],
    ids=["nested", "protocol", "version", "bitmap", "length"],
)
def test_an_absurd_claim_is_none(tmp_path: Path, source: HostileOrigin, body: bytes) -> None:
    """What a member answers to the question for seeds, where it is no announce, of another protocol, of another version
    or of other pieces, is no claim: the origin sends the version at once, and nothing waits for that member."""
    with Neighbour() as neighbour, beside(neighbour, tmp_path) as node:
        neighbour.always("/v1/seeds", Content(body))
        node.begin(DATA, source.url("/f"))()
        assert not neighbour.was_asked_for_bytes()
        check_one_copy(node, source)


def test_digests_that_are_a_lie_are_found_by_the_blobs_own(tmp_path: Path, source: HostileOrigin) -> None:
    """A neighbour that tells wrong digests and sends what they say: the blob's own sha256 refuses the whole, and the
    origin sends it."""
    wrong = bytearray(DATA)
    wrong[SEGMENT_BYTES // 2] ^= 1
    told = PieceDigest(0, hashlib.sha256(wrong[:SEGMENT_BYTES]).hexdigest())
    with Neighbour(Announce(PIECES.key, PIECES.count, "", ALL, 0, digests=(told, *TRUE[1:]))) as neighbour:
        neighbour.put(neighbour.blob_path, bytes(wrong))
        with beside(neighbour, tmp_path) as node:
            node.begin(DATA, source.url("/f"))()
            check_one_copy(node, source)
            assert node.engine.counts.peer_mismatches == 1


def test_two_pools_on_one_network_do_not_mix(tmp_path: Path, source: HostileOrigin) -> None:
    """Two pools whose nodes all know each other's addresses, and want the same version at the same time: each fetches
    one copy of its own, no node of the other ever gives a byte or is tracked, and nothing is an error of the source."""
    other = PoolKeys([b"the key of the other pool, of 40 letters"])
    with open_pools(tmp_path, 4) as pools:
        ours = [pools.add(), pools.add()]
        theirs = [pools.add(other), pools.add(other)]
        for finish in [node.begin(DATA, source.url("/f")) for node in (*ours, *theirs)]:
            finish()
        for pool in (ours, theirs):
            sent = sum(node.served.sent_bytes for node in pool)
            assert sent == sum(node.engine.counts.peer_bytes for node in pool)
            assert all(set(node.served.refusals) >= {401} for node in pool)
        starts = [first for first, _ in ranges_of(source.requests)]
        assert all(starts.count(first) == 2 for first in set(starts))


def test_a_node_in_clear_is_no_member_of_a_pool_that_speaks_tls(
    tmp_path: Path, source: HostileOrigin, caplog: pytest.LogCaptureFixture
) -> None:
    """Nodes that speak TLS fetch one copy together; one with the same key that speaks in clear gets nothing from them,
    has the version from the origin, and the log says why, once for each node on either side."""
    certificates = make_certificates(tmp_path, "peers.example")
    paths = TlsPaths(certificates.certificate, certificates.key, certificates.authority)
    with open_pools(tmp_path, 3) as pools:
        clear = pools.add()
        secret = [pools.add(tls=PoolTls(TlsOptions(paths, "peers.example"))) for _ in range(2)]
        for finish in [node.begin(DATA, source.url("/f")) for node in (clear, *secret)]:
            finish()
        assert clear.served.sent_bytes == clear.engine.counts.peer_bytes == 0
        assert sum(node.engine.counts.peer_bytes for node in secret) >= MIB
        starts = [first for first, _ in ranges_of(source.requests)]
        assert all(starts.count(first) == 2 for first in set(starts))
    refused = [each.getMessage() for each in caplog.records if "--peer-tls-cert" in each.getMessage()]
    assert 0 < max(map(refused.count, refused)) <= len(secret)
