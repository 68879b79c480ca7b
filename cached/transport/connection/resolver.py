"""Names resolved in bounded time, for libraries that speak HTTP with aiohttp.

Law: one way to look a name up for every program: `resolve_within`, on a thread of its own.
"""

from __future__ import annotations

import socket
import time
from functools import partial

from aiohttp.abc import AbstractResolver, ResolveResult

from cached.transport.connection.connect import Resolved, resolve_within
from cached.transport.connection.thread_call import call_in_thread


class BoundedResolver(AbstractResolver):
    """Resolves names in `limit_s` seconds at most: aiohttp's own leaves it to the C library, which waits 20 s for a
    silent name server, and so does a process that ends."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises OSError."""
        try:
            found = await call_in_thread(partial(resolve_within, host, port, time.monotonic() + self._limit_s))
        except TimeoutError as error:  # which aiohttp would pass on as a timeout of the whole request
            raise socket.gaierror(socket.EAI_AGAIN, str(error)) from error
        return [_as_result(host, each) for each in found if family in (socket.AF_UNSPEC, each[0])]

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""


def _as_result(host: str, found: Resolved) -> ResolveResult:
    family, _, protocol, _, address = found
    scope = f"%{address[3]}" if len(address) > 3 and address[3] else ""  # of a link-local IPv6 address
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(
        hostname=host, host=f"{address[0]}{scope}", port=address[1], family=family, proto=protocol, flags=flags
    )
