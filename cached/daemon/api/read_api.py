"""The TCP port: `/metrics`, `/healthz`, `/readyz`, `/v1/status` and the page at `/`, without authentication.

Law: read-only, so it needs no credentials; it shows none.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from cached.daemon.http.messages import JSON, Answer, Handler, Request, Response, Routes, accepts_gzip, make_router
from cached.daemon.service import DaemonService

if TYPE_CHECKING:  # loaded at its first request
    from cached.daemon.page.page import NodePage

_SHARE = 0.1  # of the wall time, to render one page
_CREDIT_S = 0.25  # for one burst after a pause
_LEVEL, _GZIP = 1, zlib.MAX_WBITS | 16  # the sum asks zlib for gzip's head and end
_VARY = ("Vary", "Accept-Encoding")


def make_read_api(service: DaemonService, *, page_readers: int) -> Handler:
    """Return the handler of the TCP port; `page_readers`: how many pages may stand open, 0 for none at all."""

    async def healthz(_request: Request) -> Response:
        return Response(b"ok\n")

    async def readyz(_request: Request) -> Response:
        reason = service.find_not_ready_reason()
        return Response(b"ready\n") if reason is None else Response(f"{reason}\n".encode(), status=503)

    page = RenderedPage(service.render_metrics, time.monotonic)

    async def metrics(request: Request) -> Response:
        return page.respond(request, "text/plain; version=0.0.4; charset=utf-8")

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

    async def handler(request: Request) -> Response:
        return page.respond(request, JSON)

    return handler


class RenderedPage:
    """A page whose rendering takes at most a tenth of the wall time: past that clients get the last one. It goes out
    compressed to those that take that, as Prometheus does: a tenth of the bytes for less time than rendering takes.

    `clock` gives monotonic seconds.
    """

    def __init__(self, render: Callable[[], bytes], clock: Callable[[], float]) -> None:
        self._render = render
        self._clock = clock
        self._credit_s = _CREDIT_S
        self._at = clock()
        self._body: bytes | None = None
        self._packed: bytes | None = None

    def respond(self, request: Request, content_type: str) -> Response:
        """Return the response with the page."""
        body = self.get_body()
        if not accepts_gzip(request):
            return Response(body, content_type, headers=(_VARY,))
        if self._packed is None:
            began = self._clock()
            packer = zlib.compressobj(_LEVEL, wbits=_GZIP)
            self._packed = packer.compress(body) + packer.flush()
            self._credit_s -= self._clock() - began
        return Response(self._packed, content_type, headers=(_VARY, ("Content-Encoding", "gzip")))

    def get_body(self) -> bytes:
        """Return the page: rendered now, or the last one when the credit is used up."""
        began = self._clock()
        self._credit_s = min(_CREDIT_S, self._credit_s + _SHARE * (began - self._at))
        self._at = began
        if self._body is None or self._credit_s > 0:
            self._body, self._packed = self._render(), None
            self._credit_s -= self._clock() - began
        return self._body
