"""Keep the store tidy: carry out evictions, look at leases, sweep what nothing refers to.

Law: the only caller of `store.removal`. After each step the holdings, the board and the ledger say what the disk says.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from cached.blocking import Blocking
from cached.board import Board, Progress
from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.holdings import Holdings, look_at_leases
from cached.ledger import Ledger
from cached.store import blobs, removal

_log = logging.getLogger(__name__)


class Janitor:
    """One at a time: a lock keeps evictions and sweeps apart."""

    def __init__(self, layout: Layout, holdings: Holdings, board: Board, ledger: Ledger, blocking: Blocking) -> None:
        self._layout = layout
        self._holdings = holdings
        self._board = board
        self._ledger = ledger
        self._blocking = blocking
        self._turn = asyncio.Lock()

    async def look_at_leases(self) -> None:
        """See which snapshots are in use."""
        digests = frozenset(self._holdings.models.values())
        self._holdings.saw_leases(await self._blocking.run(look_at_leases, self._layout, digests))

    async def evict(self, ref: ModelRef, digest: Digest, needed: Collection[str]) -> int | None:
        """Remove a version; returns the bytes given back, None where it is in use or is another by now."""
        async with self._turn:
            if self._holdings.models.get(ref) != digest:
                return None
            before = self._board.get(ref)
            size = self._holdings.size(ref)
            self._board.move(ref, State.EVICTING, Progress(size, size, None, None))
            shared = sum(1 for each in self._holdings.models.values() if each == digest) > 1
            manifest = None if shared else self._holdings.manifests[digest]
            try:
                freed = await self._blocking.run(removal.evict, self._layout, ref, digest, manifest, needed)
            except HoldfastError as error:
                _log.warning("%s", error)
                freed = None
            if freed is None:
                pinned = before is not None and before.pinned
                self._board.ready(ref, digest, size, pinned)
                return None
            if self._holdings.remove(ref) is not None:
                self._holdings.drop_snapshot(digest)
            self._board.drop(ref)
            self._give_back(freed)
            _log.info("%s: evicted, %d bytes given back", ref, freed)
            return freed

    async def quarantine(self, sha256: str) -> list[ModelRef]:
        """Take a blob whose bytes went bad out of use, with every snapshot that links it; returns their names."""
        async with self._turn:
            hit = [d for d, m in self._holdings.manifests.items() if sha256 in m.blob_sizes()]
            gone: list[ModelRef] = []
            for digest in hit:
                refs = [ref for ref, each in self._holdings.models.items() if each == digest]
                manifest = self._holdings.manifests[digest]
                freed = await self._blocking.run(removal.withdraw, self._layout, refs, digest, manifest, sha256)
                for ref in refs:
                    self._holdings.remove(ref)
                    self._board.drop(ref)
                self._holdings.drop_snapshot(digest)
                self._give_back(freed)
                gone += refs
            self._ledger.moved_to_trash(await self._blocking.run(blobs.quarantine, self._layout, sha256))
            return gone

    async def drop_unnamed(self) -> None:
        """Remove snapshots that no name points at, in use excepted. Only while nothing is being published."""
        async with self._turn:
            for digest in self._holdings.unnamed():
                manifest = self._holdings.manifests[digest]
                freed = await self._blocking.run(removal.delete_unnamed, self._layout, digest, manifest)
                if freed is not None:
                    self._holdings.drop_snapshot(digest)
                    self._give_back(freed)

    async def sweep(self, needed: Collection[str], busy: Collection[str]) -> int:
        """Delete blobs that nothing links, partial blobs that nobody fetches, and the quarantine; returns the bytes
        given back. `needed` and `busy` are what versions under way still want."""
        async with self._turn:
            swept = await self._blocking.run(removal.sweep, self._layout, needed, busy)
            self._give_back(swept.committed)
            self._ledger.trash_deleted(swept.dying)
            return swept.committed + swept.dying

    def _give_back(self, size: int) -> None:
        self._ledger.moved_to_trash(size)
        self._ledger.trash_deleted(size)
