"""Check a snapshot against its manifest: by the record, or by hashing everything again.

Law: reads only, through the same read-only mount a pod has. Every mismatch is a `DigestMismatch` that names the file.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, Permanent
from cached.contract.layout import SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.verified import VerifiedRecord

_WINDOW = 16 * 1024 * 1024  # mapped, populated and hashed at a time
_REMEDY = "the bytes on the node changed after they were verified: `holdfast verify` on the node, then look at its disk"


def load_manifest(snapshot: SnapshotLayout, pin: Digest | None) -> Manifest:
    """Read the snapshot's manifest and check it against the snapshot's name and, if given, the pin.

    Raises `DigestMismatch`, or `InvalidManifest` where the bytes hash right but are no manifest.
    """
    data = snapshot.manifest.read_bytes()
    found = Digest.of(data)
    if found.hex != snapshot.path.name:
        raise DigestMismatch(str(snapshot.manifest), f"sha256:{snapshot.path.name}", str(found), _REMEDY)
    if pin is not None and pin != found:
        raise DigestMismatch(
            "the manifest digest",
            f"{pin} (the pin)",
            str(found),
            "correct the pin, or publish the content that the pin names under this version",
        )
    return Manifest.parse(data)


def check_record(snapshot: SnapshotLayout, manifest: Manifest) -> None:
    """Check that every file is there, a plain file, and as `verified.json` recorded it. Hashes nothing."""
    record = VerifiedRecord.parse(snapshot.verified.read_bytes())
    for entry in manifest.files:
        found = _stat(snapshot, entry)
        verified = record.files.get(entry.path)
        if verified is None:
            raise DigestMismatch(f"{entry.path}: verified record", "an entry", "none", _REMEDY)
        for what, expected, actual in (
            ("recorded size in bytes", entry.size, verified.size),
            ("inode", verified.ino, found.st_ino),
            ("mtime in ns", verified.mtime_ns, found.st_mtime_ns),
        ):
            if expected != actual:
                raise DigestMismatch(f"{entry.path}: {what}", str(expected), str(actual), _REMEDY)


def check_full(
    snapshot: SnapshotLayout, manifest: Manifest, threads: int, progress: Callable[[int], None] = lambda _size: None
) -> None:
    """Hash every file again with `threads` threads; `progress` is told bytes hashed, from those threads."""
    largest_first = sorted(manifest.files, key=lambda f: f.size, reverse=True)
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="verify") as pool:
        checks = [pool.submit(_check_file, snapshot, entry, progress) for entry in largest_first]
        try:
            for check in as_completed(checks):
                check.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def hash_file(path: Path, progress: Callable[[int], None] = lambda _size: None) -> str:
    """The sha256 of a file as hexadecimal digits, never following a symlink at `path`.

    Maps the page cache instead of copying out of it: a copy costs 15 % of the hash's own time.
    """
    sha = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(descriptor).st_size
        for start in range(0, size, _WINDOW):
            length = min(_WINDOW, size - start)
            with mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start) as window:
                sha.update(window)
            progress(length)
    finally:
        os.close(descriptor)
    return sha.hexdigest()


def _check_file(snapshot: SnapshotLayout, entry: FileEntry, progress: Callable[[int], None]) -> None:
    _stat(snapshot, entry)
    found = hash_file(snapshot.path / entry.path, progress)
    if found != entry.sha256:
        raise DigestMismatch(f"{entry.path}: sha256", entry.sha256, found, _REMEDY)


def _stat(snapshot: SnapshotLayout, entry: FileEntry) -> os.stat_result:
    path = snapshot.path / entry.path
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DigestMismatch(f"{entry.path}: the file", "present", "missing", _REMEDY) from error
    except OSError as error:
        raise Permanent("unreadable", f"{path}: {error.strerror}", "check the node's disk and the mount") from error
    if not stat.S_ISREG(found.st_mode):
        raise DigestMismatch(f"{entry.path}: kind", "a plain file", "something else", _REMEDY)
    if found.st_size != entry.size:
        raise DigestMismatch(f"{entry.path}: size in bytes", str(entry.size), str(found.st_size), _REMEDY)
    return found
