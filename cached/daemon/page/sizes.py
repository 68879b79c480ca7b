"""The bytes of each snapshot: those that no other one shares, and those that its deletion would leave.

Law: on the event loop, a bounded step at a time; takes at most a twentieth of the time, however many blobs there are.
"""

from __future__ import annotations

import asyncio
import time

from cached.contract.digest import Digest
from cached.contract.held_bytes import HeldBytes, split_blobs
from cached.node.inventory import Inventory

_BLOBS_A_STEP = 2000  # some 2 ms
_SHARE = 20  # times as long as the last count took passes until the next one


class SnapshotSizes:
    """The sizes of the snapshots as of the last `update`. `shared`: of all shared blobs, each once; `total`: of all
    blobs; `changes` counts the updates that counted."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._sizes: dict[Digest, HeldBytes] = {}
        self._counted = -1  # the inventory's changes at the last count
        self._resume_at = 0.0  # monotonic seconds
        self._lock = asyncio.Lock()
        self.shared = self.total = self.changes = 0

    def get(self, digest: Digest) -> HeldBytes | None:
        """Return the size of a snapshot; None for one that came since the last count."""
        return self._sizes.get(digest)

    async def update(self) -> None:
        """Count again where the inventory changed."""
        if self._counted == self._inventory.changes or time.monotonic() < self._resume_at:
            return
        async with self._lock:
            if self._counted != self._inventory.changes:
                await self._count()

    async def _count(self) -> None:
        began, counted, waiting = time.monotonic(), self._inventory.changes, 0
        sizes: dict[Digest, HeldBytes] = {}
        shared: dict[str, int] = {}
        total = 0
        for digest, manifest in list(self._inventory.manifests.items()):
            blobs, common = manifest.blob_sizes(), self._inventory.shared
            sizes[digest] = split_blobs(blobs, common)
            total += sizes[digest].exclusive
            shared |= {sha256: size for sha256, size in blobs.items() if sha256 in common}
            waiting += len(blobs)
            if waiting >= _BLOBS_A_STEP:
                waiting = 0
                await asyncio.sleep(0)
        self._sizes, self._counted = sizes, counted
        self.shared = sum(shared.values())
        self.total = total + self.shared
        self.changes += 1
        self._resume_at = time.monotonic() + _SHARE * (time.monotonic() - began)
