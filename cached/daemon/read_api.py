"""The TCP port: `/metrics`, `/healthz`, `/readyz`, `/v1/status` and the page at `/`, without authentication.

Law: read-only, so it needs no credentials; it shows none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from cached.daemon.http.messages import JSON, Answer, Handler, Request, Response, Routes, make_router
from cached.daemon.service import DaemonService

if TYPE_CHECKING:  # loaded when somebody opens it
    from cached.daemon.page.page import NodePage

_SHARE = 0.1  # of the wall time, to render one page
_CREDIT_S = 0.25  # for one burst after a pause


def make_read_api(service: DaemonService, *, page_readers: int) -> Handler:
    """Return the handler of the TCP port; `page_readers`: how many pages may stand open, 0 for none at all."""

    async def healthz(_request: Request) -> Response:
        return Response(b"ok\n")

    async def readyz(_request: Request) -> Response:
        reason = service.find_not_ready_reason()
        return Response(b"ready\n") if reason is None else Response(f"{reason}\n".encode(), status=503)

    page = RenderedPage(service.render_metrics, time.monotonic)

    async def metrics(_request: Request) -> Response:
        return Response(page.get_body(), "text/plain; version=0.0.4; charset=utf-8")

    return make_router(
        {
            ("GET", "/healthz"): healthz,
            ("GET", "/readyz"): readyz,
            ("GET", "/metrics"): metrics,
            ("GET", "/v1/status"): make_status_handler(service.make_status),
            **(_make_page_routes(service, page_readers) if page_readers else {}),
        }
    )


def _make_page_routes(service: DaemonService, readers: int) -> Routes:
    """Return the routes of the page, which is made at its first request: most daemons are never asked for it."""

    @cache
    def get_page() -> NodePage:
        return service.open_page(readers)

    async def show(request: Request) -> Answer:
        return await get_page().show(request)

    async def follow(request: Request) -> Answer:
        return await get_page().follow(request)

    return {("GET", "/"): show, ("GET", "/page/events"): follow}


def make_status_handler(status: Callable[[], dict[str, Any]]) -> Handler:
    """Return the handler of `GET /v1/status`, for both listeners."""
    page = RenderedPage(lambda: json.dumps(status()).encode(), time.monotonic)

    async def handler(_request: Request) -> Response:
        return Response(page.get_body(), JSON)

    return handler


class RenderedPage:
    """A page whose rendering takes at most a tenth of the wall time: past that clients get the last one.

    `clock` gives monotonic seconds.
    """

    def __init__(self, render: Callable[[], bytes], clock: Callable[[], float]) -> None:
        self._render = render
        self._clock = clock
        self._credit_s = _CREDIT_S
        self._at = clock()
        self._body: bytes | None = None

    def get_body(self) -> bytes:
        """Return the page: rendered now, or the last one when the credit is used up."""
        began = self._clock()
        self._credit_s = min(_CREDIT_S, self._credit_s + _SHARE * (began - self._at))
        self._at = began
        if self._body is None or self._credit_s > 0:
            self._body = self._render()
            self._credit_s -= self._clock() - began
        return self._body
