"""The server's state: loading, ready or draining, which models are unhealthy, and the requests in flight.

Law: a state and a count, on the event loop; knows no HTTP. `server.api.probes` reports it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from server.lifecycle.metrics import ServerMetrics


@dataclass(frozen=True, slots=True)
class Loading:
    """Not ready yet; `stage` names the current step."""

    stage: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Loaded, warmed and admitted."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Finishing the requests in flight, accepting no new ones."""


State = Loading | Ready | Draining


class ServerReadiness:
    """The server's state, which probes read, and the count of requests in flight."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self.device: str | None = None  # None: not selected yet
        self._metrics = metrics
        self._state: State = Loading("starting")
        self._unhealthy: dict[str, str] = {}
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def state(self) -> State:
        return self._state

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def enter(self, state: State) -> None:
        """Change the state. Draining is final: a load that ends later changes nothing."""
        if not isinstance(self._state, Draining):
            self._state = state
            self._metrics.set_ready(isinstance(state, Ready))

    def set_stage(self, stage: str) -> None:
        """Set the stage of the start; no effect after it."""
        if isinstance(self._state, Loading):
            self.enter(Loading(stage))

    def set_unhealthy(self, reasons: dict[str, str]) -> None:
        """Set the reasons of unhealthy models by name; the server is ready only while there are none."""
        self._unhealthy = reasons
        self._metrics.set_ready(isinstance(self._state, Ready) and not reasons)

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def count_in_flight(self, step: int) -> None:
        """Count a request that began (1) or ended (-1)."""
        self._in_flight += step
        self._metrics.set_in_flight(self._in_flight)
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    def find_obstacle(self) -> str | None:
        """Return why work is refused; None where it is accepted."""
        match self._state:
            case Loading(stage):
                return f"loading: {stage}"
            case Draining():
                return "draining: the server is stopping"
            case Ready():
                return "; ".join(f"{name}: {reason}" for name, reason in self._unhealthy.items()) or None
