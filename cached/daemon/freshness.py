"""Look now and then whether the sources of what is here still have it: the periodic resolve.

Law: asks one source after the other for its listing, never for a model's bytes, and tells the scheduler what it found;
changes nothing itself. Each version has a time of its own, so that no source is asked by many nodes at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from cached.contract.errors import HoldfastError
from cached.contract.reference import ModelRef
from cached.daemon.reconciler import Scheduler
from cached.fetch.version import Transfers
from cached.node.log_once import Saying

_log = logging.getLogger(__name__)

_LOOK_S = 5.0  # how soon a version that is new here, or due, is met
_JITTER = 0.2


class Freshness:
    """The periodic resolve of unpinned versions, each once in about `interval_s`."""

    def __init__(self, scheduler: Scheduler, transfers: Transfers, interval_s: float) -> None:
        self._scheduler = scheduler
        self._transfers = transfers
        self._interval_s = interval_s
        self._due: dict[ModelRef, float] = {}  # on the monotonic clock
        self._saying = Saying(_log)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            found = self._scheduler.resolvable()
            now = time.monotonic()
            # What is new here was resolved just now; what a restart found may be of any age.
            self._due = {ref: self._due.get(ref, now + self._interval_s * random.random()) for ref in found}  # noqa: S311 - jitter
            for ref in [ref for ref, due in self._due.items() if due <= now]:
                await self._look(ref)
            await asyncio.sleep(min(_LOOK_S, self._interval_s))

    async def _look(self, ref: ModelRef) -> None:
        interval_s = self._interval_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - jitter
        self._due[ref] = time.monotonic() + interval_s
        entry = self._scheduler.to_resolve(ref)
        if entry is None:
            return  # since it was listed
        try:
            seen = await self._transfers.look(entry)
        except HoldfastError as error:
            self._saying.trouble(f"{ref}: looking whether its source changed", str(error))
            return
        self._saying.fine(f"{ref}: looking whether its source changed")
        if seen is not None:
            self._scheduler.seen(ref, seen)
