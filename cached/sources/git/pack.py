"""Packs: the objects of an answer, read as they come.

Law: memory is bounded whatever a pack says of itself: an object is inflated no further than its own header allows, and
not at all where that exceeds what is left. Format: gitformat-pack(5). Every object is known by the sha1 of its bytes,
so a pack that lies is one without the object that was asked for.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from cached.contract.errors import Permanent, Transient

COMMIT, TREE, BLOB, TAG = "commit", "tree", "blob", "tag"
_TYPES = {1: COMMIT, 2: TREE, 3: BLOB, 4: TAG}
_OFFSET_DELTA, _NAMED_DELTA = 6, 7
_MAX_OBJECTS = 120_000  # some 50,000 files with their folders, or the commits of a long history
_OVERHEAD_BYTES = 300  # of an object in memory
_MAX_VARINT_BYTES = 10
_SLACK_BYTES = 64


def object_id(kind: str, data: bytes) -> str:
    """Return the id of an object: the sha1 of its type, its size and its bytes."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class PackEntry:
    """An object's header in a pack. `kind` is None for a delta, whose base is `base_offset` or `base_id`; `size`: of
    the inflated bytes, by its own account."""

    offset: int
    kind: str | None
    size: int
    base_offset: int | None = None
    base_id: str | None = None


class PackReader:
    """A pack, entry by entry: `begin`, then for each entry `next_entry` and all of its bytes by `inflate`. `read`:
    returns the next bytes, none at the end; `where`: the repository, for messages."""

    def __init__(self, read: Callable[[], bytes], where: str) -> None:
        self._read = read
        self._where = where
        self._buffer = b""
        self._position = 0  # of the next byte in the buffer
        self._passed = 0  # bytes before the buffer

    def begin(self) -> int:
        """Return the number of objects."""
        head = self._exactly(12)
        version = int.from_bytes(head[4:8], "big")
        if head[:4] != b"PACK" or version not in (2, 3):
            raise self.bad(f"{head!r} in place of a pack")
        return int.from_bytes(head[8:], "big")

    def next_entry(self) -> PackEntry:
        """Return the header of the next object."""
        offset = self._passed + self._position
        byte = self._byte()
        number, size, shift = byte >> 4 & 7, byte & 15, 4
        while byte & 128:
            byte = self._byte()
            size |= (byte & 127) << shift
            shift += 7
            if shift > 7 * _MAX_VARINT_BYTES:
                raise self.bad("an object of an absurd size")
        if number == _OFFSET_DELTA:
            return PackEntry(offset, None, size, base_offset=offset - self._distance())
        if number == _NAMED_DELTA:
            return PackEntry(offset, None, size, base_id=self._exactly(20).hex())
        if number not in _TYPES:
            raise self.bad(f"an object of the type {number}")
        return PackEntry(offset, _TYPES[number], size)

    def inflate(self, size: int) -> Iterator[bytes]:
        """Yield the bytes of the object whose header was read, `size` of them. Raises `Transient` (`bad_response`) for
        fewer or more."""
        inflating, left = zlib.decompressobj(), size
        compressed = self._some(left)
        while True:
            try:
                data = inflating.decompress(compressed, min(left + 1, 1 << 20))
            except zlib.error as error:
                raise self.bad("an object that cannot be inflated") from error
            left -= len(data)
            if left < 0:
                raise self.bad("an object that is longer than its header says")
            if data:
                yield data
            if inflating.eof:
                break
            compressed = inflating.unconsumed_tail or self._some(left)
        if left:
            raise self.bad(f"an object that lacks {left} of {size} bytes")
        self._position -= len(inflating.unused_data)

    def bad(self, found: str) -> Transient:
        """Return the error of a pack that cannot be read."""
        return Transient(
            "bad_response",
            f"{self._where}: expected a pack of Git objects, found {found}",
            "it is tried again; if it goes on, look at the server, and at a proxy before it",
        )

    def _distance(self) -> int:
        byte = self._byte()
        distance = byte & 127
        for _ in range(_MAX_VARINT_BYTES):
            if not byte & 128:
                return distance
            byte = self._byte()
            distance = (distance + 1) << 7 | byte & 127
        raise self.bad("a delta with an absurd distance")

    def _byte(self) -> int:
        if self._position == len(self._buffer):
            self._fill()
        self._position += 1
        return self._buffer[self._position - 1]

    def _exactly(self, size: int) -> bytes:
        return bytes(self._byte() for _ in range(size))

    def _some(self, wanted: int) -> bytes:
        """Return bytes that are there, at least one, and not many more than `wanted`: what is not used is copied."""
        if self._position == len(self._buffer):
            self._fill()
        data = self._buffer[self._position : self._position + wanted + _SLACK_BYTES]
        self._position += len(data)
        return data

    def _fill(self) -> None:
        self._passed += len(self._buffer)
        self._buffer, self._position = self._read(), 0
        if not self._buffer:
            raise self.bad("one that ends too early")


@dataclass(slots=True)
class Objects:
    """Objects in memory: type and bytes by id."""

    by_id: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def find(self, oid: str, kind: str) -> bytes | None:
        """Return the bytes of an object of that type; None where it is not there."""
        found = self.by_id.get(oid)
        return found[1] if found is not None and found[0] == kind else None


def read_objects(pack: PackReader, limit_bytes: int, too_large: Permanent) -> Objects:
    """Return all objects of a pack. Raises `too_large` where they take more than `limit_bytes` in memory, and
    `Transient` (`bad_response`)."""
    found, count = _Reading(pack, limit_bytes, too_large), pack.begin()
    if count > _MAX_OBJECTS:
        raise too_large
    for _ in range(count):
        found.add(pack.next_entry())
    return found.finish()


class _Reading:
    def __init__(self, pack: PackReader, limit_bytes: int, too_large: Permanent) -> None:
        self._pack = pack
        self._left = limit_bytes
        self._too_large = too_large
        self._objects = Objects()
        self._by_offset: dict[int, str] = {}
        self._waiting: dict[int | str, list[tuple[int, bytes]]] = {}  # deltas, by their base's offset or id

    def add(self, entry: PackEntry) -> None:
        self._take(entry.size + _OVERHEAD_BYTES)
        data = b"".join(self._pack.inflate(entry.size))
        if entry.kind is not None:
            self._keep(entry.offset, entry.kind, data)
            return
        base: int | str | None = entry.base_id if entry.base_offset is None else entry.base_offset
        assert base is not None  # an entry without a type has a base
        known = self._by_offset.get(base) if isinstance(base, int) else base
        if known in self._objects.by_id:
            assert known is not None
            self._apply(entry.offset, known, data)
        else:
            self._waiting.setdefault(base, []).append((entry.offset, data))

    def finish(self) -> Objects:
        if self._waiting:
            raise self._pack.bad("a delta whose base is not there")
        return self._objects

    def _apply(self, offset: int, base: str, delta: bytes) -> None:
        kind, source = self._objects.by_id[base]
        self._keep(offset, kind, apply_delta(source, delta, self._pack.bad, self._take))

    def _keep(self, offset: int, kind: str, data: bytes) -> None:
        """Keep an object, and those that waited for it as their base."""
        kept = [(offset, kind, data)]
        while kept:
            offset, kind, data = kept.pop()
            oid = object_id(kind, data)
            self._objects.by_id[oid] = (kind, data)
            self._by_offset[offset] = oid
            waiting = (*self._waiting.pop(offset, ()), *self._waiting.pop(oid, ()))
            kept.extend((at, kind, apply_delta(data, delta, self._pack.bad, self._take)) for at, delta in waiting)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise self._too_large


def apply_delta(
    source: bytes, delta: bytes, bad: Callable[[str], Transient], take: Callable[[int], None] = lambda _size: None
) -> bytes:
    """Return the object that `delta` makes of `source`. `take` is told its size first, and may raise. Raises what `bad`
    returns for a delta that does not fit."""
    try:
        source_size, at = _size_at(delta, 0)
        size, at = _size_at(delta, at)
        if source_size != len(source):
            raise bad("a delta of another base")
        take(size)
        made, left = bytearray(), size  # no list: an instruction may make two bytes
        while at < len(delta):
            piece, at = _piece_at(source, delta, at)
            left -= len(piece)
            if left < 0 or not piece:
                raise bad("a delta that does not fit its base")
            made += piece
    except IndexError as error:
        raise bad("a delta that is cut off") from error
    if left:
        raise bad("a delta that makes less than it says")
    return bytes(made)


def _size_at(delta: bytes, at: int) -> tuple[int, int]:
    size = shift = 0
    while True:
        byte = delta[at]
        at += 1
        size |= (byte & 127) << shift
        shift += 7
        if not byte & 128:
            return size, at
        if shift > 7 * _MAX_VARINT_BYTES:
            raise IndexError


def _piece_at(source: bytes, delta: bytes, at: int) -> tuple[bytes, int]:
    """Return the bytes of the instruction at `at`, which copies from the base or inserts, and where it ends."""
    code = delta[at]
    at += 1
    if not code & 128:
        if len(delta) < at + code:
            raise IndexError
        return delta[at : at + code], at + code
    numbers = []
    for bits in (range(4), range(4, 7)):
        number = 0
        for place, bit in enumerate(bits):
            if code & 1 << bit:
                number |= delta[at] << 8 * place
                at += 1
        numbers.append(number)
    start, size = numbers[0], numbers[1] or 0x10000
    if start + size > len(source):
        raise IndexError
    return source[start : start + size], at


def ids_of(objects: Objects, kind: str) -> list[str]:
    """Return the ids of the objects of one type."""
    by_id: Mapping[str, tuple[str, bytes]] = objects.by_id
    return [oid for oid, (found, _) in by_id.items() if found == kind]
