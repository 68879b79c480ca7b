"""The pieces of a version, sets of their numbers, and who tracks it."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.peers import bits
from cached.peers.members import TRACKERS, format_address, parse_address, rank_members, trackers_of
from cached.peers.pieces import MAX_PIECES, PIECE_BYTES, Piece, PieceMap

A, B = "a" * 64, "b" * 64
SETS = st.sets(st.integers(0, 5000))


@given(SETS, st.integers(0, 100))
def test_a_set_survives_the_wire(numbers: set[int], seed: int) -> None:
    """A set of pieces is the same after its bitmap, and a picked number is one of them."""
    found = bits.set_of(numbers)
    assert bits.decode(bits.encode(found, 5001), 5001) == found
    assert list(bits.numbers_in(found)) == sorted(numbers)
    if numbers:
        assert bits.pick(found, random.Random(seed)) in numbers
        assert bits.lowest(found) == min(numbers)


@given(st.binary(max_size=4), st.integers(1, 40))
def test_a_bitmap_has_one_bit_a_piece(data: bytes, count: int) -> None:
    """A bitmap of another length, or with a bit beyond the last piece, is refused."""
    try:
        found = bits.decode(data, count)
    except ValueError:
        assert len(data) != (count + 7) // 8 or int.from_bytes(data, "little") >> count
    else:
        assert bits.encode(found, count) == data


def test_the_pieces_follow_from_the_blobs_alone() -> None:
    """The same blobs have the same key and numbers, in whatever order they are listed; another size is another key."""
    blobs = [(B, PIECE_BYTES), (A, 2 * PIECE_BYTES + 1)]
    one, other = PieceMap(blobs), PieceMap(reversed(blobs))
    assert (one.key, one.count) == (other.key, 4)
    assert PieceMap([(B, PIECE_BYTES), (A, 2 * PIECE_BYTES + 2)]).key != one.key
    assert one.find(2) == Piece(A, 2 * PIECE_BYTES, 2 * PIECE_BYTES + 1)
    assert one.find(3) == Piece(B, 0, PIECE_BYTES)
    assert one.number_at(A, PIECE_BYTES) == 1
    assert list(bits.numbers_in(one.pieces_of(A))) == [0, 1, 2]


@given(st.lists(st.integers(1, 5 * PIECE_BYTES), min_size=1, max_size=6))
def test_pieces_cover_each_byte_once(sizes: list[int]) -> None:
    """Each byte of each blob is in exactly one piece, whose number its offset gives."""
    blobs = [(f"{n:064x}", size) for n, size in enumerate(sizes)]
    pieces = PieceMap(blobs)
    ends = dict.fromkeys(dict(blobs), 0)
    for number in range(pieces.count):
        piece = pieces.find(number)
        assert piece.start == ends[piece.sha256] < piece.end <= piece.start + PIECE_BYTES
        assert pieces.number_at(piece.sha256, piece.start) == number
        ends[piece.sha256] = piece.end
    assert ends == dict(blobs)


@pytest.mark.parametrize(
    "blobs", [[], [("a" * 63, 1)], [(A, 0)], [(A, -1)], [(A, 1), (A, 2)], [(A, (MAX_PIECES + 1) * PIECE_BYTES)]]
)
def test_blobs_out_of_bounds_are_refused(blobs: list[tuple[str, int]]) -> None:
    """No blobs, a bad digest, a bad size, one digest with two sizes, or too many pieces are a ValueError."""
    with pytest.raises(ValueError, match="expected"):
        PieceMap(blobs)


def test_a_number_or_a_byte_beyond_the_last_is_refused() -> None:
    """A piece that a version does not have is an error, never another piece."""
    pieces = PieceMap([(A, PIECE_BYTES)])
    for number in (-1, 1):
        with pytest.raises(IndexError):
            pieces.find(number)
    for sha256, offset in ((A, PIECE_BYTES), (A, -1), (B, 0)):
        with pytest.raises(KeyError):
            pieces.number_at(sha256, offset)


def test_all_nodes_agree_on_the_trackers() -> None:
    """The trackers do not depend on the members' order, differ between versions, and only those of a member that left
    change."""
    members = [f"10.0.0.{n}:9402" for n in range(1, 200)]
    shuffled = random.Random(1).sample(members, len(members))
    firsts = set()
    for version in (f"{n:064x}" for n in range(40)):
        found = trackers_of(version, members)
        assert found == trackers_of(version, shuffled)
        assert len(found) == TRACKERS
        ranked = rank_members(version, members)
        assert trackers_of(version, [each for each in members if each != ranked[1]]) == (ranked[0], *ranked[2:4])
        firsts.add(found[0])
    assert len(firsts) > 20


@pytest.mark.parametrize("text", ["10.0.0.1:9402", "[fd00::1]:1", "127.0.0.1:65535"])
def test_an_address_has_one_text(text: str) -> None:
    """An address is read and written the same."""
    assert format_address(*parse_address(text)) == text


NO_ADDRESSES = ["", "a", "host:1", "10.0.0.1", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:+1", "fd00::1:1"]


@pytest.mark.parametrize(
    "text",
    [
        *NO_ADDRESSES,
        "10.0.0.1:\u0661",
        "[10.0.0.1]:1",
        "10.0.0.1:01",
        "[fd00:0::1]:1",
        "10.0.0.1:1\r\nx: y",
        "010.0.0.1:1",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    """A name, a missing or strange port, or another spelling of an address is a ValueError."""
    with pytest.raises(ValueError, match="expected"):
        parse_address(text)
