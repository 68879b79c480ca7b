"""Pieces of a blob from other nodes: checked before they count, and no fault of the source when they fail.

The peers are scripted servers; one is the daemon's own port.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.errors import DigestMismatch, HoldfastError, Transient
from cached.contract.layout import Layout
from cached.fetch.blob import SEGMENT_BYTES, Segment
from cached.fetch.pool.held_version import Holders
from cached.fetch.supply import Assignment, PeerPiece, Receipt, SupplyMaker, is_whole_piece, piece_around
from cached.peers.access import PoolKeys, SignedRequest
from cached.peers.chaining import ChainHasher, step_at
from cached.peers.pieces import Piece
from cached.peers.serving.contents import Contents, NoPartials
from cached.peers.serving.server import PeerServer, ServerSettings
from cached.store.blob.ingest import Ingest
from cached.transport.target import HttpTarget
from tests.support.fetching import (
    DEADLINE_S,
    MIB,
    Engine,
    Hold,
    Plenty,
    check_committed,
    eventually,
    http,
    noise,
    open_engine,
    private_files,
    ranges_of,
    spec_of,
)
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import (
    Extra,
    Fault,
    FlipBit,
    Hangup,
    IgnoreRange,
    Redirect,
    ResetAfter,
    Stall,
    Status,
    Truncate,
)
from tests.support.pooling import Tracking

LONG = noise()  # two pieces and a short one: long enough to be recorded
DATA = LONG[: SEGMENT_BYTES + 2 * MIB + 5]
PIECES = 2


class Pool:
    """A supply of one blob: each whole piece of the first peer that has not failed, else of the origin. A peer that
    sent wrong bytes, or none, is left."""

    def __init__(self, data: bytes, *peers: str) -> None:
        self._digests = {
            at: hashlib.sha256(data[at : at + SEGMENT_BYTES]).hexdigest() for at in range(0, len(data), SEGMENT_BYTES)
        }
        self._size = len(data)
        self._lock = threading.Lock()
        self.peers = list(peers)
        self.errors: list[str | None] = []
        self.received_from: list[str] = []
        self.distrusted = False
        self.losses = 0
        self.keeps_chain = False
        self.joins = False
        self.chain: bytes | None = None

    def target(self, peer: str, segment: Segment) -> HttpTarget:
        return HttpTarget(peer)

    def choose(self, segments: Sequence[Segment]) -> Assignment | None:
        segment = segments[0]
        with self._lock:
            if self.distrusted or not self.peers or not is_whole_piece(segment, self._size):
                return Assignment(segment, None)
            target = self.target(self.peers[0], segment)
            return Assignment(segment, PeerPiece(target, self._digests[segment.start], self.peers[0]))

    def has_work(self, segments: Sequence[Segment]) -> bool:
        return bool(segments)

    def received(self, assignment: Assignment, receipt: Receipt) -> None:
        assert assignment.piece is not None
        with self._lock:
            self.received_from.append(assignment.piece.target.url)

    def failed(self, assignment: Assignment, error: HoldfastError | None) -> None:
        assert assignment.piece is not None
        with self._lock:
            self.errors.append(None if error is None else error.code)
            if error is not None and assignment.piece.target.url in self.peers:
                self.peers.remove(assignment.piece.target.url)

    def pause_origin(self, until: float) -> bool:
        return False

    def note_chain(self, states: bytes) -> None:
        self.chain = states

    def lose(self) -> None:
        self.losses += 1

    def is_waited_for(self) -> bool:
        return False

    def distrust(self) -> None:
        self.distrusted = True


def fetch(engine: Engine, origin: HostileOrigin, pool: Pool, data: bytes = DATA) -> None:
    download = engine.launch(spec_of(data), http(origin.url("/f")), make_supply=lambda _: pool)
    check_committed(engine.layout, data, download.result.result(DEADLINE_S))


@pytest.fixture
def source(origin: HostileOrigin) -> HostileOrigin:
    """The origin, with the blob."""
    origin.put("/f", DATA, etag='"v1"')
    return origin


def serve_pieces(stack: ExitStack, *faults: Fault, data: bytes = DATA) -> HostileOrigin:
    """A peer that has the blob; its first answers have these faults."""
    peer = stack.enter_context(HostileOrigin(host="127.0.0.1"))
    peer.put("/p", data)
    peer.script("/p", *faults)
    return peer


def test_a_blob_comes_from_peers_alone(tmp_path: Path, source: HostileOrigin) -> None:
    """A blob whose pieces peers have is fetched without one request to the origin, and its bytes count as a peer's."""
    with ExitStack() as stack, open_engine(tmp_path / "root", 3) as engine:
        peer = serve_pieces(stack)
        pool = Pool(DATA, peer.url("/p"))
        fetch(engine, source, pool)
        assert len(pool.received_from) == PIECES
        assert engine.counts.peer_bytes == engine.counts.received_bytes == len(DATA)
        assert engine.counts.failures == []
        assert not source.requests
        assert len(private_files(engine.layout)) == 1


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (FlipBit(5 * MIB), "digest_mismatch"),
        (Truncate(9 * MIB + 7), "bad_response"),
        (ResetAfter(9 * MIB + 7), "reset"),
        (Stall(5 * MIB + 1), "stalled"),
        (Extra(), "bad_response"),
        (Hangup(), "reset"),
        (IgnoreRange(), "bad_response"),
        (Status(404), "not_found"),
        (Status(401), "unauthorized"),
        (Status(403), "forbidden"),
        (Status(503, {"Retry-After": "60"}), "http_503"),
        (Status(500), "http_500"),
        (Redirect("/elsewhere"), None),
    ],
)
def test_a_peer_that_fails_is_no_fault_of_the_source(
    tmp_path: Path, source: HostileOrigin, fault: Fault, code: str | None
) -> None:
    """A peer that lies, stalls, stops, sends too much or too little, ignores the range, refuses or redirects: the piece
    is fetched elsewhere at once, the blob is right, and neither an error nor a pause of the source is counted."""
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack, fault)
        pool = Pool(DATA, peer.url("/p"))
        fetch(engine, source, pool)
        assert len(pool.errors) == 1
        assert code is None or pool.errors == [code]
        assert engine.counts.failures == []
        assert engine.counts.peer_mismatches == engine.counts.mismatches == (code == "digest_mismatch")
        assert sorted(at for at, _ in ranges_of(source.requests)) == [n * SEGMENT_BYTES for n in range(PIECES)]


def test_a_peer_that_is_gone_is_left(tmp_path: Path, source: HostileOrigin) -> None:
    """A port where nothing listens costs one try, and the origin sends the blob."""
    with ExitStack() as stack:
        peer = serve_pieces(stack)
        url = peer.url("/p")
    with open_engine(tmp_path / "root", 2) as engine:
        pool = Pool(DATA, url)
        fetch(engine, source, pool)
        assert set(pool.errors) == {"connect"}
        assert engine.counts.failures == []


def test_another_peer_takes_over(tmp_path: Path, source: HostileOrigin) -> None:
    """After one peer lied, another one sends the piece; the origin is not asked."""
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        liar, honest = serve_pieces(stack, FlipBit(3)), serve_pieces(stack)
        pool = Pool(DATA, liar.url("/p"), honest.url("/p"))
        fetch(engine, source, pool)
        assert pool.received_from == [honest.url("/p")] * PIECES
        assert not source.requests


def test_unchecked_bytes_are_not_durable(tmp_path: Path, source: HostileOrigin) -> None:
    """Bytes of a peer are recorded only after their piece was checked: a stop in the middle of a piece leaves none of
    it to go on from."""
    source.put("/f", LONG, etag='"v1"')
    hold = Hold()
    with ExitStack() as stack:
        peer = serve_pieces(stack, data=LONG)
        with open_engine(tmp_path / "root", 1) as engine:
            reached = threading.Event()

            class Pausing(Plenty):
                def grow(self, size: int) -> None:
                    if size > SEGMENT_BYTES:  # the second piece, of which a buffer has come
                        reached.set()
                        hold.let_go.wait(DEADLINE_S)

            pool = Pool(LONG, peer.url("/p"))
            download = engine.launch(spec_of(LONG), http(source.url("/f")), space=Pausing(), make_supply=lambda _: pool)
            assert reached.wait(DEADLINE_S)
            download.cancel()
            hold.let_go.set()
            assert download.result.exception(DEADLINE_S) is not None
            state = json.loads((engine.folder(spec_of(LONG)) / "state.json").read_bytes())
            assert state["done"] == [[0, SEGMENT_BYTES]]
        with open_engine(tmp_path / "root", 1) as engine:
            pool = Pool(LONG, peer.url("/p"))
            fetch(engine, source, pool, LONG)
            assert len(pool.received_from) == 2


def test_pieces_that_agree_on_wrong_bytes_are_not_committed(tmp_path: Path, source: HostileOrigin) -> None:
    """Where the pieces' digests themselves were a lie, the blob's own sha256 refuses them: nothing is committed, the
    blob comes from the origin, and the source is not blamed."""
    wrong = bytearray(DATA)
    wrong[33 * MIB] ^= 1
    with ExitStack() as stack, open_engine(tmp_path / "root", 2) as engine:
        peer = stack.enter_context(HostileOrigin(host="127.0.0.1"))
        peer.put("/p", bytes(wrong))
        pool = Pool(bytes(wrong), peer.url("/p"))
        fetch(engine, source, pool)
        assert pool.distrusted
        assert pool.losses == 1
        assert engine.counts.failures == []
        assert engine.counts.peer_mismatches == engine.counts.mismatches == 1
        assert len(private_files(engine.layout)) == 1


def test_a_wrong_source_is_still_told(tmp_path: Path, origin: HostileOrigin) -> None:
    """Where the origin itself has other bytes, peers or not, the download ends with `digest_mismatch`."""
    wrong = DATA[:-1] + bytes([DATA[-1] ^ 1])
    origin.put("/f", wrong, etag='"v1"')
    with open_engine(tmp_path / "root", 2) as engine:
        download = engine.launch(spec_of(DATA), http(origin.url("/f")), make_supply=lambda _: Pool(DATA))
        assert isinstance(download.result.exception(DEADLINE_S), DigestMismatch)


def test_a_partial_piece_is_the_origins(tmp_path: Path, source: HostileOrigin) -> None:
    """After the origin broke off within a piece, its rest is the origin's: a part of a piece cannot be checked."""
    source.script("/f", ResetAfter(9 * MIB))
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack)
        pool = Pool(DATA)
        download = engine.launch(spec_of(DATA), http(source.url("/f")), make_supply=lambda _: pool)
        eventually(lambda: len(source.requests) >= 1)
        pool.peers.append(peer.url("/p"))
        check_committed(engine.layout, DATA, download.result.result(DEADLINE_S))
        assert all(first % SEGMENT_BYTES == 0 for first, _ in ranges_of(peer.requests))


def test_a_rest_comes_as_its_whole_piece(tmp_path: Path, source: HostileOrigin) -> None:
    """What is left of a piece while the origin fails comes from a peer: the whole piece is checked, only what is left
    is written, and the other pieces are asked of peers without a pause."""
    source.script("/f", ResetAfter(9 * MIB))
    source.always("/f", Status(503, {"Retry-After": "3600"}))
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack)

        class Rests(ChainedPool):
            paused = False

            def choose(self, segments: Sequence[Segment]) -> Assignment | None:
                segment = segments[0]
                if not self.paused:
                    return Assignment(segment, None)
                extent = piece_around(segment, len(DATA))
                step = step_at(self._sha256, extent.start, self.states)
                piece = PeerPiece(HttpTarget(peer.url("/p")), None, "peer", step, None if segment == extent else extent)
                return Assignment(segment, piece)

            def pause_origin(self, until: float) -> bool:
                self.paused = True
                return True

        pool = Rests(DATA)
        fetch(engine, source, pool)
        assert len(source.requests) == 1
        assert [first for first, _ in ranges_of(peer.requests)] == [0, SEGMENT_BYTES]
        assert pool.chain == pool.states


def test_a_wrong_rest_is_not_written(tmp_path: Path, source: HostileOrigin) -> None:
    """A peer whose piece is wrong outside of what is left of it is refused too: it is not what was asked for."""
    source.script("/f", ResetAfter(9 * MIB))
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack, FlipBit(3))

        class OneRest(Pool):
            def choose(self, segments: Sequence[Segment]) -> Assignment | None:
                segment, extent = segments[0], piece_around(segments[0], len(DATA))
                if is_whole_piece(segment, len(DATA)) or self.errors:
                    return Assignment(segment, None)
                piece = PeerPiece(HttpTarget(peer.url("/p")), self._digests[extent.start], "peer", None, extent)
                return Assignment(segment, piece)

        pool = OneRest(DATA)
        fetch(engine, source, pool)
        assert pool.errors == ["digest_mismatch"]


def test_no_proxy_and_no_netrc_for_peers(
    tmp_path: Path, source: HostileOrigin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer is asked directly and without the environment's passwords, though the origin is asked through both."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack)
        fetch(engine, source, Pool(DATA, peer.url("/p")))
        assert all("authorization" not in seen.headers for seen in peer.requests)


def test_a_full_disk_is_not_the_peers_fault(tmp_path: Path, source: HostileOrigin) -> None:
    """Where there is no space for a piece, the download ends with that, and the peer is kept."""

    class Full(Plenty):
        def grow(self, size: int) -> None:
            if size:  # the file is made before the first piece
                raise Transient("no_space", "no space", "")

    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack)
        pool = Pool(DATA, peer.url("/p"))
        download = engine.launch(spec_of(DATA), http(source.url("/f")), space=Full(), make_supply=lambda _: pool)
        error = download.result.exception(DEADLINE_S)
        assert isinstance(error, HoldfastError)
        assert error.code == "no_space"
        assert pool.errors == [None]


class ChainedPool(Pool):
    """The same, whose pieces are checked by the chain of `data`, not by a sha256 of their own."""

    def __init__(self, data: bytes, *peers: str, sha256: str = "") -> None:
        super().__init__(data, *peers)
        self.keeps_chain = True
        hasher = ChainHasher()
        hasher.update(data)
        self.states = hasher.states()
        self._sha256 = sha256 or hasher.hexdigest()

    def choose(self, segments: Sequence[Segment]) -> Assignment | None:
        found = super().choose(segments)
        if found is None or found.piece is None:
            return found
        step = step_at(self._sha256, found.segment.start, self.states)
        return replace(found, piece=replace(found.piece, sha256=None, step=step))


def test_a_chained_blob_costs_one_hash(tmp_path: Path, source: HostileOrigin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob whose pieces were checked by the chain is committed without being read again, and its chain is told."""
    monkeypatch.setattr(Ingest, "read", None)
    with ExitStack() as stack, open_engine(tmp_path / "root", 3) as engine:
        peer = serve_pieces(stack)
        pool = ChainedPool(DATA, peer.url("/p"))
        fetch(engine, source, pool)
        assert not source.requests
        assert pool.chain == pool.states


def test_pieces_of_the_origin_continue_a_chain(tmp_path: Path, source: HostileOrigin) -> None:
    """Where the peer is gone after a piece, the origin's bytes and the checked ones end in the blob's sha256."""
    source.put("/f", LONG, etag='"v1"')
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack, data=LONG)

        class OnePiece(ChainedPool):
            def received(self, assignment: Assignment, receipt: Receipt) -> None:
                super().received(assignment, receipt)
                self.peers.clear()

        pool = OnePiece(LONG, peer.url("/p"))
        fetch(engine, source, pool, LONG)
        assert len(peer.requests) == 1
        assert pool.chain == pool.states


@pytest.mark.parametrize("wrong_at", [0, 33 * MIB])
def test_a_forged_chain_commits_nothing(tmp_path: Path, source: HostileOrigin, wrong_at: int) -> None:
    """The chain of other bytes, and a peer that sends these, cannot reach the blob's sha256: the blob comes from the
    origin, right, and the source is not blamed."""
    wrong = bytearray(DATA)
    wrong[wrong_at] ^= 1
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack, data=bytes(wrong))
        pool = ChainedPool(bytes(wrong), peer.url("/p"), sha256=hashlib.sha256(DATA).hexdigest())
        fetch(engine, source, pool)
        assert pool.errors == ["digest_mismatch"]
        assert engine.counts.failures == []
        assert engine.counts.peer_mismatches == engine.counts.mismatches >= 1


def test_a_wrong_state_costs_the_piece(tmp_path: Path, source: HostileOrigin) -> None:
    """Right bytes that a wrong state contradicts come from elsewhere: nothing wrong is committed, nothing right is
    refused for good."""
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack)
        pool = ChainedPool(DATA, peer.url("/p"))
        pool.states = bytes(len(pool.states))
        fetch(engine, source, pool)
        assert pool.errors == ["digest_mismatch"]
        assert len(source.requests) == PIECES


SMALL = DATA[: MIB // 2]


def small_supply(*peers: HostileOrigin) -> SupplyMaker:
    """The supply of a small blob at these nodes."""

    class Addresses:
        def target_of(self, peer: str, piece: Piece, version: str | None) -> HttpTarget:
            return HttpTarget(f"http://{peer}/p")

    found = Holders(Addresses(), [each.url("").removeprefix("http://") for each in peers]).make_supply_of(
        spec_of(SMALL)
    )
    assert found is not None
    return found


def fetch_small(engine: Engine, origin: HostileOrigin, supply: SupplyMaker) -> None:
    download = engine.launch(spec_of(SMALL), http(origin.url("/s")), make_supply=supply)
    check_committed(engine.layout, SMALL, download.result.result(DEADLINE_S))


@pytest.mark.parametrize("fault", [None, FlipBit(7), Truncate(999), Extra(), Hangup(), Status(404), Status(503)])
def test_a_small_blob_comes_from_a_holder_or_the_origin(
    tmp_path: Path, origin: HostileOrigin, fault: Fault | None
) -> None:
    """A small blob comes whole from a node that has it; where that node fails in any way, from the origin, which is
    neither blamed nor paused, and wrong bytes are counted."""
    origin.put("/s", SMALL, etag='"v1"')
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        faults = () if fault is None else (fault,)
        fetch_small(engine, origin, small_supply(serve_pieces(stack, *faults, data=SMALL)))
        assert len(origin.requests) == (fault is not None)
        assert engine.counts.failures == []
        assert engine.counts.peer_mismatches == engine.counts.mismatches == isinstance(fault, FlipBit)
        if fault is None:
            assert engine.counts.peer_bytes == engine.counts.received_bytes == len(SMALL)


def test_a_small_blob_begins_anew_at_a_holder(tmp_path: Path, origin: HostileOrigin) -> None:
    """Where the holders were busy and the origin then broke off, the next try is the whole blob of a holder: the
    origin's part neither counts twice nor is missing."""
    origin.put("/s", SMALL, etag='"v1"')
    origin.always("/s", ResetAfter(100_000))
    with ExitStack() as stack, open_engine(tmp_path / "root", 1) as engine:
        peer = serve_pieces(stack, Status(503), data=SMALL)
        fetch_small(engine, origin, small_supply(peer))
        assert len(peer.requests) == 2
        assert len(origin.requests) == 1


def test_the_daemons_own_port_serves_pieces(tmp_path: Path, source: HostileOrigin) -> None:
    """One node's committed blob reaches another node through the port for peers, and nothing is asked of the origin."""
    keys = PoolKeys([b"a key of thirty-two characters.."])
    layout = Layout(tmp_path / "other")
    sha256 = hashlib.sha256(DATA).hexdigest()
    os.makedirs(layout.blob(sha256).parent)
    layout.blob(sha256).write_bytes(DATA)

    class Uncounted:
        def sent(self, size: int) -> None:
            """Count nothing."""

        def refused(self, status: int) -> None:
            """Count nothing."""

    class SignedPool(Pool):
        def target(self, peer: str, segment: Segment) -> HttpTarget:
            wanted = f"bytes={segment.start}-{(segment.end or 0) - 1}"
            signed = keys.sign(SignedRequest("GET", f"/v1/blobs/sha256/{sha256}", wanted), time.time())
            return HttpTarget(peer, headers=(("Authorization", signed),))

    server = PeerServer(Contents(layout, NoPartials()), Tracking(), lambda: keys, ServerSettings(), Uncounted())
    host, port = server.open(("127.0.0.1", 0))
    try:
        with open_engine(tmp_path / "root", 3) as engine:
            pool = SignedPool(DATA, f"http://{host}:{port}/v1/blobs/sha256/{sha256}")
            fetch(engine, source, pool)
            assert len(pool.received_from) == PIECES
            assert not source.requests
    finally:
        server.close()
