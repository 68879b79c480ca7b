"""The periodic resolve: compare the listing of each unpinned version's source with the inventory.

Law: lists one source after the other, never reads a model's bytes, and reports to the reconciler; changes nothing
itself. Each version has its own random due time, so that many nodes do not list one source at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from cached.core.catalog import CatalogVersion
from cached.daemon.node_state import NodeState
from cached.daemon.reconciler import Reconciler
from cached.fetch.resolving.comparison import SourceComparer, SourceComparison
from cached.node.log_once import LogOnce

_log = logging.getLogger(__name__)

_CHECK_S = 5.0  # between two checks for new and due versions, or a hundredth of the interval
_JITTER = 0.2


class PeriodicResolve:
    """Resolves each unpinned version once in about `interval_s` seconds."""

    def __init__(self, state: NodeState, reconciler: Reconciler, comparer: SourceComparer, interval_s: float) -> None:
        self._state = state
        self._reconciler = reconciler
        self._comparer = comparer
        self._interval_s = interval_s
        self._due: dict[ModelRef, float] = {}  # on the monotonic clock
        self._last: dict[ModelRef, tuple[CatalogVersion, SourceComparison]] = {}
        self._log_once = LogOnce(_log)

    async def run(self) -> None:
        """Resolve due versions until cancelled."""
        while True:
            found = self._state.list_resolvable()
            now = time.monotonic()
            # A new version was resolved just now; one found at a restart may be of any age.
            self._due = {ref: self._due.get(ref, now + self._interval_s * random.random()) for ref in found}  # noqa: S311 - jitter
            self._last = {ref: last for ref, last in self._last.items() if ref in found}
            for ref in [ref for ref, due in self._due.items() if due <= now]:
                await self._resolve(ref)
            await asyncio.sleep(min(max(_CHECK_S, self._interval_s / 100), self._interval_s))

    async def _resolve(self, ref: ModelRef) -> None:
        interval_s = self._interval_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
        self._due[ref] = time.monotonic() + interval_s
        entry = self._state.find_resolvable(ref)
        if entry is None:
            return  # no longer resolvable
        last_entry, last = self._last.pop(ref, (None, None))
        try:
            found = await self._comparer.compare(entry, last if last_entry == entry else None)
        except HoldfastError as error:
            self._log_once.log_error(f"{ref}: looking whether its source changed", str(error), ref)
            return
        self._log_once.log_recovery(f"{ref}: looking whether its source changed", ref)
        if found is not None:
            self._last[ref] = entry, found
            self._reconciler.record_comparison(ref, found)
