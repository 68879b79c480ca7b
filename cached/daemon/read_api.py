"""The TCP port: `/metrics`, `/healthz`, `/readyz` and `/v1/status`, without authentication.

Law: read-only, so it needs no credentials; it shows none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from cached.contract.errors import HoldfastError
from cached.daemon.service import DaemonService

_SHARE = 0.1  # of the wall time, to render one page
_CREDIT_S = 0.25  # for one burst after a pause


def make_read_app(service: DaemonService) -> web.Application:
    """Return the application of the TCP port."""
    app = web.Application(middlewares=[answer_errors])

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reason = service.find_not_ready_reason()
        return web.Response(text="ready\n" if reason is None else f"{reason}\n", status=200 if reason is None else 503)

    page = RenderedPage(service.render_metrics, time.monotonic)

    async def metrics(_request: web.Request) -> web.Response:
        return web.Response(body=page.get_body(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/v1/status", make_status_handler(service.make_status))
    return app


@web.middleware
async def answer_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer a `HoldfastError` as JSON, on both listeners: 400 for `Permanent`, 503 for `Transient`."""
    try:
        return await handler(request)
    except HoldfastError as error:
        document = {"code": error.code, "message": error.message, "remedy": error.remedy, "permanent": error.permanent}
        return web.json_response({"error": document}, status=400 if error.permanent else 503)


def make_status_handler(status: Callable[[], dict[str, Any]]) -> Callable[[web.Request], Any]:
    """Return the handler of `GET /v1/status`, for both listeners."""
    page = RenderedPage(lambda: json.dumps(status()).encode(), time.monotonic)

    async def handler(_request: web.Request) -> web.Response:
        return web.Response(body=page.get_body(), content_type="application/json", charset="utf-8")

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
