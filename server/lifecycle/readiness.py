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
class Waiting:
    """The weights are not on this node yet; `reason` says which, and whether anything fetches them."""

    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """Loaded, and kept out of service for `reason`: a restart would only load the same again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Loaded, warmed and admitted."""


@dataclass(frozen=True, slots=True)
class Lingering:
    """Stopping, and still working: clients and load balancers learn of the stop only now."""


@dataclass(frozen=True, slots=True)
class Draining:
    """Finishing the requests in flight, accepting no new ones."""


State = Loading | Waiting | Rejected | Ready | Lingering | Draining


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the server is not ready, or a request is refused: a `code` for metrics, and the `reason` for a person."""

    code: str
    reason: str


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

    @property
    def stopping(self) -> bool:
        return isinstance(self._state, Lingering | Draining)

    def enter(self, state: State) -> None:
        """Change the state. A stop is final: a load that ends later changes nothing."""
        if isinstance(state, Draining) or not self.stopping:
            self._state = state
            self._metrics.set_ready(isinstance(state, Ready) and not self.unhealthy)

    def set_stage(self, stage: str) -> None:
        """Set the stage of the start; no effect after it."""
        self._enter_before_ready(Loading(stage))

    def wait_for(self, reason: str) -> None:
        """Wait for weights that are not on this node; no effect after the start."""
        self._enter_before_ready(Waiting(reason))

    def reject(self, reason: str) -> None:
        """Keep the server out of service for `reason`; no effect once it was ready."""
        self._enter_before_ready(Rejected(reason))

    def _enter_before_ready(self, state: Loading | Waiting | Rejected) -> None:
        if isinstance(self._state, Loading | Waiting | Rejected):
            self.enter(state)

    def set_unhealthy(self, reasons: dict[str, str]) -> None:
        """Set the reasons of unhealthy models by name; the server is ready only while there are none."""
        self.unhealthy = reasons
        self._metrics.set_ready(isinstance(self._state, Ready) and not reasons)

    def find_obstacle(self) -> Obstacle | None:
        """Return why the server is not ready; None where it is."""
        if isinstance(self._state, Lingering):
            return _STOPPING
        return self.find_refusal()

    def find_refusal(self) -> Obstacle | None:
        """Return why work is refused; None where it is accepted."""
        match self._state:
            case Loading(stage):
                return Obstacle("loading", f"loading: {stage}")
            case Waiting(reason):
                return Obstacle("waiting", f"waiting for {reason}")
            case Rejected(reason):
                return Obstacle("rejected", reason)
            case Draining():
                return _STOPPING
            case Ready() | Lingering():
                reasons = "; ".join(f"{name}: {reason}" for name, reason in self.unhealthy.items())
                return Obstacle("unhealthy", reasons) if reasons else None


_STOPPING = Obstacle("draining", "draining: the server is stopping")
