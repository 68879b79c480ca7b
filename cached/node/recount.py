"""Compare the ledger with the disk periodically: people delete and change files of the store by hand.

Law: changes nothing on the disk. A comparison costs one system call a blob, on a thread; entries that others counted
during it stay. It takes at most a two-hundredth of one thread's time, whatever the number of blobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.core.space import Ledger, OnDisk
from cached.node.log_once import LogOnce
from cached.node.publisher import NodeParts
from cached.store import recovery
from cached.store.disk import durable
from cached.store.disk.root import Root

_log = logging.getLogger(__name__)

_SUBJECT = "comparing the account with the disk"
_PAUSE_S = 20.0
_PAUSES = 200  # the pause is at least so many times the comparison's duration
_SOON_S = 1.0  # after a file was found missing: more may be


class Recount:
    """The periodic comparison; `soon` makes the next one early."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._asked = asyncio.Event()
        self._log_once = LogOnce(_log)

    def soon(self) -> None:
        """Compare again within seconds."""
        self._asked.set()

    async def run(self) -> None:
        """Compare until cancelled."""
        pause_s = _PAUSE_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._asked.wait()
                    await asyncio.sleep(_SOON_S)
            self._asked.clear()
            began = time.monotonic()
            await self._look()
            pause_s = max(_PAUSE_S, _PAUSES * (time.monotonic() - began))

    async def _look(self) -> None:
        parts = self._parts
        try:
            corrected = await parts.blocking.run(_recount, parts.layout, parts.root, parts.ledger)
        except HoldfastError as error:
            self._log_once.log_error(_SUBJECT, str(error))
            return
        self._log_once.log_recovery(_SUBJECT)
        if corrected:
            _log.warning("the ledger was wrong about %d files: the store was changed by hand", corrected)
            parts.status_files.news.set()


def _recount(layout: Layout, root: Root, ledger: Ledger) -> int:
    """Correct the ledger by the disk, unless another root was uncovered then; return the number of corrections."""
    with durable.disk_errors(f"looking through {layout.root}"), ledger.begin_recount() as correct:
        root.check()
        blobs, partials, quarantined = recovery.measure(layout)
        root.check()
        return correct(OnDisk(blobs, partials, quarantined))
