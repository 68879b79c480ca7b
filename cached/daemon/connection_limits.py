"""Bounds on whoever comes to a door: how many stand there, how long one may say nothing or leave an answer lying.

Law: a new client is always let in, since anybody on the network can stand there and say nothing: past the bound the one
that came first has to go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

MOST_CONNECTIONS = 256  # at each door: a descriptor and some 20 KiB each
SILENCE_S = 15.0  # until a whole request is there, the first or the next one
ANSWER_S = 30.0  # until the answer is taken
FAREWELL_S = 2.0  # for answers under way when the daemon ends

_log = logging.getLogger(f"{__name__}.server")
_log.addFilter(lambda record: not _is_nonsense(record))


def runner(app: web.Application) -> web.AppRunner:
    """What answers for `app` within the bounds on time; not set up yet."""
    app.middlewares.append(_patient)
    # aiohttp counts the silence from the moment a connection stands, half a request or none.
    return web.AppRunner(app, access_log=None, logger=_log, keepalive_timeout=SILENCE_S, shutdown_timeout=FAREWELL_S)


def admission(runner: web.AppRunner, standing: int) -> Callable[[], asyncio.Protocol]:
    """The protocol factory of a runner that is set up, for `standing` clients at once."""
    server = runner.server
    assert server is not None

    def admit() -> asyncio.Protocol:
        # Later, when those that came with it stand there too.
        asyncio.get_running_loop().call_soon(_thin_out, server, standing)
        return server()

    return admit


def _thin_out(server: web.Server, most: int) -> None:
    found = (each.transport for each in server.connections)
    standing = [transport for transport in found if transport is not None and not transport.is_closing()]
    for transport in standing[: max(0, len(standing) - most)]:
        transport.abort()


def _is_nonsense(record: logging.LogRecord) -> bool:
    """What is no HTTP is answered with 400, and not worth a traceback that quotes it: anybody can send it, for ever."""
    return record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)


@web.middleware
async def _patient(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Send the answer here, where it can be given up: until it is taken, it is held in memory."""
    response: web.StreamResponse = web.Response(status=400)
    with contextlib.suppress(ConnectionError):  # the client went, before or after its request was whole: no news
        response = await handler(request)
        try:
            async with asyncio.timeout(ANSWER_S):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
    return response
