"""Around every server's work: `/healthz`, `/readyz`, `/metrics`, `/environment`, request ids, and the access log.

Law: knows no model. Requests are admitted only while the server is ready, or has just begun to stop. The log has a line
for each request except probes and rehearsals; request and answer contents are never in it. An answer belongs to its
request: it is sent here, where the request is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from time import monotonic

from aiohttp import web

from cached.contract.program.logs import about
from server.api.connections import SlowBody
from server.api.responses import error_response
from server.engine.engine import call_in_thread
from server.lifecycle.environment import environment
from server.lifecycle.metrics import ServerMetrics
from server.lifecycle.readiness import Draining, Loading, Obstacle, ServerReadiness

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_ACCESS = logging.getLogger("holdfast.access")
REHEARSAL_HEADER = "X-Holdfast-Rehearsal"
_REQUEST_ID = "X-Request-Id"
_REQUEST_ID_FORM = re.compile(r"[!-~]{1,128}")  # printable, without spaces: it goes into a log line
_WORK: ContextVar[Work] = ContextVar("work")  # of the request that this task answers
_CLIENT_GONE = 499  # nginx's number for a client that closed the connection first


@dataclass(slots=True)
class Work:
    """One request's account: its id and start, and its model and token counts once known."""

    request_id: str
    started: float
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def usage(self) -> dict[str, int]:
        """The `usage` object of a completion."""
        total = self.prompt_tokens + self.completion_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total}


def current_work() -> Work:
    """Return the account of the current request, which its handler completes."""
    return _WORK.get()


@web.middleware
async def without_account(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a request of this process's own through: it is in no log and no metric."""
    _WORK.set(Work(_request_id(request), monotonic()))
    return await handler(request)


class Probes:
    """Answers probes about `readiness`, and admits other requests. `rehearsal` is a secret of this process: a request
    with it in `REHEARSAL_HEADER` is admitted while loading, and is not in the log and the metrics."""

    def __init__(self, readiness: ServerReadiness, metrics: ServerMetrics) -> None:
        self.rehearsal = secrets.token_urlsafe(32)
        self.metrics = metrics
        self.refused = 0  # requests
        self.worked_at = -math.inf  # when the last admitted request came or ended, in monotonic seconds
        self._readiness = readiness

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer probes and metrics for any application; admit other requests while ready."""
        work = Work(_request_id(request), monotonic())
        _WORK.set(work)
        if request.path == "/healthz":
            return web.Response(text="ok\n")
        if request.path == "/readyz":
            obstacle = self._readiness.find_obstacle()
            return web.Response(text=f"{obstacle.reason if obstacle else 'ready'}\n", status=503 if obstacle else 200)
        if request.path == "/metrics":
            return web.Response(
                body=self.metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
            )
        if request.path == "/environment" and self._readiness.device is not None:
            found = await call_in_thread("environment", partial(environment, self._readiness.device))
            return web.json_response(found.document())
        if self._is_rehearsal(request):
            return await handler(request)
        obstacle = self._readiness.find_refusal()
        if obstacle is not None:
            return self._refuse(request, work, obstacle)
        self.worked_at = work.started
        try:
            with self.metrics.in_flight.track_inprogress(), self._readiness.in_flight.track():
                return await self._let_through(request, handler)
        finally:
            self.worked_at = monotonic()

    def _is_rehearsal(self, request: web.Request) -> bool:
        """Whether the request is this process's own, before it is ready."""
        key = request.headers.get(REHEARSAL_HEADER, "").encode()
        return isinstance(self._readiness.state, Loading) and secrets.compare_digest(key, self.rehearsal.encode())

    async def complete_head(self, _request: web.Request, response: web.StreamResponse) -> None:
        """Set the request id of an answer, and while the server stops that its connection ends with it. The application
        calls it before the head is sent."""
        response.headers[_REQUEST_ID] = current_work().request_id
        if self._readiness.stopping and response.status != HTTPStatus.SWITCHING_PROTOCOLS:
            response.force_close()
            response.headers["Connection"] = "close"

    def _refuse(self, request: web.Request, work: Work, obstacle: Obstacle) -> web.Response:
        response = error_response(503, obstacle.reason, "server_error", code="not_ready", retry_after_s=1)
        response.force_close()  # a retry on a new connection may reach another pod
        self.refused += 1
        self.metrics.count_refused(obstacle.code)
        self._account(request, work, response.status)
        return response

    async def _let_through(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        work = current_work()
        status = 500
        try:
            try:
                response = await handler(request)
            except web.HTTPException as answer:
                status = answer.status
                await self._send(request, answer)
                raise
            except web.RequestPayloadError as error:
                response = _unreadable(error)
            status = response.status
            await self._send(request, response)
            return response
        except asyncio.CancelledError:
            status = _CLIENT_GONE
            raise
        except ConnectionError:
            if request.transport is not None and not request.transport.is_closing():
                raise  # user code's own
            status = _CLIENT_GONE
            return web.Response(status=status)  # the client is gone; an exception would be logged as an error of ours
        finally:
            self._account(request, work, status)

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        await response.prepare(request)
        await response.write_eof()
        if isinstance(self._readiness.state, Draining):
            response.force_close()  # also where its head was sent before the stop

    def _account(self, request: web.Request, work: Work, status: int) -> None:
        seconds = monotonic() - work.started
        resource = request.match_info.route.resource
        endpoint = resource.canonical if resource is not None else "other"
        self.metrics.count_request(endpoint, work.model, status, seconds)
        _ACCESS.info(
            "%s %s %d %.1f ms model=%s prompt_tokens=%d completion_tokens=%d id=%s",
            request.method,
            request.rel_url.raw_path[:200],
            status,
            seconds * 1000,
            work.model or "-",
            work.prompt_tokens,
            work.completion_tokens,
            work.request_id,
            extra=about(model=work.model),
        )


def _unreadable(error: web.RequestPayloadError) -> web.Response:
    """Return the answer to a request whose body did not come as its head says."""
    if isinstance(error, SlowBody):
        response = error_response(HTTPStatus.REQUEST_TIMEOUT, f"{error}; send it again", "invalid_request_error")
        response.force_close()
        return response
    message = "the body cannot be read: it is not what its Content-Encoding or its chunks say"
    return error_response(400, message, "invalid_request_error")


def _request_id(request: web.Request) -> str:
    """Return the id that a client or proxy sent, so that its log and ours can be joined, else a new one."""
    given = request.headers.get(_REQUEST_ID, "")
    return given if _REQUEST_ID_FORM.fullmatch(given) else f"req_{secrets.token_hex(12)}"
