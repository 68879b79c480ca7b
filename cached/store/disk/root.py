"""The root folder: its file system is tested at start; one daemon locks it, and checks it again before each write.

Law: each required ability is tested by using it, between the folders that need it; a missing one is refused with the
mount, the ability and the remedy. The tests leave no files. A full disk is not refused: the daemon makes room. While
the daemon runs, the root may be renamed, deleted or unmounted, which uncovers the empty folder (or an older tree)
beneath, on the node's own disk. Nothing is written there: `Root.check` raises until the locked folder is back.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cached.contract.errors import Transient
from cached.contract.layout import Layout
from cached.core.space import DiskSpace
from cached.store.disk import durable

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(r"nfs\d?|cifs|smb\d?|smbfs|9p|ceph|afs|lustre|gpfs|glusterfs|beegfs|fuse(\..*)?|virtiofs")
_REMEDIES = {
    errno.EROFS: durable.READ_ONLY_REMEDY,
    errno.EACCES: "give the daemon a folder that its user may write to",
}
_LOCAL_REMEDY = "put the whole root on one local file system such as ext4 or xfs"
_RECORDS_SHARE, _RECORDS_MOST = 64, 64 * 1024 * 1024
_UNKNOWN_SIZE = 1 << 62
_LOCK_PATIENCE_S = 2.0  # a daemon that had to exit at once leaves the closing of its files to a child


class Root:
    """The lock that keeps a root to one daemon: the kernel drops it when the daemon dies. Thread-safe; close it. Raises
    `Permanent` (`bad_root`) if another daemon has the lock, or the file system has no locks."""

    def __init__(self, layout: Layout) -> None:
        self.path = layout.root
        self._layout = layout
        try:
            self._descriptor = os.open(layout.private, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise durable.refuse_root(f"{layout.private}: {error.strerror}", "run the daemon as its owner") from error
        try:
            _lock(self._descriptor)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise durable.refuse_root(
                f"{layout.root}: another daemon works here", "stop it, or give this one another --root"
            ) from error
        except OSError as error:
            os.close(self._descriptor)
            problem = f"{layout.root}: cannot lock a folder here ({mount_of(layout.root)}): {error.strerror}"
            raise durable.refuse_root(problem, _LOCAL_REMEDY) from error

    @property
    def deleted(self) -> bool:
        """Return whether the folder was deleted for good; False if the disk does not answer."""
        try:
            return os.fstat(self._descriptor).st_nlink == 0
        except OSError:
            return False

    def check(self) -> None:
        """Raise `Transient` (`root_gone`) unless the root's path leads to the locked folder, and for a disk error."""
        try:
            found, own = os.stat(self._layout.private), os.fstat(self._descriptor)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._gone("it is not there any more") from error
        except OSError as error:
            raise durable.disk_error(error, f"looking at {self._layout.private}") from error
        if (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
            raise self._gone("another folder is there now than the one this daemon began with")

    def space(self) -> DiskSpace:
        """Return the file system's numbers, less the space kept for the store's own records; raises `Transient`."""
        self.check()
        with durable.disk_errors(f"looking at {self._layout.root}"):
            found = os.statvfs(self._layout.root)
        if found.f_blocks == 0:  # ramfs reports no size, so only a quota limits it
            return DiskSpace(_UNKNOWN_SIZE, _UNKNOWN_SIZE)
        capacity = found.f_blocks * found.f_frsize
        records = min(_RECORDS_MOST, capacity // _RECORDS_SHARE)
        free = max(0, found.f_bavail * found.f_frsize - records)
        return DiskSpace(capacity, free, files=found.f_files, files_free=found.f_favail)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def _gone(self, how: str) -> Transient:
        return Transient(
            "root_gone",
            f"{self._layout.root}: {how}; nothing is written until it is back",
            "mount it, or move it back; or restart the daemon to begin with what is there now",
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system: its kind (`ext4`), its mount point, and its device (`/dev/sda1`)."""

    kind: str
    point: str
    device: str

    def __str__(self) -> str:
        return f"{self.kind}, mounted at {self.point}"


def mount_of(path: Path) -> Mount:
    """Return the mount of `path` (proc(5), mountinfo): the longest mount point above it, the last of equals."""
    place = os.path.realpath(path)
    found = Mount("unknown", "/", "its device")
    length = 0
    for line in _MOUNTS.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= length:
            kind, device = after.split()[:2]
            found, length = Mount(kind, point, device), len(point)
    return found


def check_file_system(layout: Layout) -> None:
    """Test every required ability of the file system; raises `Permanent` (`bad_root`)."""
    _check_one_mount(layout)
    first, second = durable.temporary_beside(layout.ingest), durable.temporary_beside(layout.public.models)
    third = durable.temporary_beside(layout.trash / "any")
    try:
        _try(layout, "write files", lambda: durable.write_file(first, b"", durable.READ_ONLY_MODE))
        _try(layout, "hard-link from private/ to public/", lambda: os.link(first, second))
        _try(layout, "flock a file", lambda: _lock_probe(second))
        _try(layout, "rename from public/ to private/", lambda: os.rename(second, third))
        _try(layout, "make symlinks", lambda: os.symlink("nowhere", second))
    except _Full:
        return
    finally:
        for probe in (first, second, third):
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def is_on_network(path: Path) -> bool:
    """Return whether a network file system has `path`."""
    return _NETWORK.fullmatch(mount_of(path).kind) is not None


def list_remarks(layout: Layout) -> list[str]:
    """Return warnings about a file system that works, but not well."""
    found = []
    mount = mount_of(layout.root)
    if _NETWORK.fullmatch(mount.kind):
        found.append(
            f"{layout.root}: a network file system ({mount}): slow, and a lock that another node does not see lets two "
            f"daemons work on one root; {_LOCAL_REMEDY}"
        )
    if not _takes_direct(layout):
        found.append(
            f"{layout.root}: no O_DIRECT here ({mount}): fetches go through the page cache, which costs more processor "
            "time and memory, and the scrub reads from it too"
        )
    return found


class _Full(Exception):
    """The disk is full: then nothing can be tested."""


def _try(layout: Layout, ability: str, act: Callable[[], None]) -> None:
    try:
        act()
    except OSError as error:
        if error.errno in durable.DISK_FULL:
            raise _Full from error
        raise durable.refuse_root(
            f"{layout.root}: cannot {ability} here ({mount_of(layout.root)}): {error.strerror}",
            _REMEDIES.get(error.errno or 0, _LOCAL_REMEDY),
        ) from error


def _check_one_mount(layout: Layout) -> None:
    """Refuse a mount inside the root: links and renames do not cross mounts, even within one file system."""
    public = layout.public
    whole = mount_of(layout.root)
    inside = (layout.private, layout.ingest, layout.blobs, layout.quarantine, layout.trash)
    for folder in (*inside, public.path, public.snapshots, public.models, public.status):
        mount = mount_of(folder)
        if mount.point != whole.point:
            raise durable.refuse_root(
                f"{folder}: another mount ({mount}) than its root's ({whole}): cannot hard-link or rename across",
                _LOCAL_REMEDY,
            )


def _lock_probe(path: Path) -> None:
    with durable.opened(path, os.O_RDONLY | os.O_CLOEXEC) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _takes_direct(layout: Layout) -> bool:
    probe = durable.temporary_beside(layout.ingest)
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_DIRECT, 0o600))
    except OSError as error:
        return error.errno not in durable.NO_DIRECT
    finally:
        probe.unlink(missing_ok=True)
    return True


def _lock(descriptor: int) -> None:
    """Lock an open folder; raises `BlockingIOError` if it is still locked after `_LOCK_PATIENCE_S`."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOCK_PATIENCE_S / 40)
        else:
            return
