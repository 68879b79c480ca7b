"""The durable steps: every write, link, rename and unlink that publication depends on, each followed by its fsync.

Law: a function returns only when its step survives a power cut, except those named `..._volatile` or `..._unsynced`. A
name appears only by rename or link, so no reader sees a partial file.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.layout import TEMPORARY_PREFIX
from cached.contract.program import limits

PUBLIC_DIR_MODE = 0o755
PRIVATE_DIR_MODE = 0o700
READ_ONLY_MODE = 0o444
READ_ONLY_REMEDY = "mount it writable (after a fault the kernel makes a file system read-only: see the kernel log)"
NO_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP})  # of an open with O_DIRECT: open(2)
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o600) -> Iterator[int]:
    """Yield the descriptor of a file, open until the end of the block; arguments as of `os.open`."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_direct(path: Path, flags: int, mode: int = 0o600) -> tuple[int, bool]:
    """Open a file past the page cache where its file system has O_DIRECT, else through it; return the descriptor, and
    whether it has."""
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT, mode), True
    except OSError as error:
        if error.errno not in NO_DIRECT:
            raise
    return os.open(path, flags | os.O_CLOEXEC, mode), False


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Raise an OSError of the block as the `disk_error` of the step `what`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, what) from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` at the end of the block, or delete it on an error."""
    temporary = temporary_beside(path)
    try:
        yield temporary
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fsync_dir(path: Path) -> None:
    """Make the entries of a directory durable."""
    with opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as descriptor:
        os.fsync(descriptor)


def make_dir(path: Path, mode: int) -> None:
    """Create one directory with exactly `mode`, durably, unless it exists."""
    try:
        path.mkdir(mode)  # never wider than asked, also if a crash comes next
    except FileExistsError:
        return
    if stat.S_IMODE(path.stat().st_mode) != mode:  # the umask removed bits
        path.chmod(mode)
    fsync_dir(path.parent)


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of `data` at the file's position, in as many calls as needed; not durable by itself."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Write a new file under a temporary name; durable except for its name in the directory."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600) as descriptor:
        write_all(descriptor, data)
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def write_volatile(path: Path, data: bytes | bytearray, mode: int) -> None:
    """Write a new file under a temporary name, without a sync: sync it before it gets its final name."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC) as descriptor:
        try:
            write_all(descriptor, data)
            os.fchmod(descriptor, mode)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def write_unsynced(path: Path, data: bytes, mode: int) -> None:
    """Write a new file under a temporary name and start its writeback: `sync_file` it before it gets its final name.
    Files that are all written before the first of them is synced share one commit of the file system."""
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC) as descriptor:
        write_all(descriptor, data)
        os.fchmod(descriptor, mode)
        if data:
            start_writeback(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's bytes and mode durable."""
    with opened(path, os.O_RDONLY | os.O_CLOEXEC) as descriptor:
        os.fsync(descriptor)


def start_writeback(descriptor: int) -> None:
    """Start the writeback of a file's pages without waiting (sync_file_range(2), SYNC_FILE_RANGE_WRITE). A hint: if it
    fails, the fsync that follows does all the work."""
    _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def replace(path: Path, data: bytes, mode: int) -> None:
    """Replace or create a file atomically and durably."""
    with _replacing(path) as temporary:
        write_file(temporary, data, mode)
    fsync_dir(path.parent)


def replace_volatile(path: Path, data: bytes, mode: int) -> None:
    """Replace or create a file atomically but without fsync: for status files, which a restart rewrites."""
    with _replacing(path) as temporary:
        write_volatile(temporary, data, mode)


def replace_symlink_unsynced(path: Path, target: str) -> None:
    """Make `path` a symlink to `target`, atomically, replacing any file; durable after an `fsync_dir` of its folder."""
    with _replacing(path) as temporary:
        os.symlink(target, temporary)


def rename(source: Path, target: Path) -> None:
    """Rename within the file system; durable in both directories. Where both names are links of one file, which a power
    cut may leave of a rename, rename(2) does nothing: then the source is unlinked."""
    os.rename(source, target)
    if is_same_file(source, target):
        source.unlink()
    fsync_dir(target.parent)
    if source.parent != target.parent:
        fsync_dir(source.parent)


def is_same_file(path: Path, other: Path) -> bool:
    """Return whether both paths exist and lead to the same file."""
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except (FileNotFoundError, NotADirectoryError):
        return False


def unlink(path: Path) -> None:
    """Remove a name, durably, if it exists."""
    try:
        path.unlink()
    except FileNotFoundError:
        return
    fsync_dir(path.parent)


def preallocate(descriptor: int, size: int) -> bool:
    """Allocate `size` bytes of disk for a file; return False if the file system cannot. Raises OSError. fallocate(2)
    itself, not posix_fallocate(3), which falls back to writing every block."""
    if size == 0:
        return True
    if _libc.fallocate(descriptor, 0, ctypes.c_long(0), ctypes.c_long(size)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINTR):
        return False
    raise OSError(code, os.strerror(code))


def temporary_beside(path: Path, prefix: str = "") -> Path:
    """Return a new temporary path in the same directory; recovery sweeps it."""
    return path.parent / f"{TEMPORARY_PREFIX}{prefix}{secrets.token_hex(8)}"


def disk_error(error: OSError, what: str) -> HoldfastError:
    """Return the `HoldfastError` for a failed disk step `what`; a lack of file descriptors is no error of the disk."""
    short = limits.find_limit_error(error, what)
    if short is not None:
        return short
    if error.errno in DISK_FULL:
        if _lacks_inodes(error):
            problem = f"{what}: the file system has no inodes left, though it has free bytes"
            remedy = "delete small files on it, or recreate it with more inodes (mkfs.ext4 -N)"
            return Transient("no_space", problem, remedy)
        return Transient("no_space", f"{what}: the disk is full", "free space on the node, or lower --quota")
    if error.errno == errno.EROFS:
        return Transient("not_writable", f"{what}: {error.strerror}", READ_ONLY_REMEDY)
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "make the root writable for the daemon; look for immutable files with lsattr"
        return Transient("not_writable", f"{what}: {error.strerror}", remedy)
    return Transient("disk", f"{what}: {error.strerror or error}", "check the node's disk and kernel log")


def _lacks_inodes(error: OSError) -> bool:
    """Return whether inodes are missing, not blocks: only the creation of a name lacks inodes, and its error has it."""
    if error.errno != errno.ENOSPC or not isinstance(error.filename, str | os.PathLike):
        return False
    try:
        found = os.statvfs(Path(error.filename).parent)
    except OSError:
        return False
    return found.f_files > 0 and found.f_favail == 0 and found.f_bavail > 0


def refuse_root(message: str, remedy: str) -> Permanent:
    """Return the error for a root that the daemon cannot use."""
    return Permanent("bad_root", message, remedy)
