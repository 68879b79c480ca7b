"""Check a snapshot against its manifest: by the record, or by hashing everything again.

Law: reads only, through the same read-only mount a pod has. Every mismatch is a `DigestMismatch` that names the file;
what the disk refuses to read is a `Permanent` (`unreadable`) that names it too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent
from cached.contract.layout import SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.verified import VerifiedRecord

_WINDOW_BYTES = 16 << 20  # mapped, populated and hashed at a time
_BUFFER_BYTES = 512 << 10  # where maps are refused; half of a common second-level cache
_MADV_POPULATE_READ = 22  # linux/mman.h; the module mmap names it from Python 3.14 on
_REMEDY = "the bytes on the node changed after they were verified: `holdfast verify` on the node, then look at its disk"


def load_manifest(snapshot: SnapshotLayout, pin: Digest | None) -> Manifest:
    """Read the snapshot's manifest and check it against the snapshot's name and, if given, the pin.

    Raises `DigestMismatch`, or `InvalidManifest` where the bytes hash right but are no manifest.
    """
    data = _read(snapshot.manifest)
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
    """Check that every file is there, a plain file, and as `verified.json` recorded it. Hashes nothing.

    Raises `DigestMismatch`, or `Permanent` (`invalid_record`) where the record cannot be read as one.
    """
    record = VerifiedRecord.parse(_read(snapshot.verified))
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
    """Hash every file again with `threads` threads, the largest first, and stop at the first failure.

    `progress` is told bytes hashed, from those threads; what it raises ends the check and is raised here.
    """
    # Plain threads: concurrent.futures imports logging, 9 ms that every gate would pay, and cannot stop a running file.
    waiting = deque(sorted(manifest.files, key=lambda f: f.size, reverse=True))
    outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
    stop = threading.Event()

    def tell(size: int) -> None:
        if stop.is_set():
            raise _Stopped
        progress(size)

    def work() -> None:
        try:
            while (entry := _next(waiting)) is not None and not stop.is_set():
                _check_file(snapshot, entry, tell)
        except _Stopped:
            outcomes.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that asked
            outcomes.put(error)
        else:
            outcomes.put(None)

    workers = [threading.Thread(target=work, name=f"verify-{n}") for n in range(max(1, min(threads, len(waiting))))]
    for worker in workers:
        worker.start()
    try:
        for _ in workers:
            failure = outcomes.get()
            if failure is not None:
                raise failure
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def hash_file(path: Path, progress: Callable[[int], None] = lambda _size: None) -> str:
    """The sha256 of a file as hexadecimal digits, never following a symlink at `path`.

    `progress` is told the bytes hashed since it was last told. Raises OSError where the file cannot be read to its end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return _hash_mapped(descriptor, progress)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENODEV):  # Linux before 5.14; a file system without maps
            raise
        return _hash_copied(descriptor, progress)
    finally:
        os.close(descriptor)


def _hash_mapped(descriptor: int, progress: Callable[[int], None]) -> str:
    """Hash the page cache where it lies: the copy that read(2) makes costs 6 % of the hash's own time.

    A map alone would turn a bad block or a truncated file into SIGBUS, which ends a process without a word. Populating
    each window first turns them into an OSError; only what breaks within the milliseconds of one window is left.
    """
    sha = hashlib.sha256()
    size = os.fstat(descriptor).st_size
    for start in range(0, size, _WINDOW_BYTES):
        length = min(_WINDOW_BYTES, size - start)
        with _map(descriptor, start, length) as window:
            # What is not in memory yet is read in pieces of 2 MiB: 1.7 times as fast from the disk as without, and
            # faster to map from then on. A kernel without huge pages refuses, which costs only that.
            with contextlib.suppress(OSError):
                window.madvise(mmap.MADV_HUGEPAGE)
            window.madvise(_MADV_POPULATE_READ)
            sha.update(window)
        progress(length)
    return sha.hexdigest()


def _map(descriptor: int, start: int, length: int) -> mmap.mmap:
    try:
        return mmap.mmap(descriptor, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start)
    except ValueError as error:
        raise OSError(errno.EIO, "the file was cut short while it was read") from error


def _hash_copied(descriptor: int, progress: Callable[[int], None]) -> str:
    sha = hashlib.sha256()
    # An anonymous map, as only that is page-aligned: the kernel copies into it faster than into a bytearray.
    with mmap.mmap(-1, _BUFFER_BYTES) as buffer, memoryview(buffer) as view:
        while count := os.readv(descriptor, [view]):
            with view[:count] as filled:
                sha.update(filled)
            progress(count)
    return sha.hexdigest()


class _Stopped(Exception):
    """Another thread's file failed."""


def _next(waiting: deque[FileEntry]) -> FileEntry | None:
    try:
        return waiting.popleft()
    except IndexError:  # asking first would race with the other threads
        return None


def _check_file(snapshot: SnapshotLayout, entry: FileEntry, progress: Callable[[int], None]) -> None:
    _stat(snapshot, entry)
    try:
        found = hash_file(snapshot.path / entry.path, progress)
    except OSError as error:
        raise _unreadable(entry.path, error) from error
    if found != entry.sha256:
        raise DigestMismatch(f"{entry.path}: sha256", entry.sha256, found, _REMEDY)


def _stat(snapshot: SnapshotLayout, entry: FileEntry) -> os.stat_result:
    path = snapshot.path / entry.path
    try:
        found = os.lstat(path)
    except OSError as error:
        raise _unreadable(entry.path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise DigestMismatch(f"{entry.path}: kind", "a plain file", "something else", _REMEDY)
    if found.st_size != entry.size:
        raise DigestMismatch(f"{entry.path}: size in bytes", str(entry.size), str(found.st_size), _REMEDY)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _unreadable(path: str, error: OSError) -> HoldfastError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DigestMismatch(f"{path}: the file", "present", "missing", _REMEDY)
    return Permanent("unreadable", f"{path}: {error.strerror}", "check the node's disk and the mount")
