"""The messages of nodes and trackers: what survives the wire, and what is refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.peers.bits import all_bits
from cached.peers.messages import (
    MAX_BODY_BYTES,
    MAX_LISTED,
    Announce,
    BadMessage,
    PieceDigest,
    Reason,
    Reply,
    decode_announce,
    decode_holders,
    decode_reply,
    encode_announce,
    encode_holders,
    encode_reply,
)

KEY = "c" * 64
PIECES = st.integers(1, 3000)
SHA256S = st.binary(min_size=32, max_size=32).map(bytes.hex)
ADDRESSES = st.builds(lambda a, b: f"10.0.{a}.7:{b}", st.integers(0, 255), st.integers(1, 65535))


@st.composite
def announces(draw: st.DrawFn) -> Announce:
    count = draw(PIECES)
    numbers = st.lists(st.integers(0, count - 1), max_size=20).map(tuple)
    have = draw(st.integers(0, all_bits(count)))
    return Announce(
        version=KEY,
        pieces=count,
        zone=draw(st.sampled_from(["", "eu-1a", "a" * 63])),
        have=have,
        want=draw(st.integers(0, all_bits(count))) & ~have,
        working=draw(numbers),
        failed=draw(numbers),
        blames=draw(st.lists(st.tuples(ADDRESSES, st.sampled_from(Reason)), max_size=5).map(tuple)),
        digests=tuple(PieceDigest(n, draw(SHA256S)) for n in draw(numbers)),
        log=draw(st.sampled_from(["", "0f" * 16])),
        since=draw(st.integers(0, 3000)),
        neighbours=draw(st.integers(0, 32)),
        blobs=tuple((draw(SHA256S), n + 1) for n in draw(numbers)),
        tracker=draw(st.just("") | ADDRESSES),
    )


@st.composite
def replies(draw: st.DrawFn) -> tuple[Reply, int]:
    count = draw(PIECES)
    number = st.integers(0, count - 1)
    return Reply(
        grants=tuple(draw(st.lists(number, max_size=20))),
        imports=tuple(draw(st.lists(st.tuples(number, ADDRESSES), max_size=20))),
        neighbours=tuple(draw(st.lists(ADDRESSES, max_size=32))),
        digests=tuple(PieceDigest(draw(number), draw(SHA256S)) for _ in range(draw(st.integers(0, 9)))),
        log="ab",
        since=draw(st.integers(0, 3000)),
        active=draw(st.booleans()),
        under_way=draw(st.booleans()),
        tracker=draw(st.just("") | ADDRESSES),
    ), count


@given(announces())
def test_an_announce_survives_the_wire(message: Announce) -> None:
    """What a node says is what the tracker reads."""
    assert decode_announce(encode_announce(message)) == message


@given(replies())
def test_a_reply_survives_the_wire(found: tuple[Reply, int]) -> None:
    """What a tracker answers is what the node reads."""
    reply, count = found
    assert decode_reply(encode_reply(reply), count) == reply


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.binary(max_size=300) | JSON.map(lambda each: json.dumps(each).encode()))
def test_any_bytes_are_a_message_or_refused(body: bytes) -> None:
    """Whatever arrives is read or a `BadMessage`, and never another error."""
    for decode in (decode_announce, lambda data: decode_reply(data, 9)):
        with contextlib.suppress(BadMessage):
            decode(body)


@given(announces(), st.data())
def test_a_damaged_announce_is_within_bounds_or_refused(message: Announce, data: st.DataObject) -> None:
    """With any member replaced by anything, what is read is still within the bounds of its pieces."""
    document = json.loads(encode_announce(message))
    document[data.draw(st.sampled_from(sorted(document)))] = data.draw(JSON)
    with contextlib.suppress(BadMessage):
        found = decode_announce(json.dumps(document).encode())
        assert (found.have | found.want) >> found.pieces == 0
        assert not found.have & found.want
        assert all(0 <= piece < found.pieces for piece in (*found.working, *found.failed))
        assert all(each.piece < found.pieces for each in found.digests)


VALID = Announce(KEY, 9, "", 1, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": 2},
        {"protocol": True},
        {"version": "C" * 64},
        {"pieces": 0},
        {"pieces": 1 << 40},
        {"pieces": 8.0},
        {"pieces": True},
        {"zone": "a\nb"},
        {"zone": "a" * 64},
        {"have": "AAAA"},
        {"have": "AP8="},
        {"have": "AAA"},
        {"have": "A" * 1_000_000},
        {"have": "AwA="},  # piece 1 is wanted too
        {"working": [9]},
        {"working": [-1]},
        {"working": [True]},
        {"working": [0] * (MAX_LISTED + 1)},
        {"blames": [["10.0.0.1:1", "ugly"]]},
        {"blames": [["nowhere", "slow"]]},
        {"blames": [["10.0.0.1:1"]]},
        {"blames": [["10.0.0.1:1", "slow"]] * 33},
        {"digests": "AAAA"},
        {"log": "x"},
        {"since": -1},
        {"neighbours": 33},
        {"blobs": [["0" * 64, 0]]},
        {"blobs": [["0" * 63, 1]]},
        {"tracker": "nowhere"},
        {"tracker": None},
    ],
)
def test_what_is_out_of_bounds_is_refused(change: dict[str, Any]) -> None:
    """An absurd count, bitmap, list, address, digest or text, and another protocol, are a `BadMessage`."""
    document = json.loads(encode_announce(VALID))
    assert decode_announce(json.dumps(document).encode()) == VALID
    with pytest.raises(BadMessage):
        decode_announce(json.dumps(document | change).encode())


def test_a_long_body_is_not_parsed() -> None:
    """A body beyond the bound is refused by its length; deep nesting inside it is no crash."""
    with pytest.raises(BadMessage, match=str(MAX_BODY_BYTES)):
        decode_announce(b"[" * (MAX_BODY_BYTES + 1))
    with pytest.raises(BadMessage):
        decode_announce(b"[" * MAX_BODY_BYTES)


def test_holders_survive_the_wire() -> None:
    """The nodes that have a snapshot are read as they were written, each once."""
    assert decode_holders(encode_holders([])) == ()
    assert decode_holders(encode_holders(["10.0.0.1:9402", "[::1]:1", "10.0.0.1:9402"])) == ("10.0.0.1:9402", "[::1]:1")


@pytest.mark.parametrize("holders", [None, {}, [7], ["nowhere"], ["10.0.0.1:0"], ["10.0.0.1:9402"] * 17])
def test_holders_out_of_bounds_are_refused(holders: object) -> None:
    """Anything but a short list of addresses is a `BadMessage`."""
    with pytest.raises(BadMessage):
        decode_holders(json.dumps({"protocol": 1, "holders": holders}).encode())


def test_unknown_keys_are_ignored() -> None:
    """A newer node of the same protocol may say more."""
    document = json.loads(encode_announce(VALID)) | {"later": [1]}
    assert decode_announce(json.dumps(document).encode()) == VALID
