"""Check the files of one published snapshot against their blobs' names, and renew its record.

Law: reads the files that pods read, past the page cache, since bit rot is on the disk. Only wrong bytes, or a disk that
reports them unreadable, condemn a blob; missing or replaced is not wrong. Blocking; the caller brings the pace.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout, SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.program.plain_files import read_plain
from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord
from cached.contract.status import timestamp
from cached.store.disk import durable, verity
from cached.store.disk.verity import Sealing
from cached.store.version import snapshots
from cached.store.version.repair import ROTTEN

_log = logging.getLogger(__name__)

PIECE_BYTES = 1024 * 1024
_NOTE_S = 60.0  # between two writes of a snapshot's record


@dataclass(frozen=True, slots=True)
class BadBlob:
    """A file of the snapshot, and so its blob, has wrong bytes."""

    path: str
    sha256: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected sha256 {self.sha256}, found {self.found}"


@dataclass(frozen=True, slots=True)
class BadManifest:
    """The snapshot's manifest does not hash to the snapshot's name."""

    def __str__(self) -> str:
        return "its manifest.json does not hash to its digest"


@dataclass(frozen=True, slots=True)
class Apart:
    """A part of the snapshot is missing or was replaced: a name, a record, or a file that is not its blob's own. A hash
    decides which of file and blob is right."""

    path: str

    def __str__(self) -> str:
        return f"{self.path}: it was deleted or replaced"


@dataclass(frozen=True, slots=True)
class Stray:
    """Something is in the snapshot that is not in its manifest."""

    path: str

    def __str__(self) -> str:
        return f"{self.path!r}: it is not in the manifest"


@dataclass(frozen=True, slots=True)
class Closed:
    """A file or folder of the snapshot has a mode by which some user may not read it."""

    path: str

    def __str__(self) -> str:
        return f"{self.path}: some user may not read it"


Finding = BadBlob | BadManifest | Apart | Stray | Closed


def new_piece() -> memoryview:
    """Return a page-aligned buffer for one thread that hashes, as O_DIRECT needs it."""
    return memoryview(mmap.mmap(-1, PIECE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def check_manifest(snapshot: SnapshotLayout, digest: Digest) -> BadManifest | None:
    """Compare the snapshot's manifest with its name; a snapshot that is gone has no finding. Raises OSError."""
    try:
        found = Digest.of(read_plain(snapshot.manifest))
    except FileNotFoundError:
        return BadManifest() if snapshot.path.exists() else None
    except OSError as error:
        if error.errno not in ROTTEN:
            raise
        _log.error("%s: %s", snapshot.manifest, error.strerror)
        return BadManifest()
    if found == digest:
        return None
    _log.error("%s: expected sha256 %s, found %s", snapshot.manifest, digest.hex, found.hex)
    return BadManifest()


def check_file(
    layout: Layout, digest: Digest, entry: FileEntry, sealing: Sealing, hash_: Callable[[Path, str | None], str]
) -> VerifiedFile | Finding:
    """Hash one file, with `hash_(path, seal)`, after sealing its blob where that is wanted. Raises OSError if it
    cannot be read for another reason than corrupt data, or if the snapshot is gone."""
    snapshot = layout.public.snapshot(digest)
    path, blob = snapshot.path / entry.path, layout.blob(entry.sha256)
    seal = None
    try:
        before = os.lstat(path)
        if not (stat.S_ISREG(before.st_mode) and os.path.samestat(before, os.lstat(blob))):
            return Apart(entry.path)
        if sealing is not Sealing.NONE:  # it may have been committed without a seal
            verity.seal(blob, Sealing.WHERE_POSSIBLE)
        seal = verity.digest(path)
        found = hash_(path, seal)
    except (FileNotFoundError, NotADirectoryError):
        if not snapshot.path.exists():
            raise
        return Apart(entry.path)
    except OSError as error:
        if error.errno not in ROTTEN:
            raise
        found = f"not computed: {error.strerror}"
    if found == entry.sha256:
        return VerifiedFile.of(before, timestamp(time.time()), seal)
    _log.error("%s: expected sha256 %s, found %s", path, entry.sha256, found)
    return BadBlob(entry.path, entry.sha256, found)


def hash_file(path: Path, piece: memoryview, pace: Callable[[int, float], None], seal: str | None) -> str:
    """Return the sha256 of a file, which has this fs-verity seal if any, read past the page cache into `piece`. Call
    `pace` with each piece's bytes, and the seconds that its hash took. Raises OSError, and whatever `pace` raises."""
    sha = hashlib.sha256()
    descriptor = _open(path)
    try:
        if seal is not None:  # pages read ahead would have to be dropped and read again
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        size = os.fstat(descriptor).st_size
        offset = 0
        while offset < size:
            if seal is not None:  # its file system reads it through the page cache, even with O_DIRECT
                os.posix_fadvise(descriptor, offset, PIECE_BYTES, os.POSIX_FADV_DONTNEED)
            if not (count := os.preadv(descriptor, [piece], offset)):
                break
            started = time.monotonic()
            sha.update(piece[:count])
            offset += count
            pace(count, time.monotonic() - started)
    finally:
        os.close(descriptor)
    return sha.hexdigest()


def read_record(layout: Layout, digest: Digest) -> dict[str, VerifiedFile]:
    """Return the snapshot's record by path; empty where it is missing or invalid: all files count as never hashed."""
    try:
        return VerifiedRecord.parse(read_plain(layout.public.snapshot(digest).verified)).files
    except (OSError, HoldfastError):
        return {}


class RecordRenewal:
    """A snapshot's record during its renewal. Written only while it has every file: gates read it."""

    def __init__(self, snapshot: SnapshotLayout, before: dict[str, VerifiedFile | None]) -> None:
        self._snapshot = snapshot
        self._files = before
        self._written = time.monotonic()

    def add(self, path: str, seen: VerifiedFile) -> None:
        """Note that a file was hashed; write the record once a minute."""
        self._files[path] = seen
        if time.monotonic() - self._written >= _NOTE_S:
            self.write()

    def write(self) -> None:
        """Replace the record, atomically and durably, if each file was hashed or is in the record before."""
        files = {path: entry for path, entry in self._files.items() if entry is not None}
        if len(files) == len(self._files):
            snapshots.write_verified(self._snapshot, VerifiedRecord(files))
            self._written = time.monotonic()


@contextmanager
def renewing(
    layout: Layout, digest: Digest, manifest: Manifest, before: dict[str, VerifiedFile]
) -> Iterator[RecordRenewal]:
    """Yield the renewal of a snapshot's record. It holds the folder by descriptor: evicted and fetched again during the
    check, another folder has the name, with other inodes. Raises OSError."""
    folder = layout.public.snapshot(digest).path
    with durable.opened(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC) as descriptor:
        here = SnapshotLayout(Path(f"/proc/self/fd/{descriptor}"))
        yield RecordRenewal(here, {entry.path: before.get(entry.path) for entry in manifest.files})


def _open(path: Path) -> int:
    try:
        return durable.open_direct(path, os.O_RDONLY | os.O_NOFOLLOW)[0]
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EMSGSIZE):
            raise
        # No other cause is possible for this call (fs/verity/open.c).
        raise OSError(errno.EUCLEAN, "its fs-verity seal is damaged") from error
