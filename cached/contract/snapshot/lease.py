"""Leases: `flock` on a snapshot's `.holdfast/lease`, which the kernel drops when the holder dies.

Law: opens read-only, never writes; works through read-only bind mounts. flock(2), because POSIX locks refuse an
exclusive lock on a read-only descriptor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from pathlib import Path

from cached.contract.program.plain_files import READ_FLAGS
from cached.contract.snapshot.flock import is_locked

_probe = threading.Lock()  # `is_held` locks the lease for a moment: our own eviction must not count that as a holder


class Lease:
    """A held lock on a lease file, released by `close()` or at the end of the `with` block."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def relock(self, path: Path) -> None:
        """Move the lock to the file that `path` names now, as a snapshot that is rebuilt keeps its name only. Without
        such a file, or while an eviction holds it, keep the old lock: the caller tries again. Raises OSError."""
        if self._descriptor < 0 or self.is_on(path):
            return
        newer = take_shared(path)
        if newer is not None:
            self.close()
            self._descriptor, newer._descriptor = newer._descriptor, -1

    def is_on(self, path: Path) -> bool:
        """Return whether the locked file is the one that `path` names now. Raises OSError."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Release the lease. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def take_shared(path: Path) -> Lease | None:
    """Take the lease at `path` together with its other holders. Raises OSError. Return None if the path no longer
    exists, names another file than the locked one, or an eviction holds the lease: resolve the model again."""
    return _take(path, fcntl.LOCK_SH)


def take_exclusive(path: Path) -> Lease | None:
    """Take the lease at `path` exclusively, for an eviction; None if it has a holder or is gone. Raises OSError."""
    with _probe:
        return _take(path, fcntl.LOCK_EX)


def is_held(path: str | Path) -> bool:
    """Return whether the lease at `path` has a holder now. Raises OSError."""
    with _probe:
        return is_locked(path, READ_FLAGS)


def _take(path: Path, kind: int) -> Lease | None:
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        return None
    with contextlib.ExitStack() as closing, contextlib.suppress(BlockingIOError, FileNotFoundError):
        lease = closing.enter_context(Lease(descriptor))
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            closing.pop_all()
            return lease
    return None
