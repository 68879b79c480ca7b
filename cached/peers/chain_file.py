"""The file of chaining values that `holdfast publish` writes beside a version's manifest.

Law: pure. The file is bounded, and a hint: what is read from it is believed as far as what another node tells. Its
bytes follow from the contents alone: the schema's line; for each blob of several pieces, by sha256, its sha256 (32
bytes), the number of its states (4 bytes, most significant first) and the states between its pieces; and the sha256 of
all that.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from cached.peers.chaining import STATE_BYTES
from cached.peers.pieces import MAX_BLOBS, MAX_PIECES

_SCHEMA = b"holdfast.dev/chains/v1\n"  # of pieces of 32 MiB
_SUM_BYTES = 32
_HEAD = struct.Struct(">32sI")
MAX_CHAIN_FILE_BYTES = len(_SCHEMA) + MAX_BLOBS * _HEAD.size + MAX_PIECES * STATE_BYTES + _SUM_BYTES


class BadChainFile(Exception):
    """The bytes are no file of chaining values."""


def encode_chains(states: Mapping[str, bytes]) -> bytes | None:
    """Return the file of these states, one after the other, by the sha256 of their blob; None where no blob has any, or
    they are more than a pool shares."""
    wanted = sorted((sha256, each) for sha256, each in states.items() if each)
    if not wanted or len(wanted) > MAX_BLOBS or sum(len(each) for _, each in wanted) > MAX_PIECES * STATE_BYTES:
        return None
    records = (_HEAD.pack(bytes.fromhex(sha256), len(each) // STATE_BYTES) + each for sha256, each in wanted)
    data = b"".join((_SCHEMA, *records))
    return data + hashlib.sha256(data).digest()


def decode_chains(data: bytes) -> dict[str, bytes]:
    """Return the states by the sha256 of their blob. Raises `BadChainFile`."""
    if not data.startswith(_SCHEMA):
        raise BadChainFile(f"expected {_SCHEMA!r} first, found {data[: len(_SCHEMA)]!r}")
    if len(data) > MAX_CHAIN_FILE_BYTES:
        raise BadChainFile(f"expected at most {MAX_CHAIN_FILE_BYTES} bytes, found more")
    end = len(data) - _SUM_BYTES
    if end < len(_SCHEMA) or hashlib.sha256(data[:end]).digest() != data[end:]:
        raise BadChainFile("expected the sha256 of its bytes at the end, found another one: cut short, or damaged")
    found: dict[str, bytes] = {}
    at, last = len(_SCHEMA), b""
    while at < end:
        sha256, count = _HEAD.unpack_from(data, at) if at + _HEAD.size <= end else (b"", 0)
        at += _HEAD.size
        length = count * STATE_BYTES
        if sha256 <= last or not 0 < length <= end - at:
            raise BadChainFile(f"expected blobs by sha256, each with its states, found another record before byte {at}")
        found[sha256.hex()] = data[at : at + length]
        at, last = at + length, sha256
    return found
