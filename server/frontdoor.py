"""The listening socket: probes are answered from the first moment, the application comes in when it is ready.

Law: new connections go to whichever application was set last; those of the first one are closed after each answer,
so that no client stays with it.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType

from aiohttp import web

from server.operations import Operations

_CLOSE_WITHIN_S = 1.0  # whoever is still connected has had the drain's whole time


class FrontDoor:
    """Listens for as long as its `async with` block runs."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._open = AsyncExitStack()
        self._runner = self._around(web.Application(), cancel_when_gone=False)

    async def __aenter__(self) -> FrontDoor:
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
        runner = self._around(application, cancel_when_gone)
        await self._set_up(runner)
        self._runner = runner

    def _around(self, application: web.Application, cancel_when_gone: bool) -> web.AppRunner:
        application.middlewares.insert(0, self._operations.middleware)
        return web.AppRunner(
            application, access_log=None, handler_cancellation=cancel_when_gone, shutdown_timeout=_CLOSE_WITHIN_S
        )

    async def _set_up(self, runner: web.AppRunner) -> None:
        self._open.push_async_callback(runner.cleanup)
        await runner.setup()

    def _protocol(self) -> asyncio.Protocol:
        assert self._runner.server is not None
        return self._runner.server()
