"""The listening socket: probes are answered from the first moment, the application comes in when it is ready.

Law: a new connection goes to whichever application was set last. Until there is one, every answer closes its
connection, so that no client stays in the waiting room.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from types import TracebackType

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from server.api.probes import Handler, Probes
from server.api.responses import error_response

_LOG = logging.getLogger(f"{__name__}.http")
_LOG.addFilter(lambda record: not _is_nonsense(record))
_CLOSE_WITHIN_S = 1.0  # whoever is still connected has had the drain's whole time


class Listener:
    """Listens for as long as its `async with` block runs."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._open = AsyncExitStack()
        self._runner = _runner(_waiting_room(probes), cancel_when_gone=False)

    async def __aenter__(self) -> Listener:
        await self._set_up(self._runner)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def listen(self, host: str, port: int) -> str:
        """Bind and answer; returns the URL. Raises OSError where the address cannot be had."""
        server = await asyncio.get_running_loop().create_server(self._protocol, host, port)
        self._open.callback(server.close)
        bound = server.sockets[0].getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        return f"http://{shown}:{bound[1]}"

    async def serve(self, application: web.Application, *, cancel_when_gone: bool) -> None:
        """Let `application` answer from now on; `cancel_when_gone` cancels a handler whose client hung up."""
        application.middlewares.insert(0, self._probes.middleware)
        application.on_response_prepare.append(self._probes.add_request_id)
        runner = _runner(application, cancel_when_gone)
        await self._set_up(runner)
        self._runner = runner

    async def _set_up(self, runner: web.AppRunner) -> None:
        self._open.push_async_callback(runner.cleanup)
        await runner.setup()

    def _protocol(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        return self._runner.server()


def _runner(application: web.Application, cancel_when_gone: bool) -> web.AppRunner:
    return web.AppRunner(
        application,
        access_log=None,
        logger=_LOG,
        handler_cancellation=cancel_when_gone,
        shutdown_timeout=_CLOSE_WITHIN_S,
    )


def _is_nonsense(record: logging.LogRecord) -> bool:
    """What is no HTTP, or no body, is answered with 400. Its traceback would quote it, and anybody can send it."""
    error = record.exc_info[1] if record.exc_info is not None else None
    return isinstance(error, HttpProcessingError | web.RequestPayloadError)


def _waiting_room(probes: Probes) -> web.Application:
    """What answers before there is an application."""

    @web.middleware
    async def close_after(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        response.force_close()
        return response

    async def too_early(_request: web.Request) -> web.StreamResponse:
        # Ready by now, but this connection was opened before.
        return error_response(
            503, "the connection is from before the start: open a new one", "server_error", retry_after_s=1
        )

    application = web.Application(middlewares=[close_after, probes.middleware])
    application.on_response_prepare.append(probes.add_request_id)
    application.router.add_route("*", "/{tail:.*}", too_early)
    return application
