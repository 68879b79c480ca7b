"""The listening socket: answers probes at once, and the application's requests once it is loaded.

Law: a new connection goes to the application that was set last. Before there is one, every answer closes its
connection, so that no client keeps a connection that only probes answer.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from server.api.probes import Handler, Probes
from server.api.responses import error_response

_LOG = logging.getLogger(f"{__name__}.http")
_LOG.addFilter(lambda record: not _is_malformed(record))
_CLOSE_WITHIN_S = 1.0  # the drain has ended: remaining connections had its whole time


class Listener:
    """Listens while its `async with` block runs."""

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._open = AsyncExitStack()
        self._runner = _create_runner(_early_application(probes), cancel_when_gone=False)

    async def __aenter__(self) -> Listener:
        await self._set_up(self._runner)
        return self

    async def __aexit__(self, *_raised: object) -> None:
        await self._open.aclose()

    async def listen(self, host: str, port: int) -> str:
        """Bind and answer; return the URL. Raises OSError where the address is not available."""
        server = await asyncio.get_running_loop().create_server(self._protocol, host, port)
        self._open.callback(server.close)
        bound = server.sockets[0].getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        return f"http://{shown}:{bound[1]}"

    async def serve(self, application: web.Application, *, cancel_when_gone: bool) -> None:
        """Serve `application` from now on; `cancel_when_gone` cancels the handler of a client that disconnects."""
        application.middlewares.insert(0, self._probes.middleware)
        application.on_response_prepare.append(self._probes.add_request_id)
        runner = _create_runner(application, cancel_when_gone=cancel_when_gone)
        await self._set_up(runner)
        self._runner = runner

    async def _set_up(self, runner: web.AppRunner) -> None:
        self._open.push_async_callback(runner.cleanup)
        await runner.setup()

    def _protocol(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        return self._runner.server()


def _create_runner(application: web.Application, *, cancel_when_gone: bool) -> web.AppRunner:
    return web.AppRunner(
        application,
        access_log=None,
        logger=_LOG,
        handler_cancellation=cancel_when_gone,
        shutdown_timeout=_CLOSE_WITHIN_S,
    )


def _is_malformed(record: logging.LogRecord) -> bool:
    """Whether the input was no HTTP or had no valid body: it gets 400, and its traceback would quote the input."""
    error = record.exc_info[1] if record.exc_info is not None else None
    return isinstance(error, HttpProcessingError | web.RequestPayloadError)


def _early_application(probes: Probes) -> web.Application:
    """Return the application that answers until the real one is set."""

    @web.middleware
    async def close_after(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        response.force_close()
        return response

    async def too_early(_request: web.Request) -> web.StreamResponse:
        # The server is ready now, but this connection was opened before.
        return error_response(
            503, "the connection is from before the start: open a new one", "server_error", retry_after_s=1
        )

    application = web.Application(middlewares=[close_after, probes.middleware])
    application.on_response_prepare.append(probes.add_request_id)
    application.router.add_route("*", "/{tail:.*}", too_early)
    return application
