"""The files of a compressed layer: read once in order, checked, and hashed one by one.

Law: nothing is listed of a layer before its own digest and its diff id (the sha256 of the plain archive) are those that
the manifest and the config promise: so each file's sha256 is known before the file is fetched, which reads the layer
again from the place of the file. A layer that grows beyond what its files promise, or beyond all reason, is refused.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from cached.contract.archive.tar import (
    MAX_AFTER_END_BYTES,
    EntryKind,
    TarEntry,
    bad_tar,
    bytes_after_end,
    read_entries,
)
from cached.contract.errors import DigestMismatch, Permanent
from cached.sources.oci.compressed import Inflating, InflationPoint, RegistryBlobStream, inflate
from cached.sources.oci.manifest import Descriptor
from cached.sources.oci.registry import Registry
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation

_PIECE_BYTES = 1024 * 1024
_KEPT_FILE_BYTES = 256 * 1024
_KEPT_BYTES = 32 * 1024 * 1024
_MOST_MARKS = 1_000  # some 40 KB each
# Weights inflate to some 110 %, text to a few times its size; a bomb to a thousand times and more.
_MOST_GROWTH = 100
_GROWTH_FREE_BYTES = 64 * 1024 * 1024
_UNKNOWN_TOTAL = 1 << 62


@dataclass(slots=True)
class Unpacked:
    """What a layer was found to have: its entries, and by the offset of a file its sha256, its bytes if they are few,
    and else where to begin to read them."""

    blob: Descriptor
    entries: list[TarEntry] = field(default_factory=list)
    sha256s: dict[int, str] = field(default_factory=dict)
    kept: dict[int, bytes] = field(default_factory=dict)
    marks: dict[int, InflationPoint] = field(default_factory=dict)

    def keep_only(self, starts: Set[int]) -> None:
        """Forget what is there for other files than these: they are not read."""
        self.kept = {start: data for start, data in self.kept.items() if start in starts}
        self.marks = {start: mark for start, mark in self.marks.items() if start in starts}


class Unpacker:
    """Unpacks the compressed layers of one artifact. Thread-safe."""

    def __init__(self, client: HttpClient, registry: Registry) -> None:
        self._client = client
        self._registry = registry
        self._lock = threading.Lock()
        self._kept_bytes = 0

    def unpack(self, blob: Descriptor, diff_id: str | None, where: str, cancellation: Cancellation) -> Unpacked:
        """Read a whole layer. `diff_id`: as the config has it, None where it has none. Raises `HoldfastError`."""
        source = RegistryBlobStream(self._client, self._registry, blob, cancellation)
        try:
            plain = _Forward(inflate(source, blob.media_type, where), blob, where)
            found = Unpacked(blob)
            for entry in read_entries(plain.read, _UNKNOWN_TOTAL, where):
                found.entries.append(entry)
                if entry.kind is EntryKind.FILE:
                    self._read_file(plain, entry, found, where)
            plain.finish()
            self._check(source, plain, blob, diff_id, where)
        finally:
            source.close()
        return found

    def open(self, found: Unpacked, start: int, size: int, where: str, cancellation: Cancellation) -> FileStream:
        """Return the bytes of a file of a layer."""
        if start in found.kept:
            return FileStream(None, size, found.kept[start])
        mark = found.marks.get(start)
        offset = 0 if mark is None else mark.offset
        source = RegistryBlobStream(self._client, self._registry, found.blob, cancellation, offset)
        try:
            stream = inflate(source, found.blob.media_type, where, mark)
            if mark is None:
                _skip(stream, start, where)
        except BaseException:
            source.close()
            raise
        return FileStream(stream, size)

    def _read_file(self, plain: _Forward, entry: TarEntry, found: Unpacked, where: str) -> None:
        keep = self._keeps(entry.size)
        mark = None if keep or len(found.marks) >= _MOST_MARKS else plain.mark()
        sha, kept, left = hashlib.sha256(), bytearray(), entry.size
        for data in plain.take(entry.size):
            sha.update(data)
            left -= len(data)
            if keep:
                kept += data
        if left:
            raise bad_tar(where, f"it ends {left} bytes before the end of {entry.path[:200]!r}")
        found.sha256s[entry.start] = sha.hexdigest()
        if keep:
            found.kept[entry.start] = bytes(kept)
        elif mark is not None:
            found.marks[entry.start] = mark

    def _keeps(self, size: int) -> bool:
        with self._lock:
            if size > _KEPT_FILE_BYTES or self._kept_bytes + size > _KEPT_BYTES:
                return False
            self._kept_bytes += size
            return True

    def _check(
        self, source: RegistryBlobStream, plain: _Forward, blob: Descriptor, diff_id: str | None, where: str
    ) -> None:
        remedy = "push it again; nothing was published"
        found = f"sha256:{source.sha256.hexdigest()}"
        if found != blob.digest or source.position != blob.size:
            raise DigestMismatch(f"{where}: its digest", blob.digest, found, remedy)
        plain_digest = f"sha256:{plain.sha256.hexdigest()}"
        if diff_id not in (None, plain_digest):
            raise DigestMismatch(f"{where}: its diff id", str(diff_id), plain_digest, remedy)


def _skip(stream: Inflating, length: int, where: str) -> None:
    left = length
    while left:
        data = stream.read(min(left, _PIECE_BYTES))
        if not data:
            raise bad_tar(where, f"it ends before byte {length}")
        left -= len(data)


class FileStream:
    """The bytes of one file out of a layer: a `ByteStream`."""

    def __init__(self, stream: Inflating | None, size: int, kept: bytes = b"") -> None:
        self._stream = stream
        self._left = size
        self._kept = memoryview(kept)

    def readinto(self, view: memoryview) -> int:
        """Fill `view` unless the end comes first."""
        filled = 0
        while filled < len(view) and self._left:
            wanted = min(len(view) - filled, self._left, _PIECE_BYTES)
            if self._stream is None:
                data: bytes | memoryview = self._kept[:wanted]
                self._kept = self._kept[wanted:]
            else:
                data = self._stream.read(wanted)
            if not data:
                break
            view[filled : filled + len(data)] = data
            filled += len(data)
            self._left -= len(data)
        return filled

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream.source.close()


class _Forward:
    """The inflated bytes, which can be read forward only: as a tar's, and hashed."""

    def __init__(self, stream: Inflating, blob: Descriptor, where: str) -> None:
        self._stream = stream
        self._where = where
        self._position = 0
        self._most = blob.size * _MOST_GROWTH + _GROWTH_FREE_BYTES
        self.sha256 = hashlib.sha256()

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes [offset, offset + length), fewer at the end."""
        for _ in self.take(offset - self._position):
            pass
        if self._position < offset:
            raise bad_tar(self._where, f"it ends at byte {self._position}, expected byte {offset}")
        return b"".join(self.take(length))

    def take(self, length: int) -> Iterator[bytes]:
        """Yield the next `length` bytes in pieces, fewer at the end."""
        left = length
        while left > 0 and (data := self._stream.read(min(left, _PIECE_BYTES))):
            self._position += len(data)
            if self._position > self._most:
                raise Permanent(
                    "too_large",
                    f"{self._where}: it inflates to more than {_MOST_GROWTH} times its size, as no model does",
                    "look at what was pushed; push the files as raw layers if they are as they should be",
                )
            self.sha256.update(data)
            left -= len(data)
            yield data

    def mark(self) -> InflationPoint | None:
        """Return this place, where it can be taken up again."""
        return self._stream.mark()

    def finish(self) -> None:
        """Read what follows the archive's end: a little padding."""
        after = 0
        for data in self.take(_UNKNOWN_TOTAL):
            after += len(data)
            if any(data) or after > MAX_AFTER_END_BYTES:
                raise bytes_after_end(self._where)
