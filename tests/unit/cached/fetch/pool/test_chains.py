"""The chaining values of one version: what other nodes may say of them, and what counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.fetch.pool.chains import VersionChains
from cached.fetch.pool.link import HttpPoolLink
from cached.fetch.pool.membership import Membership
from cached.fetch.workers import PEER_HTTP
from cached.peers.access import PoolKeys
from cached.peers.chaining import STATE_BYTES, step_at
from cached.peers.pieces import MAX_PIECES, PIECE_BYTES, PieceMap
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Endless, Fault, Hangup, ResetAfter, Status, Truncate

LONG, SHORT, WHOLE = "1" * 64, "2" * 64, "3" * 64  # of three pieces, of one, and of two whole ones
PIECES = PieceMap([(LONG, 2 * PIECE_BYTES + 1), (SHORT, 5), (WHOLE, 2 * PIECE_BYTES)])
TOLD = bytes(range(3 * STATE_BYTES))
VERSION, KEYS = PIECES.key, PoolKeys([b"a key of thirty-two characters.."])


def test_a_blob_of_one_piece_needs_no_word() -> None:
    """The step of a blob's only piece goes from the first state to its sha256: it is known before any node says so, and
    a piece that contradicts it is wrong. Of a longer blob either may be."""
    chains = VersionChains(PIECES)
    assert chains.known_pieces == PIECES.pieces_of(SHORT)
    assert chains.find_step(SHORT, 0) == step_at(SHORT, 0, b"")
    assert chains.find_step(LONG, 0) is None
    assert chains.take("a node", TOLD)
    assert (chains.is_certain(SHORT), chains.is_certain(LONG)) == (True, False)


def test_what_was_told_is_told_on_until_it_is_dropped() -> None:
    """The states of all blobs are told in the order of their pieces; after they were dropped, only what this node found
    out is known, and a chain with a gap is not told."""
    chains = VersionChains(PIECES)
    assert chains.encode() is None
    assert chains.take("a node", TOLD)
    assert chains.encode() == TOLD
    assert chains.find_step(WHOLE, PIECE_BYTES) == step_at(WHOLE, PIECE_BYTES, TOLD[2 * STATE_BYTES :])
    chains.keep(LONG, bytes(2 * STATE_BYTES))
    chains.keep(WHOLE, b"of another length")
    chains.drop()
    assert (chains.giver, chains.encode()) == (None, None)
    assert chains.known_pieces == PIECES.pieces_of(LONG) | PIECES.pieces_of(SHORT)
    assert chains.find_step(LONG, 0) == step_at(LONG, 0, bytes(2 * STATE_BYTES))


def test_published_states_are_known_and_told() -> None:
    """What was published of a blob of this version, with the right length, is known, and told once all is; what another
    node tells of all blobs comes before it, and what was found out here before that."""
    chains = VersionChains(PIECES)
    chains.take_published({LONG: TOLD[: 2 * STATE_BYTES], WHOLE: b"of another length", "9" * 64: bytes(32)})
    assert chains.known_pieces == PIECES.pieces_of(LONG) | PIECES.pieces_of(SHORT)
    assert chains.find_step(LONG, 0) == step_at(LONG, 0, TOLD[: 2 * STATE_BYTES])
    assert (chains.is_known, chains.is_certain(LONG), chains.giver) == (False, False, None)
    chains.take_published({WHOLE: TOLD[2 * STATE_BYTES :]})
    chains.take_published({})
    assert chains.encode() == TOLD
    assert chains.take("a node", bytes(3 * STATE_BYTES))
    assert chains.encode() == bytes(3 * STATE_BYTES)


def test_refuted_states_are_not_taken_again() -> None:
    """Published states that a piece contradicted are not believed again, from any node; others are."""
    chains = VersionChains(PIECES)
    published = {LONG: TOLD[: 2 * STATE_BYTES], WHOLE: TOLD[2 * STATE_BYTES :]}
    assert not chains.drop()
    chains.take_published(published)
    assert not chains.is_refuted
    assert chains.drop()
    assert (chains.is_refuted, chains.encode()) == (True, None)
    assert not chains.take("a node", TOLD)
    chains.take_published(published)
    assert chains.known_pieces == PIECES.pieces_of(SHORT)
    assert chains.take("a node", bytes(3 * STATE_BYTES))


@given(st.binary(max_size=5 * STATE_BYTES) | st.binary(min_size=3 * STATE_BYTES, max_size=3 * STATE_BYTES))
def test_any_bytes_are_a_chain_or_none(data: bytes) -> None:
    """Whatever a node says is a state between each two pieces, or nothing."""
    chains = VersionChains(PIECES)
    assert chains.take("a node", data) is (len(data) == len(TOLD))
    assert chains.encode() == (data if len(data) == len(TOLD) else None)


@pytest.fixture
def peer() -> Iterator[HostileOrigin]:
    with HostileOrigin(host="127.0.0.1") as served:
        yield served


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (bytes(MAX_PIECES * STATE_BYTES + 1), None),
        (TOLD, Endless()),
        (TOLD, Truncate(7)),
        (TOLD, ResetAfter(7)),
        (TOLD, Hangup()),
        (TOLD, Status(404)),
        (TOLD, Status(503)),
    ],
)
def test_an_absurd_answer_is_none(peer: HostileOrigin, data: bytes, fault: Fault | None) -> None:
    """A node that sends more than any version has, breaks off, or refuses, says nothing; the next answer counts."""
    path = f"/v1/versions/{VERSION}/chain"
    peer.put(path, data)
    if fault is not None:
        peer.script(path, fault)
    address = peer.url("").removeprefix("http://")
    with ExitStack() as stack:
        client = stack.enter_context(closing(HttpClient(replace(PEER_HTTP, header_timeout_s=60.0))))
        link = HttpPoolLink(client, Membership([], 1), lambda: KEYS, 1, Cancellation())
        assert link.read_chain(address, VERSION) is None
        if fault is not None:
            assert link.read_chain(address, VERSION) == TOLD
