"""Limit a listener's clients: their number, their time for a request, and their time to take a response.

Law: a new client is always accepted; past the limit the oldest connection is closed: idle clients are cheap to
open and would lock out others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

MOST_CONNECTIONS = 256  # a listener: a descriptor and some 20 KiB each
SILENCE_S = 15.0  # until a whole request has arrived, the first or the next one
ANSWER_S = 30.0  # until the client has taken the response
FAREWELL_S = 2.0  # for responses in progress at shutdown

_log = logging.getLogger(f"{__name__}.server")
_log.addFilter(lambda record: not _is_malformed_request(record))


def make_runner(app: web.Application) -> web.AppRunner:
    """Return a runner of `app` with the time limits; the caller sets it up."""
    app.middlewares.append(_limit_response_time)
    # aiohttp counts this timeout from the accept, with half a request or none.
    return web.AppRunner(app, access_log=None, logger=_log, keepalive_timeout=SILENCE_S, shutdown_timeout=FAREWELL_S)


def make_protocol_factory(runner: web.AppRunner, max_clients: int) -> Callable[[], asyncio.Protocol]:
    """Return the protocol factory of a runner that is set up, for `max_clients` at once."""
    server = runner.server
    assert server is not None

    def admit() -> asyncio.Protocol:
        # Deferred, so that connections accepted in the same step are counted too.
        asyncio.get_running_loop().call_soon(_close_oldest, server, max_clients)
        return server()

    return admit


def _close_oldest(server: web.Server, most: int) -> None:
    found = (each.transport for each in server.connections)
    live = [transport for transport in found if transport is not None and not transport.is_closing()]
    for transport in live[: max(0, len(live) - most)]:
        transport.abort()


def _is_malformed_request(record: logging.LogRecord) -> bool:
    """Drop tracebacks of malformed requests, which get 400: any client can send them without end."""
    return record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)


@web.middleware
async def _limit_response_time(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send the response here, where a timeout can abort it: until the client takes it, it stays in memory."""
    response: web.StreamResponse = web.Response(status=400)
    with contextlib.suppress(ConnectionError):  # the client disconnected: not an error
        response = await handler(request)
        try:
            async with asyncio.timeout(ANSWER_S):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
    return response
