"""Check that the served models still answer, by a dummy inference of each that was idle for a while.

Law: never delays work: a model that recently gave a token or a vector is healthy and is not asked. A model that fails
or does not answer in time is unhealthy until a step succeeds again.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic

from cached.contract.errors import HoldfastError, Transient
from cached.contract.program.logs import about
from server.lifecycle.readiness import ServerReadiness
from server.lifecycle.registry import ModelRegistry, ServedAdapter, ServedClassifier, ServedEncoder, ServedText

_LOG = logging.getLogger("holdfast.serve")
_UNHEALTHY_EVERY_S = 1.0  # between two checks


class HealthMonitor:
    """Checks all models every `interval_s`; one whose dummy inference takes over `timeout_s` is unhealthy."""

    def __init__(
        self, registry: ModelRegistry, readiness: ServerReadiness, interval_s: float, timeout_s: float
    ) -> None:
        self._registry = registry
        self._readiness = readiness
        self._interval_s = interval_s
        self._timeout_s = timeout_s

    async def watch(self) -> None:
        """Check for ever, and report to `readiness`."""
        while True:
            shortest_s = _UNHEALTHY_EVERY_S if self._readiness.unhealthy else self._interval_s
            await asyncio.sleep(min(shortest_s, self._interval_s))
            async with asyncio.TaskGroup() as group:
                for served in self._registry.list_models():
                    if not isinstance(served, ServedAdapter):  # its base is checked instead
                        group.create_task(self._check(served))
            names = {served.card.name for served in self._registry.list_models()}
            unhealthy = self._readiness.unhealthy
            self._readiness.set_unhealthy({name: reason for name, reason in unhealthy.items() if name in names})

    async def _check(self, served: ServedEncoder | ServedClassifier | ServedText) -> None:
        name, reason = served.card.name, await self._diagnose(served)
        served.metrics.set_healthy(reason is None)
        unhealthy = self._readiness.unhealthy
        if reason is None and name in unhealthy:
            self._readiness.set_unhealthy({other: unhealthy[other] for other in unhealthy if other != name})
            _LOG.warning("%s answers again", name, extra=about(model=name))
        elif reason is not None and name not in unhealthy:
            self._readiness.set_unhealthy({**unhealthy, name: reason})
            _LOG.error("%s is unhealthy: %s", name, reason, extra=about(model=name))

    async def _diagnose(self, served: ServedEncoder | ServedClassifier | ServedText) -> str | None:
        """Return why a model is unhealthy; None where it is healthy."""
        began = monotonic()
        if began - served.alive_at < self._interval_s and served.card.name not in self._readiness.unhealthy:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                await served.run_dummy_inference()
        except TimeoutError:
            if served.alive_at > began:
                return None  # busy with other requests
            return f"no answer to a dummy inference in {self._timeout_s:g} s"
        except Transient as error:
            # Its queue is full, or it was replaced: only a model without progress is unhealthy.
            still_s = monotonic() - served.alive_at
            patience_s = self._interval_s + self._timeout_s
            return error.message if error.code == "overloaded" and still_s > patience_s else None
        except HoldfastError as error:
            return f"a dummy inference failed: {error.message}"
        return None
