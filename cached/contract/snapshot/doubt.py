"""Doubts: `flock` by which a gate that refuses a snapshot asks the daemon to look at it now, through a read-only mount.

Law: opens read-only, never writes; the kernel drops a doubt when its holder dies. Two locks: the doubt, on the
snapshot's `.holdfast/verified.json`, and the bell, on the folder of snapshots, so that the daemon looks for doubts only
while the bell is held. A record that is renewed, or a snapshot that is withdrawn, leaves the doubt on a file without a
name. Any reader may hold both for ever: they are claims, which the daemon checks, and answers as often as it wants to.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.program.plain_files import READ_FLAGS
from cached.contract.snapshot.flock import is_locked


class Doubt:
    """A doubt about one snapshot, or with None about a name that leads to none, and the bell. Raises OSError where the
    folder of snapshots cannot be opened; a record that is missing, or no file, needs no lock: the bell has the daemon
    look at names and records by itself."""

    def __init__(self, public: PublicLayout, snapshot: SnapshotLayout | None) -> None:
        self._waiting = [os.open(public.snapshots, READ_FLAGS | os.O_DIRECTORY)]
        self._held: list[int] = []
        if snapshot is not None:
            with contextlib.suppress(OSError):
                self._waiting.append(os.open(snapshot.verified, READ_FLAGS))
        self.hold()

    def hold(self) -> None:
        """Take the locks that are not held yet: the daemon's own look takes each for a moment, and a lock that another
        reader holds exclusively says the same to the daemon. Never waits."""
        for descriptor in list(self._waiting):
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                self._waiting.remove(descriptor)
                self._held.append(descriptor)

    def close(self) -> None:
        """Withdraw the doubt. Idempotent."""
        for descriptor in (*self._held, *self._waiting):
            os.close(descriptor)
        self._held, self._waiting = [], []


def is_bell_held(public: PublicLayout) -> bool:
    """Return whether a reader rings. Raises OSError where the folder of snapshots cannot be opened or locked."""
    return is_locked(public.snapshots, READ_FLAGS | os.O_DIRECTORY)


def is_doubted(snapshot: SnapshotLayout) -> bool:
    """Return whether a reader doubts this snapshot; False where its record is missing or no file. Raises OSError."""
    return is_locked(snapshot.verified, READ_FLAGS)
