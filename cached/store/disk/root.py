"""The root folder that this daemon locked, checked again before each write.

Law: while the daemon runs, the root may be renamed, deleted or unmounted, which uncovers the empty folder (or an older
tree) beneath, on the node's own disk. Nothing is written there: `check` raises until the locked folder is back.
"""

from __future__ import annotations

import fcntl
import os
import time

from cached.contract.errors import Transient
from cached.contract.layout import Layout
from cached.core.space import DiskSpace
from cached.store.disk import durable
from cached.store.disk.preflight import LOCAL_REMEDY, mount_of

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
            raise durable.refuse_root(
                f"{layout.root}: cannot lock a folder here ({mount_of(layout.root)}): {error.strerror}",
                LOCAL_REMEDY,
            ) from error

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
