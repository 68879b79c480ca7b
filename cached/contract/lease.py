"""Leases: `flock` on a snapshot's `.holdfast/lease`, dropped by the kernel when its holder dies.

Law: opens read-only, never writes; works through read-only bind mounts. flock(2), not POSIX locks, which refuse
an exclusive lock on a read-only descriptor.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType

_looking = threading.Lock()  # a look takes the lease for a moment: our own eviction must not take that for a use


class Lease:
    """A held lock on a lease file; give it back with `close()` or by leaving the `with` block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def follow(self, path: Path) -> None:
        """Lock the file that `path` names now, where it is another one: a snapshot that was made anew, because a file
        of it rotted or was deleted, keeps its name and nothing else.

        Where nothing is there, or an eviction has it, the lock stays what it was: look again. Raises OSError.
        """
        if self._descriptor < 0:
            return
        try:
            if os.path.samestat(os.fstat(self._descriptor), os.stat(path, follow_symlinks=False)):
                return
        except FileNotFoundError:
            return
        newer = take_shared(path)
        if newer is not None:
            self.close()
            self._descriptor, newer._descriptor = newer._descriptor, -1

    def close(self) -> None:
        """Give the lease back. Calling it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def take_shared(path: Path) -> Lease | None:
    """Hold the lease at `path` together with its other users.

    `None` where the path names nothing any more, or another file than the one that was locked, or where an eviction
    holds it exclusively: the caller looks the model up again and starts over.
    """
    return _take(path, fcntl.LOCK_SH)


def take_exclusive(path: Path) -> Lease | None:
    """Hold the lease at `path` alone, as an eviction must; `None` where somebody uses it or it is gone."""
    with _looking:
        return _take(path, fcntl.LOCK_EX)


def is_held(path: Path) -> bool:
    """Tell whether anybody holds the lease at `path` at this moment."""
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        return False
    with _looking:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _take(path: Path, kind: int) -> Lease | None:
    try:
        descriptor = _open(path)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        held, named = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    if not os.path.samestat(held, named):
        os.close(descriptor)
        return None
    return Lease(descriptor)
