"""The daemon's own leases on the snapshots of its volumes, one for each snapshot, for as many volumes as show it.

Law: blocking; called from threads. A lease is the same flock that gates and servers take.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import PublicLayout
from cached.contract.snapshot.lease import Lease, take_shared
from cached.store.disk import durable

_log = logging.getLogger(__name__)


class Leases:
    """The leases of volumes, by target. Thread-safe."""

    def __init__(self, public: PublicLayout) -> None:
        self._public = public
        self._lock = threading.Lock()
        self._held: dict[Digest, Lease] = {}
        self._digests: dict[Path, frozenset[Digest]] = {}

    def take(self, target: Path, digests: Collection[Digest]) -> bool:
        """Lease these snapshots for the volume at `target`, in place of those before; return False, with nothing
        changed, if one is gone or is being evicted. Raises `HoldfastError` for a disk error."""
        with self._lock, durable.disk_errors(f"leasing the snapshots of {target}"):
            taken: dict[Digest, Lease] = {}
            try:
                for digest in digests:
                    if self._holds_present(digest):
                        continue
                    lease = None if digest in self._held else take_shared(self._public.snapshot(digest).lease)
                    if lease is None:
                        return False
                    taken[digest] = lease
                self._held |= taken
                taken = {}
                self._digests[target] = frozenset(digests)
                self._drop_unused()
                return True
            finally:
                for lease in taken.values():
                    lease.close()

    def adopt(self, target: Path, digests: Collection[Digest]) -> None:
        """Lease what an earlier daemon mounted at `target`, as far as it is still here."""
        present = [digest for digest in digests if self.take(target, {digest} | self._digests.get(target, frozenset()))]
        if len(present) < len(digests):
            _log.warning("%s: it shows a snapshot that is not here any more", target)

    def release(self, target: Path) -> None:
        """Give back the leases of a volume. Idempotent; closes descriptors, and waits for no disk."""
        with self._lock:
            if self._digests.pop(target, None) is not None:
                self._drop_unused()

    def relock(self) -> None:
        """Move the leases to the snapshots' present folders: a repaired snapshot has a new one under its name. Raises
        `HoldfastError` for a disk error."""
        with self._lock, durable.disk_errors("renewing the leases of volumes"):
            for digest, lease in self._held.items():
                lease.relock(self._public.snapshot(digest).lease)

    def _holds_present(self, digest: Digest) -> bool:
        """Return whether a snapshot is leased as it is now: one that was withdrawn and made again has another file."""
        held, path = self._held.get(digest), self._public.snapshot(digest).lease
        if held is None:
            return False
        held.relock(path)
        return held.is_on(path)

    def _drop_unused(self) -> None:
        used = frozenset().union(*self._digests.values())
        for digest in self._held.keys() - used:
            self._held.pop(digest).close()
