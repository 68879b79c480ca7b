"""The HTTP session of botocore: aiobotocore's own, made strict.

Law: follows no redirect, as botocore expects (aiohttp would, and would send the session token to the next host), and
bounds every answer, in bytes and in time: the requests are for listings and attributes, never for a model's bytes.
"""

from __future__ import annotations

from typing import Any
from xml.parsers import expat

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession

from cached.sources.s3.errors import StrangeAnswer

_MAX_ANSWER_BYTES = 8 * 1024 * 1024  # a page of a thousand keys of the longest has less than 4 MB
_ERRORS_FROM = 300


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
