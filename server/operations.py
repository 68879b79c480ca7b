"""What every server here has around its work: `/healthz`, `/readyz`, `/metrics`, and the count of what is in flight.

Law: knows no model and no API. Work is let through only while the server is ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter

from aiohttp import web

from server.metrics import Metrics
from server.responses import error_response

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CLIENT_GONE = 499  # nginx's number for a client that closed the connection first


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


class Operations:
    """The server's state, seen by probes, and the gate in front of its work."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._state: State = Loading("starting")
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

    async def idle(self) -> None:
        """Wait until nothing is in flight."""
        await self._idle.wait()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer probes and metrics, whatever the application would; let work through while ready."""
        if request.path == "/healthz":
            return web.Response(text="ok\n")
        if request.path == "/readyz":
            reason = self._not_ready()
            return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)
        if request.path == "/metrics":
            return web.Response(
                body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            )
        reason = self._not_ready()
        if reason is not None:
            response = error_response(503, reason, "server_error", code="not_ready", retry_after_s=1)
            response.force_close()  # the next try may reach another pod
            return response
        return await self._let_through(request, handler)

    async def _let_through(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        endpoint = resource.canonical if resource is not None else "other"
        started = perf_counter()
        status = 500
        self._count(1)
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as answer:
            status = answer.status
            raise
        except (asyncio.CancelledError, ConnectionError):
            status = _CLIENT_GONE
            raise
        finally:
            self._count(-1)
            self._metrics.count_request(endpoint, status, perf_counter() - started)

    def _count(self, step: int) -> None:
        self._in_flight += step
        self._metrics.set_in_flight(self._in_flight)
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()

    def _not_ready(self) -> str | None:
        match self._state:
            case Loading(stage):
                return f"loading: {stage}"
            case Draining():
                return "draining: the server is stopping"
            case Ready():
                return None
