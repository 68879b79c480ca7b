"""The listening socket: answers probes at once, and the application's requests once it is loaded.

Law: a new connection goes to the application that was set last. Before there is one, every answer closes its
connection, so that no client keeps a connection that only probes answer. What a client does is not written to the log.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from cached.contract.program.limits import find_limit_error
from server.api.connections import ConnectionLimits, Connections
from server.api.probes import Handler, Probes
from server.api.responses import error_response

_LOG = logging.getLogger(f"{__name__}.http")
_LOG.addFilter(lambda record: not _is_malformed(record))
_CLOSE_WITHIN_S = 1.0  # the drain has ended: remaining connections had its whole time
_BACKLOG = 256
# What is closed to make room gives its descriptor back some turns of the loop later, and each turn accepts so many.
_ACCEPTED_AT_ONCE = 16
_NO_DESCRIPTOR_EVERY_S = 60.0  # a line in the log; the loop reports each accept that fails


class Listener:
    """Listens while its `async with` block runs."""

    def __init__(self, probes: Probes, limits: ConnectionLimits) -> None:
        self._probes = probes
        self.connections = Connections(limits, probes.metrics.count_closed)
        probes.metrics.watch_connections(self.connections.__len__)
        self._open = AsyncExitStack()
        self._server: asyncio.Server | None = None
        self._no_descriptor_at: float | None = None  # of the last line about it, in monotonic seconds
        self._runner = self._create_runner(_early_application(probes), cancel_when_gone=False)

    async def __aenter__(self) -> Listener:
        await self._set_up(self._runner)
        return self

    async def __aexit__(self, *_raised: object) -> None:
        if self._server is not None:
            self._server.close()
        await self._open.aclose()

    async def listen(self, host: str, port: int) -> str:
        """Bind and answer; return the URL. Raises OSError where the address is not available."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._handle_loop_error)
        self._server = await loop.create_server(self._protocol, host, port, backlog=_ACCEPTED_AT_ONCE)
        for listening in self._server.sockets:
            with socket.socket(fileno=os.dup(listening.fileno())) as same:
                same.listen(_BACKLOG)  # for the kernel; asyncio takes one number for both
        bound = self._server.sockets[0].getsockname()
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        return f"http://{shown}:{bound[1]}"

    async def serve(self, application: web.Application, *, cancel_when_gone: bool) -> None:
        """Serve `application` from now on; `cancel_when_gone` cancels the handler of a client that disconnects."""
        application.middlewares.insert(0, self._probes.middleware)
        application.on_response_prepare.append(self._probes.complete_head)
        runner = self._create_runner(application, cancel_when_gone=cancel_when_gone)
        await self._set_up(runner)
        self._runner = runner

    def _create_runner(self, application: web.Application, *, cancel_when_gone: bool) -> web.AppRunner:
        application.middlewares.insert(0, self.connections.middleware)
        return web.AppRunner(
            application,
            access_log=None,
            logger=_LOG,
            handler_cancellation=cancel_when_gone,
            keepalive_timeout=self.connections.limits.idle_s,
            shutdown_timeout=_CLOSE_WITHIN_S,
        )

    async def _set_up(self, runner: web.AppRunner) -> None:
        self._open.push_async_callback(runner.cleanup)
        await runner.setup()

    def _protocol(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        return self.connections.admit(self._runner.server())

    def _handle_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Make room where a connection cannot be accepted for lack of a descriptor: models and user code have
        descriptors too. The loop itself would write a traceback for each, a hundred a second."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE) or "socket" not in context:
            loop.default_exception_handler(context)
            return
        self.connections.close_oldest()
        now = monotonic()
        if self._no_descriptor_at is None or now - self._no_descriptor_at > _NO_DESCRIPTOR_EVERY_S:
            self._no_descriptor_at = now
            _LOG.warning("%s", find_limit_error(error, "a new connection waits"))


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
    application.on_response_prepare.append(probes.complete_head)
    application.router.add_route("*", "/{tail:.*}", too_early)
    return application
