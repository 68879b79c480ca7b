"""The server's state: loading, ready or draining, which models are unhealthy, and the requests in flight.

Law: a state and a count, on the event loop; knows no HTTP. `server.api.probes` reports it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
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


class RequestsInFlight:
    """The count of requests from the start of their work to the end of their answer; a drain waits for the last."""

    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count a request while the block runs."""
        self.count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._idle.set()

    async def wait_drained(self) -> None:
        """Wait until no request is being answered."""
        await self._idle.wait()


class ServerReadiness:
    """The server's state, which probes read, and its requests in flight."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self.device: str | None = None  # None: not selected yet
        self._metrics = metrics
        self._state: State = Loading("starting")
        self.unhealthy: dict[str, str] = {}  # the reasons by name
        self.in_flight = RequestsInFlight()

    @property
    def state(self) -> State:
        return self._state

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
        self.unhealthy = reasons
        self._metrics.set_ready(isinstance(self._state, Ready) and not reasons)

    def find_obstacle(self) -> str | None:
        """Return why work is refused; None where it is accepted."""
        match self._state:
            case Loading(stage):
                return f"loading: {stage}"
            case Draining():
                return "draining: the server is stopping"
            case Ready():
                return "; ".join(f"{name}: {reason}" for name, reason in self.unhealthy.items()) or None
