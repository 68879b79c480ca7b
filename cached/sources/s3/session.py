"""The HTTP session of botocore: aiobotocore's own, made strict.

Law: follows no redirect, as botocore expects (aiohttp would, and would send the session token to the next host), and
bounds every answer, in bytes and in time: the requests are for listings and attributes, never for a model's bytes.
"""

from __future__ import annotations

import socket
import time
from functools import partial
from typing import Any
from xml.parsers import expat

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from aiohttp.abc import AbstractResolver, ResolveResult

from cached.sources.s3.errors import StrangeAnswer
from cached.transport.connection.connect import Resolved, resolve_within
from cached.transport.connection.thread_call import call_in_thread

_MAX_ANSWER_BYTES = 8 * 1024 * 1024  # a page of a thousand keys of the longest has less than 4 MB
_ERRORS_FROM = 300


class BoundedResolver(AbstractResolver):
    """Resolves names in `limit_s` seconds at most: aiohttp's own leaves it to the C library, which waits 20 s for a
    silent name server, and so does a process that ends."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises OSError."""
        found = await call_in_thread(partial(resolve_within, host, port, time.monotonic() + self._limit_s))
        return [_as_result(host, each) for each in found if family in (socket.AF_UNSPEC, each[0])]

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""


class StrictSession(AIOHTTPSession):  # type: ignore[misc]  # aiobotocore has no types
    """The session class in a client's configuration; botocore creates it."""

    async def _get_session(self, proxy_url: str | None) -> _Strict:
        return _Strict(await super()._get_session(proxy_url))


class _Strict:
    """The one method of `aiohttp.ClientSession` that aiobotocore calls."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, **options: Any) -> _Answer:
        answer = _Answer(await self._session.request(method, allow_redirects=False, **options))
        if answer.status >= _ERRORS_FROM:
            await answer.read()  # here a broken connection is retried; botocore reads a streamed call's error too late
        return answer


class _Answer:
    """An `aiohttp.ClientResponse` of bounded size: read whole up to the bound, or as a stream by the caller."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self._whole: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answer, name)

    async def read(self) -> bytes:
        if self._whole is None:
            async with self._answer:
                self._whole = await self._read()
        return self._whole

    async def _read(self) -> bytes:
        data = bytearray()
        async for part in self._answer.content.iter_any():
            data += part
            if len(data) > _MAX_ANSWER_BYTES:
                self._answer.close()
                raise StrangeAnswer(f"more than {_MAX_ANSWER_BYTES} bytes")
        if data and self._answer.status == 200:
            try:
                expat.ParserCreate().Parse(bytes(data), True)  # botocore, which reads it next, reports a 500 for a page
            except expat.ExpatError as error:
                raise StrangeAnswer("something else than XML") from error
        return bytes(data)


def _as_result(host: str, found: Resolved) -> ResolveResult:
    family, _, protocol, _, address = found
    scope = f"%{address[3]}" if len(address) > 3 and address[3] else ""  # of a link-local IPv6 address
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return ResolveResult(
        hostname=host, host=f"{address[0]}{scope}", port=address[1], family=family, proto=protocol, flags=flags
    )
