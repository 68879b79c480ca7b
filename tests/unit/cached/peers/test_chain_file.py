"""The file of chaining values that `holdfast publish` writes: what is read from it, and what is refused."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached.peers import chain_file
from cached.peers.chain_file import MAX_CHAIN_FILE_BYTES, BadChainFile, decode_chains, encode_chains
from cached.peers.chaining import STATE_BYTES

STATES = {"2" * 64: bytes(range(96)), "1" * 64: bytes(32), "a" * 64: b""}
WRITTEN = encode_chains(STATES) or b""

_blobs = st.binary(min_size=32, max_size=32).map(bytes.hex)
_states = st.integers(1, 4).flatmap(lambda count: st.binary(min_size=count * STATE_BYTES, max_size=count * STATE_BYTES))


def signed(data: bytes) -> bytes:
    """The same with the sum that it must end in."""
    return data + hashlib.sha256(data).digest()


@given(st.dictionaries(_blobs, _states, min_size=1, max_size=5))
def test_what_was_written_is_read(states: dict[str, bytes]) -> None:
    """The states of every blob come back, and the bytes do not depend on the order of the blobs."""
    data = encode_chains(states)
    assert data is not None
    assert decode_chains(data) == states
    assert encode_chains(dict(reversed(states.items()))) == data


def test_blobs_without_states_are_left_out() -> None:
    """A blob of one piece has no states and no record; where no blob has any, or there are more than a pool shares,
    there is no file."""
    assert decode_chains(WRITTEN) == {sha256: states for sha256, states in STATES.items() if states}
    assert encode_chains({"a" * 64: b""}) is None
    assert encode_chains({f"{number:064x}": bytes(32) for number in range(4097)}) is None
    assert encode_chains({"a" * 64: bytes(((1 << 17) + 1) * STATE_BYTES)}) is None


def test_the_largest_file_is_within_the_bound() -> None:
    """A file of as many states and blobs as a pool shares has at most the bytes that are read."""
    blobs = {f"{number:064x}": bytes(32 * STATE_BYTES) for number in range(4096)}
    assert len(encode_chains(blobs) or b"") == MAX_CHAIN_FILE_BYTES


@pytest.mark.parametrize(
    "data", [b"", b"holdfast.dev/chains/v1\n", b"holdfast.dev/chains/v2\n" + WRITTEN[23:], b"<html>"]
)
def test_other_bytes_are_none(data: bytes) -> None:
    """What has no records, is of another schema, or is a web page, is refused."""
    with pytest.raises(BadChainFile):
        decode_chains(data)


@given(st.data())
def test_a_damaged_file_is_refused(data: st.DataObject) -> None:
    """A file that is cut short, longer, or has another byte anywhere tells nothing."""
    at = data.draw(st.integers(0, len(WRITTEN) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(WRITTEN)
    changed[at] ^= 1 << bit
    for wrong in (bytes(changed), WRITTEN[:at], WRITTEN + bytes([bit])):
        with pytest.raises(BadChainFile):
            decode_chains(wrong)


_record = st.tuples(st.binary(min_size=0, max_size=33), st.integers(0, 2**32 - 1), st.binary(max_size=100))


@given(st.lists(_record, max_size=4))
def test_any_records_are_states_or_refused(records: list[tuple[bytes, int, bytes]]) -> None:
    """Records under a right sum are whole states of blobs by sha256, which write the same bytes again, or refused."""
    body = b"".join(sha256 + count.to_bytes(4, "big") + states for sha256, count, states in records)
    data = signed(chain_file._SCHEMA + body)
    try:
        found = decode_chains(data)
    except BadChainFile:
        return
    assert (encode_chains(found) or signed(chain_file._SCHEMA)) == data


def test_blobs_twice_or_out_of_order_are_refused() -> None:
    """Each blob is there once, after those of a smaller sha256."""
    body = WRITTEN[23:-32]
    first, second = body[: 36 + 32], body[36 + 32 :]
    for wrong in (first + first, second + first):
        with pytest.raises(BadChainFile, match="by sha256"):
            decode_chains(signed(WRITTEN[:23] + wrong))
