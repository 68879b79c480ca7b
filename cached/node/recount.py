"""Compare the ledger with the disk now and then: people delete, cut and add to files of the store by hand.

Law: changes nothing on the disk. A look costs one system call a blob, on a thread; what others counted meanwhile stays
as they said. It takes at most a two-hundredth of one thread's time, however much there is to look at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.core.space import Ledger, OnDisk
from cached.node.log_once import Saying
from cached.node.publisher import NodeParts
from cached.store import recovery
from cached.store.disk import durable
from cached.store.disk.root import Root

_log = logging.getLogger(__name__)

_SUBJECT = "comparing the account with the disk"
_PAUSE_S = 20.0
_PAUSES = 200  # times as long as a look took, where that is more
_SOON_S = 1.0  # after something was found to be missing: more may be


class Recount:
    """Runs beside the daemon's work; `soon` asks for a look ahead of time."""

    def __init__(self, parts: NodeParts) -> None:
        self._parts = parts
        self._asked = asyncio.Event()
        self._saying = Saying(_log)

    def soon(self) -> None:
        """Something was not as it should be: look again within seconds."""
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
            self._saying.trouble(_SUBJECT, str(error))
            return
        self._saying.fine(_SUBJECT)
        if corrected:
            _log.warning("the account was wrong about %d files: somebody changed the store by hand", corrected)
            parts.board.news.set()


def _recount(layout: Layout, root: Root, ledger: Ledger) -> int:
    """Look at the disk and correct the account; nothing where another root was uncovered meanwhile."""
    try:
        with ledger.recounting() as correct:
            root.check()
            blobs, partials, quarantined = recovery.measure(layout)
            root.check()
            return correct(OnDisk(blobs, partials, quarantined))
    except OSError as error:
        raise durable.disk_error(error, f"looking through {layout.root}") from error
