"""The TCP port: `/metrics`, `/healthz`, `/readyz`, `/v1/status` and the page at `/`, without authentication.

Law: read-only, so it needs no credentials; it shows none.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from cached.daemon.http.messages import (
    JSON,
    Answer,
    Handler,
    HttpRequest,
    Routes,
    WholeResponse,
    accepts_gzip,
    make_router,
)
from cached.daemon.service import DaemonService

if TYPE_CHECKING:  # loaded at its first request
    from cached.daemon.page.page import NodePage

_SHARE = 0.1  # of one processor, to render one page
_CREDIT_S = 0.25  # for one burst after a pause
_LEVEL, _GZIP = 1, zlib.MAX_WBITS | 16  # the sum asks zlib for gzip's head and end
_VARY = ("Vary", "Accept-Encoding")


def make_read_api(service: DaemonService, *, page_readers: int) -> Handler:
    """Return the handler of the TCP port; `page_readers`: how many pages may stand open, 0 for none at all."""

    async def healthz(_request: HttpRequest) -> WholeResponse:
        return WholeResponse(b"ok\n")

    async def readyz(_request: HttpRequest) -> WholeResponse:
        reason = service.find_not_ready_reason()
        return WholeResponse(b"ready\n") if reason is None else WholeResponse(f"{reason}\n".encode(), status=503)

    page = RenderedPage(service.render_metrics)

    async def metrics(request: HttpRequest) -> WholeResponse:
        return await page.respond(request, "text/plain; version=0.0.4; charset=utf-8")

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

    async def show(request: HttpRequest) -> Answer:
        return await get_page().show(request)

    async def follow(request: HttpRequest) -> Answer:
        return await get_page().follow(request)

    return {("GET", "/"): show, ("GET", "/page/events"): follow}


def make_status_handler(status: Callable[[], dict[str, Any]]) -> Handler:
    """Return the handler of `GET /v1/status`, for both listeners."""
    page = RenderedPage(lambda: json.dumps(status()).encode())

    async def handler(request: HttpRequest) -> WholeResponse:
        return await page.respond(request, JSON)

    return handler


class RenderedPage:
    """A page whose rendering takes at most a tenth of one processor: past that who asks waits for the next rendering,
    which is shared. So no client gets a page that is older than the question. It goes out compressed to those that take
    that, as Prometheus does: a tenth of the bytes for less time than rendering takes.
    """

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._credit_s = _CREDIT_S  # of this thread's processor time: others on the machine take none of it
        self._at = time.monotonic()
        self._next: asyncio.Future[bytes] | None = None  # a rendering that has not begun
        self._packed: tuple[bytes, bytes] = b"", b""  # the last body, and its compressed form

    async def respond(self, request: HttpRequest, content_type: str) -> WholeResponse:
        """Return the response with the page."""
        body = await self.get_body()
        if not accepts_gzip(request):
            return WholeResponse(body, content_type, headers=(_VARY,))
        if self._packed[0] is not body:
            self._packed = body, self._charge(lambda: _pack(body))
        return WholeResponse(self._packed[1], content_type, headers=(_VARY, ("Content-Encoding", "gzip")))

    async def get_body(self) -> bytes:
        """Return the page as it is now, or as it is once the credit allows to render it."""
        if self._next is None:
            now = time.monotonic()
            self._credit_s = min(_CREDIT_S, self._credit_s + _SHARE * (now - self._at))
            self._at = now
            if self._credit_s > 0:
                return self._charge(self._render)
            self._next = asyncio.ensure_future(self._render_later(-self._credit_s / _SHARE))
        return await asyncio.shield(self._next)

    async def _render_later(self, pause_s: float) -> bytes:
        await asyncio.sleep(pause_s)
        self._next = None
        return self._charge(self._render)

    def _charge(self, work: Callable[[], bytes]) -> bytes:
        """Return the result of `work`, whose processor time is taken from the credit."""
        began = time.thread_time()
        try:
            return work()
        finally:
            self._credit_s -= time.thread_time() - began


def _pack(body: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, wbits=_GZIP)
    return packer.compress(body) + packer.flush()
