"""Compare the inventory with the disk: people delete and change files of the store by hand.

Law: has missing parts restored; does not decide which versions are wanted. It looks at what inotify says has changed,
and every twelve seconds at one snapshot in turn, file by file; where there is no inotify, then at all names and records
too. So a missing name or snapshot is found at once, or in twelve seconds, a missing file within as many looks as there
are versions at the latest. A recount of the ledger (`recount.py`) follows each finding, and comes every twenty seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.node.inventory import Inventory
from cached.node.log_once import LogOnce
from cached.node.publisher import Publisher
from cached.node.recount import Recount
from cached.node.status_files import StatusFiles
from cached.node.threads import Blocking
from cached.node.tree_watch import Changes, Followed, TreeWatch
from cached.store.disk import durable
from cached.store.disk.root import Root
from cached.store.start import recovery
from cached.store.version import repair

_log = logging.getLogger(__name__)

_CHECK = "looking after the root"
_RECOUNT = "comparing the account with the disk"
_LOOK_S = 12.0
_SETTLE_S = 0.25  # who deletes a tree by hand deletes many files
_SHARE, _LONGEST_PAUSE_S = 20.0, 2.0  # looks take a small part of the time, while versions come and go
_HELD_LOOKS = 5  # until the leases that are held are looked at again: the disk keeps their last use
_RARE_LOOKS = 25  # until everything is looked at although nothing happened
_PAUSE_S = 20.0
_PAUSES = 200  # the pause is at least so many times a recount's duration
_SOON_S = 1.0  # after a file was found missing: more may be


class Inspection:
    """Run `run` and `run_recounts` as tasks. `refetch` is called with lost versions."""

    def __init__(
        self,
        *,
        layout: Layout,
        root: Root,
        tree: TreeWatch,
        inventory: Inventory,
        status_files: StatusFiles,
        recount: Recount,
        blocking: Blocking,
        publisher: Publisher,
        refetch: Callable[[Iterable[ModelRef]], None],
    ) -> None:
        self._layout = layout
        self._root = root
        self._tree = tree
        self._inventory = inventory
        self._status_files = status_files
        self._recount = recount
        self._blocking = blocking
        self._publisher = publisher
        self._refetch = refetch
        self._turn, self._turned_at = 0, -math.inf  # on the monotonic clock
        self._checks_all = True  # at first, and after a check that failed
        self._used: set[Digest] = set()  # snapshots whose lease was opened or closed since the last look at the leases
        self._checking = asyncio.Lock()  # two checks at once would restore the same
        self._recount_soon = asyncio.Event()
        self._log_once = LogOnce(_log)

    async def run(self) -> None:
        """Look after the root until cancelled."""
        while True:
            began = time.monotonic()
            async with self._checking:
                await self._look(self._tree.take())
            took_s = time.monotonic() - began
            await asyncio.sleep(min(_LONGEST_PAUSE_S, max(_SETTLE_S, _SHARE * took_s)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._tree.changed.wait()
                    await asyncio.sleep(_SETTLE_S)

    async def check(self) -> None:
        """Compare all names and records with the disk once, and restore missing parts."""
        async with self._checking:
            await self._look(Changes(everything=True))

    async def _look(self, changes: Changes) -> None:
        named = self._inventory.named()
        turn, held, is_rare = self._take_turn(named)
        polled = self._tree.list_unwatched(named)
        is_all = changes.everything or self._checks_all or is_rare or not self._tree.watches_tree
        suspects = named.keys() if is_all else changes.names | changes.files | polled | turn
        if changes.sizes:
            self._recount.suspect()
            self._recount_soon.set()
        self._used |= changes.used
        try:
            added = await self._restore_damaged(named, {*suspects, *_find(named, changes)}, changes.files | turn)
            await self._look_at_leases(set(named) if changes.everything else polled | turn | added.names | held)
        except HoldfastError as error:
            self._checks_all = True
            self._log_once.log_error(_CHECK, str(error))
            return
        self._checks_all = False
        if is_all or changes.statuses or added.statuses:
            self._status_files.restore()
        self._log_once.log_recovery(_CHECK)

    def _take_turn(self, named: Mapping[Digest, object]) -> tuple[set[Digest], frozenset[Digest], bool]:
        """Return, of what is looked at although nothing happened, the snapshot whose files are looked at, the leased
        ones, and whether it is all; nothing if that was asked a moment ago."""
        now = time.monotonic()
        if now < self._turned_at + _LOOK_S or not named:
            return set(), frozenset(), False
        self._turn, self._turned_at = self._turn + 1, now
        held = self._inventory.leased if self._turn % _HELD_LOOKS == 0 else frozenset()
        return {list(named)[self._turn % len(named)]}, held, self._turn % _RARE_LOOKS == 0

    async def _restore_damaged(
        self, named: Mapping[Digest, list[ModelRef]], suspects: set[Digest], whole: set[Digest]
    ) -> Changes:
        """Restore those of the suspects that are damaged, of those in `whole` every file; return what is newly watched.
        Raises `HoldfastError`."""
        manifests = {digest: self._inventory.manifests[digest] for digest in whole if digest in named}
        wanted = Followed(
            frozenset(named),
            frozenset(ref.path_segment for ref in self._inventory.models),
            self._status_files.list_segments(),
        )

        def find_damaged() -> tuple[Changes, list[Digest]]:
            self._root.check()
            with durable.disk_errors(f"looking through {self._layout.root}"):
                recovery.make_tree(self._layout)
                added = self._tree.follow(wanted)
                looked = {*suspects, *added.names, *_find(named, added)} & named.keys()
                return added, [
                    digest
                    for digest in looked
                    if not repair.is_named(self._layout, named[digest], digest)
                    or (digest in manifests and not repair.is_intact(self._layout, digest, manifests[digest]))
                ]

        added, damaged = await self._blocking.run(find_damaged)
        if damaged:
            self._recount.suspect()
            self._recount_soon.set()
            self._refetch(await self._publisher.restore_missing(damaged))
        return added

    async def _look_at_leases(self, others: set[Digest]) -> None:
        used, self._used = self._used, set()
        await self._publisher.update_leases(used | others, used)

    async def run_recounts(self) -> None:
        """Correct the ledger by the disk until cancelled: periodically, and soon after a check found damage."""
        pause_s = _PAUSE_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._recount_soon.wait()
                    await asyncio.sleep(_SOON_S)
            self._recount_soon.clear()
            began = time.monotonic()
            try:
                corrected = await self._blocking.run(self._recount.correct)
                self._log_once.log_recovery(_RECOUNT)
                if corrected:
                    _log.warning("the ledger was wrong about %d files: the store was changed by hand", corrected)
                    self._status_files.news.set()
            except HoldfastError as error:
                self._log_once.log_error(_RECOUNT, str(error))
            pause_s = max(_PAUSE_S, _PAUSES * (time.monotonic() - began))


def _find(named: Mapping[Digest, list[ModelRef]], changes: Changes) -> set[Digest]:
    """Return the snapshots that have a name in one of the changed folders of names."""
    if not changes.segments:
        return set()
    return {digest for digest, refs in named.items() if any(ref.path_segment in changes.segments for ref in refs)}
