"""Compare the inventory and the ledger with the disk: people delete and change files of the store by hand.

Law: has missing parts restored, and corrects the ledger; does not decide which versions are wanted. A check costs a few
system calls a version, and two a file of one version, in rotation: it finds a missing name or snapshot at once, a
missing file within as many checks as there are versions. A recount costs one system call a blob, on a thread, at most a
two-hundredth of that thread's time; entries that others count during it stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.core.space import Ledger
from cached.node.inventory import Inventory
from cached.node.log_once import LogOnce
from cached.node.publisher import Publisher
from cached.node.status_files import StatusFiles
from cached.node.threads import Blocking
from cached.store import recovery, repair, snapshots
from cached.store.disk import durable
from cached.store.disk.root import Root

_log = logging.getLogger(__name__)

_CHECK = "looking after the root"
_RECOUNT = "comparing the account with the disk"
_PAUSE_S = 20.0
_PAUSES = 200  # the pause is at least so many times a recount's duration
_SOON_S = 1.0  # after a file was found missing: more may be


class Inspection:
    """Call `check` periodically, and run `run_recounts` as a task. `refetch` is called with lost versions."""

    def __init__(
        self,
        *,
        layout: Layout,
        root: Root,
        inventory: Inventory,
        status_files: StatusFiles,
        ledger: Ledger,
        blocking: Blocking,
        publisher: Publisher,
        refetch: Callable[[Iterable[ModelRef]], None],
    ) -> None:
        self._layout = layout
        self._root = root
        self._inventory = inventory
        self._status_files = status_files
        self._ledger = ledger
        self._blocking = blocking
        self._publisher = publisher
        self._refetch = refetch
        self._turn = 0
        self._checking = asyncio.Lock()  # two checks at once would restore the same
        self._recount_soon = asyncio.Event()
        self._log_once = LogOnce(_log)

    async def check(self) -> None:
        """Compare the inventory with the disk once, and restore missing parts."""
        async with self._checking:
            await self._check()

    async def _check(self) -> None:
        named = self._inventory.named()
        self._turn += 1
        thorough = list(named)[self._turn % len(named)] if named else None
        manifests = {digest: self._inventory.manifests[digest] for digest in named if digest == thorough}
        try:
            damaged = await self._blocking.run(_find_damaged, self._root, self._layout, named, manifests)
            if damaged:
                self._recount_soon.set()
                self._refetch(await self._publisher.restore(damaged))
        except HoldfastError as error:
            self._log_once.log_error(_CHECK, str(error))
            return
        self._status_files.restore()
        self._log_once.log_recovery(_CHECK)

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
                corrected = await self._blocking.run(recount, self._layout, self._root, self._ledger)
                self._log_once.log_recovery(_RECOUNT)
                if corrected:
                    _log.warning("the ledger was wrong about %d files: the store was changed by hand", corrected)
                    self._status_files.news.set()
            except HoldfastError as error:
                self._log_once.log_error(_RECOUNT, str(error))
            pause_s = max(_PAUSE_S, _PAUSES * (time.monotonic() - began))


def recount(layout: Layout, root: Root, ledger: Ledger) -> int:
    """Correct the ledger by the disk, unless another root was uncovered then; return the number of corrections."""
    with durable.disk_errors(f"looking through {layout.root}"), ledger.begin_recount() as correct:
        root.check()
        on_disk = recovery.measure(layout)
        root.check()
        return correct(on_disk)


def _find_damaged(
    root: Root, layout: Layout, named: dict[Digest, list[ModelRef]], manifests: dict[Digest, Manifest]
) -> tuple[Digest, ...]:
    """Create missing folders of the tree; return the damaged snapshots."""
    root.check()
    with durable.disk_errors(f"looking through {layout.root}"):
        recovery.make_tree(layout)
        return tuple(
            digest
            for digest, refs in named.items()
            if not repair.is_named(layout, refs, digest)
            or (digest in manifests and not snapshots.is_whole(layout, digest, manifests[digest]))
        )
