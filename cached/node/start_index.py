"""Write the start index when the store is at rest: some time after its last change, and at the end.

Law: it is written from the tree, and while this daemon has the root's lock. Where it cannot be written the next start
reads the whole tree; nothing else depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import TracebackType

from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.node.gc_pauses import give_back
from cached.node.inventory import Inventory
from cached.node.threads import Blocking
from cached.store.disk import durable
from cached.store.disk.root import Root
from cached.store.start import survey

_log = logging.getLogger(__name__)

_QUIET_S = 30.0  # without a change of the inventory
_PATIENCE_S = 60.0
_LAST_PATIENCE_S = 3.0  # at the end, of the 15 s that a shutdown may take


class StartIndex:
    """Run `run` as a task; `leave` is the end of an `AsyncExitStack`, after all that changes the store has ended."""

    def __init__(
        self,
        layout: Layout,
        root: Root,
        inventory: Inventory,
        blocking: Blocking,
        stopped: Callable[[], bool],
        *,
        is_believed: bool,
    ) -> None:
        """`is_believed`: this start believed the index that is there, which is right until the inventory changes."""
        self._layout = layout
        self._root = root
        self._inventory = inventory
        self._blocking = blocking
        self._tried = inventory.changes if is_believed else -1
        self._stopped = stopped  # whether the daemon ends because it was told to

    async def run(self, is_busy: Callable[[], bool]) -> None:
        """Write the index whenever the inventory changed and then did not for a while, until cancelled."""
        while True:
            seen = self._inventory.changes
            await asyncio.sleep(_QUIET_S)
            if seen == self._inventory.changes != self._tried and not is_busy():
                self._tried = seen
                await self._write(_PATIENCE_S)

    async def leave(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Write the index at an ordinary end."""
        if error is None and self._stopped():
            await self._write(_LAST_PATIENCE_S)

    async def _write(self, patience_s: float) -> None:
        began = time.monotonic()
        try:
            if await self._blocking.run(self._write_now, began + patience_s):
                _log.info("start index: written in %.2f s", time.monotonic() - began)
                give_back()
        except survey.NotAtRest as reason:
            _log.info("start index: not written: %s", reason)
        except HoldfastError as error:
            _log.warning("start index: not written: %s", error)

    def _write_now(self, deadline: float) -> bool:
        self._root.check()
        known = dict(self._inventory.manifests)
        with durable.disk_errors("writing the start index"):
            return survey.write_index(self._layout, known, deadline)
