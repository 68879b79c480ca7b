"""Whether the models in service still answer: asked of each that had nothing to do for a while.

Law: never in the way of work: a model that gave a token or a vector lately is well, and is not asked. One that does
not answer in time, or fails, is ill until it does something well again.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from cached.contract.errors import HoldfastError, Transient
from server.lifecycle.readiness import Readiness
from server.lifecycle.registry import Catalog, ServedAdapter, ServedEncoder, ServedGenerator

_LOG = logging.getLogger("holdfast.serve")
_WHILE_ILL_S = 1.0  # between two looks


class Pulse:
    """Feels all models every `interval_s`; one that takes longer than `timeout_s` for a dummy inference is ill."""

    def __init__(self, catalog: Catalog, readiness: Readiness, interval_s: float, timeout_s: float) -> None:
        self._catalog = catalog
        self._readiness = readiness
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._ill: dict[str, str] = {}

    async def watch(self) -> None:
        """Go on for ever, telling `readiness`."""
        while True:
            await asyncio.sleep(min(_WHILE_ILL_S, self._interval_s) if self._ill else self._interval_s)
            async with asyncio.TaskGroup() as group:
                for served in self._catalog.all():
                    if not isinstance(served, ServedAdapter):  # its base is it
                        group.create_task(self._feel(served))
            there = {served.card.name for served in self._catalog.all()}
            self._ill = {name: reason for name, reason in self._ill.items() if name in there}
            self._readiness.diagnose(dict(self._ill))

    async def _feel(self, served: ServedEncoder | ServedGenerator) -> None:
        name, reason = served.card.name, await self._complaint(served)
        served.metrics.healthy(reason is None)
        if reason is None:
            if self._ill.pop(name, None) is not None:
                _LOG.warning("%s answers again", name)
        elif name not in self._ill:
            self._ill[name] = reason
            _LOG.error("%s is ill: %s", name, reason)
            self._readiness.diagnose(dict(self._ill))

    async def _complaint(self, served: ServedEncoder | ServedGenerator) -> str | None:
        """Why a model is ill; None where it is well."""
        began = monotonic()
        if began - served.alive_at < self._interval_s and served.card.name not in self._ill:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                await served.try_it()
        except TimeoutError:
            if served.alive_at > began:
                return None  # busy with others
            return f"no answer to a dummy inference in {self._timeout_s:g} s"
        except Transient as error:
            # Its queue is full, or it was replaced meanwhile: only standing still is an illness.
            still_s = monotonic() - served.alive_at
            patience_s = self._interval_s + self._timeout_s
            return error.message if error.code == "overloaded" and still_s > patience_s else None
        except HoldfastError as error:
            return f"a dummy inference failed: {error.message}"
        return None
