"""Read an archive from front to back: its manifest, its record, its files.

Law: bounded memory, no seeks: a pipe is read as a file is. Names come from the manifest, never from the archive: an
entry that is not one of its files, whole, once, and of the same size, ends the reading. Nothing is right before the
last byte was read: only `check_end` says so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from cached.archive.format import EXPORT_NAME, MAX_RECORD_BYTES, ExportRecord, bad_archive
from cached.contract.archive.tar import EntryKind, TarEntry, read_entries
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, RESERVED, FileEntry, Manifest

BUFFER_BYTES = 4 * 1024 * 1024
_STANDARD_INPUT = 0
_MAX_ENTRIES = 1_000_000  # a manifest has fewer files
_MAGIC = {b"\x1f\x8b": ("gzip", "gzip -dc"), b"\x28\xb5\x2f\xfd": ("zstd", "zstd -dc"), b"BZh": ("bzip2", "bzip2 -dc")}


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file of the manifest whose bytes come next in the archive: `read_into` them all before the next one."""

    entry: FileEntry
    archive: Archive

    def read_into(self, buffer: memoryview) -> int:
        """Read the next bytes of it; 0 after the last one."""
        return self.archive.read_file(buffer)


class Archive:
    """An open archive. `where` names it for a person. The constructor reads as far as the manifest, and the record if
    that follows. Raises `HoldfastError`."""

    def __init__(self, descriptor: int, where: str) -> None:
        self._descriptor = descriptor
        self._where = where
        self._offset = 0
        self._left = 0  # bytes of the current file
        self._sha256 = hashlib.sha256()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._entries = self._read_entries()
        self._end: int | None = None
        self._ahead: TarEntry | None = None  # read for the record, and a file
        self.record: ExportRecord | None = None
        self.manifest = self._read_manifest()
        self.digest = self.manifest.digest
        self._take_record()

    def files(self) -> Iterator[ArchivedFile]:
        """Yield the files in the archive's order; each is compared with the manifest once it is read. Raises
        `HoldfastError`, at the end also for files that are missing."""
        expected = {file.path: file for file in self.manifest.files}
        seen: set[str] = set()
        while (entry := self._next()) is not None:
            file = self._judge(entry, expected, seen)
            if file is None:
                continue
            seen.add(file.path)
            self._left, self._sha256 = file.size, hashlib.sha256()
            yield ArchivedFile(file, self)
            while self.read_file(self._buffer):
                pass
            if self._sha256.hexdigest() != file.sha256:
                raise DigestMismatch(
                    f"{self._where}: {file.path}: sha256",
                    file.sha256,
                    self._sha256.hexdigest(),
                    "the archive is damaged: copy it again, or export it again with `holdfast export`",
                )
        missing = sorted(expected.keys() - seen)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise bad_archive(self._where, f"it lacks {missing[0]!r}{more} of its manifest's {len(expected)} files")

    def read_file(self, buffer: memoryview) -> int:
        """Read the next bytes of the current file; 0 after the last one."""
        wanted = min(self._left, len(buffer))
        if not wanted:
            return 0
        count = self._read_some(buffer[:wanted])
        if not count:
            raise self._cut()
        self._sha256.update(buffer[:count])
        self._left -= count
        return count

    def check_end(self) -> None:
        """Read to the end; raises `Permanent` (`bad_archive`) without an end mark, or where something follows it."""
        if self._end is None:
            raise self._cut()
        while count := self._read_some(self._buffer):
            if any(self._buffer[:count]):
                raise bad_archive(self._where, f"after its end, near byte {self._offset - count}, something follows")

    # --- the parts -------------------------------------------------------------------------------------------------

    def _read_entries(self) -> Generator[TarEntry, None, None]:
        self._end = yield from read_entries(self._read_at, None, self._where, _MAX_ENTRIES)

    def _next(self) -> TarEntry | None:
        if self._ahead is not None:
            entry, self._ahead = self._ahead, None
            return entry
        try:
            return next(self._entries, None)
        except Permanent as error:
            if error.code != "bad_tar":
                raise
            raise bad_archive(self._where, error.message.removeprefix(f"{self._where}: ")) from error

    def _read_manifest(self) -> Manifest:
        while (entry := self._next()) is not None:
            if entry.kind is EntryKind.FOLDER:
                continue
            if entry.path != MANIFEST_NAME or entry.kind is not EntryKind.FILE:
                raise bad_archive(
                    self._where,
                    f"expected `{MANIFEST_NAME}` as its first file, found {entry.path!r:.200}: not an archive of "
                    "`holdfast export`, or packed in another order",
                )
            if entry.size > MAX_MANIFEST_BYTES:
                raise bad_archive(
                    self._where, f"a manifest of {entry.size} bytes, at most {MAX_MANIFEST_BYTES} are read"
                )
            try:
                return Manifest.parse(self._read_whole(entry))
            except HoldfastError as error:
                raise bad_archive(self._where, f"its `{MANIFEST_NAME}`: {error.message}") from error
        raise self._cut()

    def _take_record(self) -> None:
        """Read the record, if it comes next."""
        while (entry := self._next()) is not None and entry.kind is EntryKind.FOLDER:
            pass
        if entry is None or entry.path != EXPORT_NAME or entry.kind is not EntryKind.FILE:
            self._ahead = entry
            return
        if entry.size > MAX_RECORD_BYTES:
            raise bad_archive(
                self._where, f"`{EXPORT_NAME}` of {entry.size} bytes, at most {MAX_RECORD_BYTES} are read"
            )
        self.record = ExportRecord.parse(self._read_whole(entry), self._where)
        if self.record.digest != self.digest:
            raise DigestMismatch(
                f"{self._where}: the digest of its manifest",
                f"{self.record.digest} (`{EXPORT_NAME}`)",
                str(self.digest),
                "the archive was changed: copy it again, or export it again with `holdfast export`",
            )

    def _judge(self, entry: TarEntry, expected: dict[str, FileEntry], seen: set[str]) -> FileEntry | None:
        """Return the manifest's file that an entry is, None for what is no part of the version."""
        if entry.kind is EntryKind.FOLDER or (entry.kind is EntryKind.FILE and entry.path.startswith(f"{RESERVED}/")):
            return None
        name = repr(entry.path[:200])
        file = expected.get(entry.path)
        if file is None:
            raise bad_archive(self._where, f"it has {name}, which its manifest does not list")
        if entry.path in seen:
            raise bad_archive(self._where, f"it has {name} twice")
        if entry.kind is EntryKind.SPARSE:
            raise bad_archive(self._where, f"expected all bytes of {name}, found a sparse file: pack without --sparse")
        if entry.kind is not EntryKind.FILE:
            raise bad_archive(self._where, f"expected the bytes of {name}, found a link or a device")
        if entry.size != file.size:
            problem = f"{name} has {entry.size} bytes, its manifest says {file.size}"
            raise bad_archive(self._where, problem)
        return file

    # --- the bytes -------------------------------------------------------------------------------------------------

    def _read_whole(self, entry: TarEntry) -> bytes:
        data = self._read_at(entry.start, entry.size)
        if len(data) < entry.size:
            raise self._cut()
        return data

    def _read_at(self, offset: int, length: int) -> bytes:
        """Read on at an offset at or after the present one; fewer bytes only at the end."""
        while self._offset < offset:
            if not self._read_some(self._buffer[: min(offset - self._offset, len(self._buffer))]):
                raise self._cut()
        data = bytearray()
        while len(data) < length:
            piece = self._buffer[: min(length - len(data), len(self._buffer))]
            count = self._read_some(piece)
            if not count:
                break
            data += piece[:count]
        if offset == 0:
            self._refuse_compressed(bytes(data))
        return bytes(data)

    def _read_some(self, buffer: memoryview) -> int:
        try:
            count = os.readv(self._descriptor, [buffer])
        except OSError as error:
            raise Permanent(
                "unreadable", f"{self._where}: {error.strerror}", "check the disk, and copy it again"
            ) from error
        self._offset += count
        return count

    def _refuse_compressed(self, head: bytes) -> None:
        for magic, (name, command) in _MAGIC.items():
            if head.startswith(magic):
                raise Permanent(
                    "bad_archive",
                    f"{self._where}: expected a tar archive, found one in {name}",
                    f"unpack it on the way: `{command} FILE | holdfast import -`",
                )

    def _cut(self) -> HoldfastError:
        if self._offset == 0:
            remedy = "see what should have written it"
            if self._descriptor == _STANDARD_INPUT:
                remedy += "; `kubectl exec` hands standard input on with -i only"
            return Transient("bad_archive", f"{self._where}: it is empty", remedy)
        return bad_archive(self._where, f"it ends early, after {self._offset} bytes: the copy is not whole")
