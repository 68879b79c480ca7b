"""What the server is doing: loading, ready or draining, which models are ill, and what is in flight.

Law: a state and its count, on the event loop; knows no HTTP. `server.api.probes` tells it to probes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from server.lifecycle.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Loading:
    """Not ready yet; `stage` says what is going on."""

    stage: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Loaded, warmed, tried."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Finishing what is in flight, taking nothing new."""


State = Loading | Ready | Draining


class Readiness:
    """The server's state, which probes read, and the count of requests in flight."""

    def __init__(self, metrics: Metrics) -> None:
        self.device: str | None = None  # None: not selected yet
        self._metrics = metrics
        self._state: State = Loading("starting")
        self._ill: dict[str, str] = {}
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
        """Change the state. A server that drains stays so: a load that ends meanwhile changes nothing."""
        if not isinstance(self._state, Draining):
            self._state = state
            self._metrics.set_ready(isinstance(state, Ready))

    def progress(self, stage: str) -> None:
        """Say how far the start is; after it, nothing."""
        if isinstance(self._state, Loading):
            self.enter(Loading(stage))

    def diagnose(self, ill: dict[str, str]) -> None:
        """Be ready only while no model is ill; why each is, by its name."""
        self._ill = ill
        self._metrics.set_ready(isinstance(self._state, Ready) and not ill)

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    def count_in_flight(self, step: int) -> None:
        """A request began (1) or ended (-1)."""
        self._in_flight += step
        self._metrics.set_in_flight(self._in_flight)
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    def find_obstacle(self) -> str | None:
        """Return why no work is let through; None where it is."""
        match self._state:
            case Loading(stage):
                return f"loading: {stage}"
            case Draining():
                return "draining: the server is stopping"
            case Ready():
                return "; ".join(f"{name}: {reason}" for name, reason in self._ill.items()) or None
