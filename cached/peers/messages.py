"""What nodes say to a tracker and what it answers, and their form on the wire: JSON with bitmaps in base64.

Law: pure. Everything is bounded before it is used: the body's bytes, the pieces, each list, each text. A message of
another protocol version, or with anything out of bounds, is a `BadMessage`; unknown keys are ignored.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from cached.contract.digest import is_hex
from cached.peers import bits
from cached.peers.members import parse_address
from cached.peers.pieces import MAX_BLOBS, MAX_PIECES

PROTOCOL = 1
MAX_BODY_BYTES = 1 << 20
MAX_LISTED = 256  # pieces in one list
MAX_BLAMES = 32
MAX_NEIGHBOURS = 32
MAX_DIGESTS = 1024
MAX_HOLDERS = 16  # nodes that are named as having a snapshot
_ZONE = re.compile(r"[A-Za-z0-9]?[A-Za-z0-9._-]{0,62}")  # a Kubernetes label's value; empty: unknown
_LOG_ID = re.compile(r"[0-9a-f]{0,32}")
_RECORD = struct.Struct("<I32s")
_MOST_SIZE = 1 << 50
A = TypeVar("A")
B = TypeVar("B")


class BadMessage(ValueError):
    """A message that is malformed, out of bounds, or of another version of the protocol."""


class Reason(StrEnum):
    """Why a node leaves a peer: no answer or no bytes, far below its own rate, or bytes that do not check."""

    GONE = "gone"
    SLOW = "slow"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class PieceDigest:
    """A piece's sha256 as 64 hexadecimal digits."""

    piece: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Announce:
    """One node's state of a version. `have`, `want`: sets of pieces that it serves, and that it could begin to fetch
    now; `working`: the granted ones it has not got yet; `failed`: the granted ones it gave up; `digests`: of pieces
    that it received from the origin; `log`, `since`: how far it has read which log of digests; `neighbours`: how many
    it asks for; `blobs`: (sha256, size) of the version, where the tracker may not know them; `tracker`: which other one
    the node follows, then this tells only that (empty: this one)."""

    version: str
    pieces: int
    zone: str
    have: int
    want: int
    working: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    blames: tuple[tuple[str, Reason], ...] = ()
    digests: tuple[PieceDigest, ...] = ()
    log: str = ""
    since: int = 0
    neighbours: int = 0
    blobs: tuple[tuple[str, int], ...] = ()
    tracker: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """A tracker's answer. `grants`: pieces to fetch from the origin; `imports`: pieces to fetch from a peer of another
    zone; `digests` follow `since` of the announce in the log `log`, whose next position is `since`; `active`: whether
    any node still fetches the version; `under_way`: whether any fetches a piece from the origin, for all of them;
    `tracker`: one that ranks before this one, as other nodes say (empty: none)."""

    grants: tuple[int, ...]
    imports: tuple[tuple[int, str], ...]
    neighbours: tuple[str, ...]
    digests: tuple[PieceDigest, ...]
    log: str
    since: int
    active: bool
    under_way: bool = False
    tracker: str = ""


def is_zone(text: str) -> bool:
    """Return whether `text` is the name of a zone, or empty."""
    return _ZONE.fullmatch(text) is not None


def encode_announce(message: Announce) -> bytes:
    """Return the body of an announce."""
    document = {
        "protocol": PROTOCOL,
        "version": message.version,
        "pieces": message.pieces,
        "zone": message.zone,
        "have": _encode_bits(message.have, message.pieces),
        "want": _encode_bits(message.want, message.pieces),
        "working": message.working,
        "failed": message.failed,
        "blames": message.blames,
        "digests": _encode_digests(message.digests),
        "log": message.log,
        "since": message.since,
        "neighbours": message.neighbours,
        "blobs": message.blobs,
        "tracker": message.tracker,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode_announce(body: bytes) -> Announce:
    """Return the announce of a body; raises `BadMessage`."""
    document = _Document(body)
    pieces = document.number("pieces", 1, MAX_PIECES)
    have = document.bitmap("have", pieces)
    want = document.bitmap("want", pieces)
    if have & want:
        raise BadMessage("expected no piece in both `have` and `want`")
    version = document.text("version", is_hex)
    return Announce(
        version=version,
        pieces=pieces,
        zone=document.text("zone", _ZONE.fullmatch),
        have=have,
        want=want,
        working=document.numbers("working", pieces),
        failed=document.numbers("failed", pieces),
        blames=document.pairs("blames", MAX_BLAMES, _check_address, _check_reason),
        digests=document.digests("digests", pieces),
        log=document.text("log", _LOG_ID.fullmatch),
        since=document.number("since", 0, MAX_PIECES),
        neighbours=document.number("neighbours", 0, MAX_NEIGHBOURS),
        blobs=document.pairs("blobs", MAX_BLOBS, _check_sha256, _check_size),
        tracker=document.address("tracker"),
    )


def encode_reply(reply: Reply) -> bytes:
    """Return the body of a reply."""
    document = {
        "protocol": PROTOCOL,
        "grants": reply.grants,
        "imports": reply.imports,
        "neighbours": reply.neighbours,
        "digests": _encode_digests(reply.digests),
        "log": reply.log,
        "since": reply.since,
        "active": reply.active,
        "under_way": reply.under_way,
        "tracker": reply.tracker,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode_reply(body: bytes, pieces: int) -> Reply:
    """Return the reply to an announce of so many pieces; raises `BadMessage`."""
    document = _Document(body)
    return Reply(
        grants=document.numbers("grants", pieces),
        imports=document.pairs("imports", MAX_LISTED, lambda found: _check_number(found, pieces - 1), _check_address),
        neighbours=tuple(_check_address(each) for each in document.items("neighbours", MAX_NEIGHBOURS)),
        digests=document.digests("digests", pieces),
        log=document.text("log", _LOG_ID.fullmatch),
        since=document.number("since", 0, MAX_PIECES),
        active=document.flag("active"),
        under_way=document.flag("under_way"),
        tracker=document.address("tracker"),
    )


def encode_holders(holders: Iterable[str]) -> bytes:
    """Return the body that names the nodes with a snapshot."""
    return json.dumps({"protocol": PROTOCOL, "holders": list(holders)}, separators=(",", ":")).encode()


def decode_holders(body: bytes) -> tuple[str, ...]:
    """Return the nodes that a body names; raises `BadMessage`."""
    return tuple(dict.fromkeys(map(_check_address, _Document(body).items("holders", MAX_HOLDERS))))


class _Document:
    """A JSON object whose members are checked as they are read."""

    def __init__(self, body: bytes) -> None:
        if len(body) > MAX_BODY_BYTES:
            raise BadMessage(f"expected at most {MAX_BODY_BYTES} bytes, found {len(body)}")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadMessage("expected a JSON object, found something else") from error
        found = document.get("protocol") if isinstance(document, dict) else None
        if type(found) is not int or found != PROTOCOL:
            raise BadMessage(f"expected a message of protocol {PROTOCOL}, found {str(found)[:20]!r}: run one release")
        self._document: dict[str, object] = document

    def number(self, name: str, least: int, most: int) -> int:
        found = self._document.get(name)
        if type(found) is not int or not least <= found <= most:
            raise BadMessage(f"{name}: expected a number from {least} to {most}, found {str(found)[:40]!r}")
        return found

    def flag(self, name: str) -> bool:
        found = self._document.get(name)
        if not isinstance(found, bool):
            raise BadMessage(f"{name}: expected true or false, found {str(found)[:40]!r}")
        return found

    def text(self, name: str, accepts: Callable[[str], object]) -> str:
        found = self._document.get(name)
        if not isinstance(found, str) or not accepts(found):
            raise BadMessage(f"{name}: unexpected text {str(found)[:80]!r}")
        return found

    def address(self, name: str) -> str:
        found = self._document.get(name)
        return "" if found == "" else _check_address(found)

    def items(self, name: str, most: int) -> list[object]:
        found = self._document.get(name)
        if not isinstance(found, list) or len(found) > most:
            raise BadMessage(f"{name}: expected a list of at most {most}")
        return found

    def numbers(self, name: str, pieces: int) -> tuple[int, ...]:
        return tuple(_check_number(found, pieces - 1) for found in self.items(name, MAX_LISTED))

    def pairs(
        self, name: str, most: int, first: Callable[[object], A], second: Callable[[object], B]
    ) -> tuple[tuple[A, B], ...]:
        pairs = []
        for found in self.items(name, most):
            if not isinstance(found, list) or len(found) != 2:
                raise BadMessage(f"{name}: expected pairs")
            pairs.append((first(found[0]), second(found[1])))
        return tuple(pairs)

    def bitmap(self, name: str, pieces: int) -> int:
        data = self._bytes(name, (pieces + 7) // 8)
        try:
            return bits.decode(data, pieces)
        except ValueError as error:
            raise BadMessage(f"{name}: {error}") from error

    def digests(self, name: str, pieces: int) -> tuple[PieceDigest, ...]:
        data = self._bytes(name, MAX_DIGESTS * _RECORD.size)
        if len(data) % _RECORD.size:
            raise BadMessage(f"{name}: expected records of {_RECORD.size} bytes")
        records = _RECORD.iter_unpack(data)
        return tuple(PieceDigest(_check_number(piece, pieces - 1), digest.hex()) for piece, digest in records)

    def _bytes(self, name: str, most: int) -> bytes:
        found = self._document.get(name)
        if not isinstance(found, str) or len(found) > -(-most // 3) * 4:
            raise BadMessage(f"{name}: expected base64 of at most {most} bytes")
        try:
            return base64.b64decode(found, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadMessage(f"{name}: expected base64") from error


def _encode_bits(pieces: int, count: int) -> str:
    return base64.b64encode(bits.encode(pieces, count)).decode("ascii")


def _encode_digests(digests: Iterable[PieceDigest]) -> str:
    listed = list(digests)
    sha256s = bytes.fromhex("".join([each.sha256 for each in listed]))  # by one call: a tracker writes many
    records = [_RECORD.pack(each.piece, sha256s[32 * at : 32 * at + 32]) for at, each in enumerate(listed)]
    return base64.b64encode(b"".join(records)).decode("ascii")


def _check_number(found: object, most: int) -> int:
    if type(found) is not int or not 0 <= found <= most:
        raise BadMessage(f"expected a piece from 0 to {most}, found {str(found)[:40]!r}")
    return found


def _check_size(found: object) -> int:
    if type(found) is not int or not 0 < found <= _MOST_SIZE:
        raise BadMessage(f"expected a size in bytes, found {str(found)[:40]!r}")
    return found


def _check_sha256(found: object) -> str:
    if not isinstance(found, str) or not is_hex(found):
        raise BadMessage(f"expected a sha256, found {str(found)[:80]!r}")
    return found


def _check_address(found: object) -> str:
    try:
        parse_address(found if isinstance(found, str) else "")
    except ValueError as error:
        raise BadMessage(str(error)) from error
    return str(found)


def _check_reason(found: object) -> Reason:
    try:
        return Reason(found if isinstance(found, str) else "")
    except ValueError as error:
        raise BadMessage(f"expected one of {', '.join(Reason)}, found {str(found)[:40]!r}") from error
