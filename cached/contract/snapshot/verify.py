"""Verification of a snapshot against its manifest: by the verified record, or by hashing all files.

Law: reads only, through the read-only mount of a pod. A mismatch is a `DigestMismatch` that names the file, a read
error a `Permanent` (`unreadable`) that names it. For a file sealed with fs-verity the kernel's seal takes precedence
over inode and mtime of the record.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import re
import stat
import struct
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from queue import SimpleQueue

from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent
from cached.contract.layout import SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.program import limits
from cached.contract.program.plain_files import READ_FLAGS, open_plain, read_plain
from cached.contract.snapshot.strays import find_strays
from cached.contract.snapshot.verified import VerifiedRecord

_WINDOW_BYTES = 16 << 20  # mapped, populated and hashed at a time
_BUFFER_BYTES = 512 << 10  # for read(2), where maps are refused; half of a common second-level cache
_MADV_POPULATE_READ = 22  # linux/mman.h; the module mmap names it from Python 3.14 on
# Linux before 6.9 retries an unreadable page within the call for ever instead of failing with EFAULT
# ("mm/madvise: make MADV_POPULATE_(READ|WRITE) handle VM_FAULT_RETRY properly"): a bad block would hang the process.
_POPULATES_FOR_EVER = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) < (6, 9)
_MEASURE_VERITY = 0xC0046686  # FS_IOC_MEASURE_VERITY
_LONGEST_SEAL = 64
_SEAL_ALGORITHMS = {1: "sha256", 2: "sha512"}
# A kernel or file system without fs-verity, a sandbox without ioctls (gVisor, virtiofs), a seccomp profile.
_NO_VERITY = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EINVAL})
_REMEDY = "the bytes on the node changed after they were verified: `holdfast verify` on the node, then look at its disk"
_UNHASHED = "the daemon hashes it soon; `holdfast verify` on the node has it hashed now"
_STRAY_REMEDY = (
    "it was put into the snapshot by hand: `holdfast verify` on the node deletes it, then find out which program or "
    "person writes below the root"
)


class NoSeal(Enum):
    """Why a file has no fs-verity digest."""

    NONE = "not sealed"
    UNKNOWN = "not reported by this kernel"


def measure_seal(descriptor: int) -> str | NoSeal:
    """Return the fs-verity digest of an open file, as `sha256:<hex>`, against which the kernel checks the bytes of each
    read (else EIO): struct fsverity_digest, https://docs.kernel.org/filesystems/fsverity.html. Raises OSError."""
    buffer = bytearray(struct.pack("<HH", 0, _LONGEST_SEAL) + bytes(_LONGEST_SEAL))
    try:
        fcntl.ioctl(descriptor, _MEASURE_VERITY, buffer, True)
    except OSError as error:
        if error.errno == errno.ENODATA:
            return NoSeal.NONE
        if error.errno in _NO_VERITY:
            return NoSeal.UNKNOWN
        raise
    algorithm, size = struct.unpack_from("<HH", buffer)
    return f"{_SEAL_ALGORITHMS.get(algorithm, algorithm)}:{buffer[4 : 4 + size].hex()}"


def load_manifest(snapshot: SnapshotLayout, pin: Digest | None) -> Manifest:
    """Read the snapshot's manifest and check it against the snapshot's name and, if given, the pin. Raises
    `DigestMismatch`, `Permanent` (`unreadable`), `Transient` (`no_descriptor`), or `InvalidManifest` for bytes of the
    right hash."""
    data = _read(snapshot.manifest)
    found = Digest.of(data)
    if found.hex != snapshot.path.name:
        raise DigestMismatch(str(snapshot.manifest), f"sha256:{snapshot.path.name}", str(found), _REMEDY)
    return _parse_manifest(data, found, pin)


def load_volume_manifest(volume: SnapshotLayout, pin: Digest | None) -> Manifest:
    """Read the manifest of a snapshot that is mounted as a volume, at a path without its digest; else as
    `load_manifest`. Who mounted it has compared the two."""
    data = _read(volume.manifest)
    return _parse_manifest(data, Digest.of(data), pin)


def _parse_manifest(data: bytes, found: Digest, pin: Digest | None) -> Manifest:
    if pin is not None and pin != found:
        raise DigestMismatch(
            "the manifest digest",
            f"{pin} (the pin)",
            str(found),
            "correct the pin, or publish the content that the pin names under this version",
        )
    return Manifest.parse(data)


def check_record(snapshot: SnapshotLayout, manifest: Manifest) -> None:
    """Check that every file exists, is a plain file, was hashed, and matches `verified.json`: by its fs-verity seal, if
    it has one, else, or where the kernel cannot report the seal, by inode and mtime, and that nothing else is there.
    Hashes nothing. Raises `DigestMismatch`, or `Permanent` (`invalid_record`, `unreadable`), or `Transient`
    (`no_descriptor`)."""
    record = VerifiedRecord.parse(_read(snapshot.verified))
    for entry in manifest.files:
        found = _stat(snapshot, entry)
        verified = record.files.get(entry.path)
        if verified is None:
            raise DigestMismatch(f"{entry.path}: verified record", "an entry", "none", _REMEDY)
        if not verified.is_hashed:
            raise DigestMismatch(f"{entry.path}: its last hash", "a time", "none since it was put back", _UNHASHED)
        if verified.size != entry.size:
            raise DigestMismatch(f"{entry.path}: recorded size in bytes", str(entry.size), str(verified.size), _REMEDY)
        seal = NoSeal.UNKNOWN if verified.verity is None else _seal_of(snapshot, entry)
        if seal is NoSeal.UNKNOWN:
            for kind, expected, actual in (
                ("inode", verified.ino, found.st_ino),
                ("mtime in ns", verified.mtime_ns, found.st_mtime_ns),
            ):
                if expected != actual:
                    raise DigestMismatch(f"{entry.path}: {kind}", str(expected), str(actual), _REMEDY)
        elif seal != verified.verity:
            found_seal = seal.value if isinstance(seal, NoSeal) else seal
            raise DigestMismatch(f"{entry.path}: fs-verity digest", str(verified.verity), found_seal, _REMEDY)
    _check_strays(snapshot, manifest)


def check_full(
    snapshot: SnapshotLayout, manifest: Manifest, threads: int, progress: Callable[[int], None] = lambda _size: None
) -> None:
    """Hash every file with `threads` threads, the largest first, then check that nothing else is there; stop at the
    first failure, which is raised. The threads call `progress` with the bytes hashed since its last call; an exception
    in it ends the check."""
    # Plain threads: concurrent.futures imports logging, 9 ms at every gate's start, and cannot stop a running file.
    files = sorted(manifest.files, key=lambda f: f.size, reverse=True)
    waiting = iter(files)  # gives each file to one thread
    outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
    stop = threading.Event()

    def report(size: int) -> None:
        if stop.is_set():
            raise _Stopped
        progress(size)

    def work() -> None:
        failure: BaseException | None = None
        try:
            for entry in waiting:
                if stop.is_set():
                    break
                _check_file(snapshot, entry, report)
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by the calling thread
            failure = error
        outcomes.put(failure)

    workers = [threading.Thread(target=work, name=f"verify-{n}") for n in range(max(1, min(threads, len(files))))]
    running = limits.start_threads(workers)
    if not running:  # the limit of processes is reached: this thread hashes
        work()
    try:
        for _ in running or workers[:1]:
            failure = outcomes.get()
            if failure is not None:
                raise failure
    finally:
        stop.set()
        for worker in running:
            worker.join()
    _check_strays(snapshot, manifest)


def hash_file(path: Path, progress: Callable[[int], None] = lambda _size: None) -> str:
    """Return the sha256 of a file as hexadecimal digits, of a plain one only. Calls `progress` with
    the bytes hashed since its last call. Raises OSError if the file cannot be read to its end."""
    descriptor = open_plain(path)
    try:
        if _POPULATES_FOR_EVER:
            return _hash_copied(descriptor, progress)
        return _hash_mapped(descriptor, progress)
    except OSError as error:
        # A file system without maps, or an unreadable page, for which read(2) gives the reason.
        if error.errno not in (errno.EINVAL, errno.ENODEV, errno.EFAULT):
            raise
        return _hash_copied(descriptor, progress)
    finally:
        os.close(descriptor)


def feed_file(path: Path, update: Callable[[memoryview], object], progress: Callable[[int], None]) -> None:
    """Pass all bytes of a file to `update`, in writable buffers, for a hash that is none of hashlib's; else as
    `hash_file`."""
    descriptor = open_plain(path)
    try:
        _feed_copied(descriptor, update, progress)
    finally:
        os.close(descriptor)


def _hash_mapped(descriptor: int, progress: Callable[[int], None]) -> str:
    """Hash the page cache in place: the copy of read(2) costs 6 % of the hash's own time. A bad block or a truncated
    file raises SIGBUS in a map, which ends the process without a message: populating each window first turns both into
    an OSError, except within the milliseconds of one window."""
    sha = hashlib.sha256()
    size = os.fstat(descriptor).st_size
    for start in range(0, size, _WINDOW_BYTES):
        length = min(_WINDOW_BYTES, size - start)
        with _map(descriptor, start, length) as window:
            # Reads in pieces of 2 MiB: 1.7 times as fast from the disk, and faster to map afterwards. A kernel without
            # huge pages refuses, which costs only this gain.
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
    _feed_copied(descriptor, sha.update, progress)
    return sha.hexdigest()


def _feed_copied(descriptor: int, update: Callable[[memoryview], object], progress: Callable[[int], None]) -> None:
    # An anonymous map is page-aligned: the kernel copies into it faster than into a bytearray.
    size, done = os.fstat(descriptor).st_size, 0
    with mmap.mmap(-1, _BUFFER_BYTES) as buffer, memoryview(buffer) as view:
        while count := os.readv(descriptor, [view]):
            with view[:count] as filled:
                update(filled)
            progress(count)
            done += count
    if done < size:
        raise OSError(errno.EIO, "the file was cut short while it was read")


class _Stopped(Exception):
    """Another thread's file failed."""


def _check_file(snapshot: SnapshotLayout, entry: FileEntry, progress: Callable[[int], None]) -> None:
    _stat(snapshot, entry)
    try:
        found = hash_file(snapshot.path / entry.path, progress)
    except OSError as error:
        if error.errno == errno.EIO and isinstance(_seal_of(snapshot, entry), str):
            refused = "a block that the disk cannot read, or that does not match the file's fs-verity seal"
            raise DigestMismatch(f"{entry.path}: bytes", entry.sha256, refused, _REMEDY) from error
        raise _unreadable(entry.path, error) from error
    if found != entry.sha256:
        raise DigestMismatch(f"{entry.path}: sha256", entry.sha256, found, _REMEDY)


def _check_strays(snapshot: SnapshotLayout, manifest: Manifest) -> None:
    try:
        strays = find_strays(snapshot, manifest)
    except OSError as error:
        raise _unreadable(str(snapshot.path), error) from error
    if strays:
        raise DigestMismatch(
            f"{strays[0]!r}", "nothing: the manifest does not have it", "a file or folder", _STRAY_REMEDY
        )


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


def _seal_of(snapshot: SnapshotLayout, entry: FileEntry) -> str | NoSeal:
    try:
        descriptor = os.open(snapshot.path / entry.path, READ_FLAGS)
        try:
            return measure_seal(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(entry.path, error) from error


def _read(path: Path) -> bytes:
    try:
        return read_plain(path)
    except OSError as error:
        raise _unreadable(str(path), error) from error


def _unreadable(path: str, error: OSError) -> HoldfastError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DigestMismatch(f"{path}: the file", "present", "missing", _REMEDY)
    reached = limits.find_limit_error(error, f"reading {path}")
    return reached or Permanent("unreadable", f"{path}: {error.strerror}", "check the node's disk and the mount")
