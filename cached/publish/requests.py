"""The requests of a publish to an object store over HTTP: bytes up, small answers down.

Law: every answer is bounded, and no redirect is followed. A request that may pass later is sent again, so a request may
arrive twice: what it writes has a condition. Errors show no credentials.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPMessage

import aiohttp
from yarl import URL

from cached.contract.errors import HoldfastError, Transient
from cached.publish.connections import broken, headers_of, open_session
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.errors import is_retried, response_error, retry_after_s
from cached.transport.response import bad_response
from cached.transport.target import Headers
from cached.transport.urls import display_url

ATTEMPTS = 5
_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
_READ_TIMEOUT_S = 60.0
_REQUEST_TIMEOUT_S = 1800.0  # for the bytes of one part
_MAX_ANSWER_BYTES = 16 * 1024 * 1024  # the ids of 50,000 blocks are 6 MB
_UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True)
class Answer:
    """A small answer of any status."""

    status: int
    headers: HTTPMessage = field(repr=False)
    body: bytes = field(repr=False)


class Authorization:
    """What authorizes requests: `sign` returns the URL and the headers to send (blocking; may wait for a token),
    `refuse` is told of headers that were refused and returns whether others may be accepted."""

    def __init__(
        self, sign: Callable[[str, Cancellation], tuple[str, Headers]], refuse: Callable[[Headers], bool]
    ) -> None:
        self.sign = sign
        self.refuse = refuse


class StoreRequests:
    """The requests to one store, at most `connections` at once. `aclose()` ends it."""

    def __init__(self, authorization: Authorization, connections: int) -> None:
        self._authorization = authorization
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def send(self, method: str, url: str, headers: Headers, body: bytes = b"") -> Answer:
        """Return the answer of any status; 408, 429, 5xx and broken connections are tried again first. Raises
        `Transient` and `Permanent`."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = await self.send_once(method, url, headers, body)
            except Transient:
                if attempt == ATTEMPTS:
                    raise
                await pause(attempt)
                continue
            if not is_retried(answer.status) or attempt == ATTEMPTS:
                return answer
            await pause(attempt, answer)
        raise AssertionError("unreachable")

    async def send_once(self, method: str, url: str, headers: Headers, body: bytes = b"") -> Answer:
        """Return the answer of any status to one request, or to a second one with a new token. Raises as `send`."""
        signed, authorizing = await self._sign(url)
        answer = await self._exchange(method, signed, (*headers, *authorizing), body)
        if answer.status == _UNAUTHORIZED and self._authorization.refuse(authorizing):
            signed, authorizing = await self._sign(url)
            answer = await self._exchange(method, signed, (*headers, *authorizing), body)
        return answer

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # its transports end in the loop's next turn

    async def _sign(self, url: str) -> tuple[str, Headers]:
        return await call_in_thread(lambda cancellation: self._authorization.sign(url, cancellation))

    async def _exchange(self, method: str, url: str, headers: Headers, body: bytes) -> Answer:
        where = display_url(url)
        try:
            async with self._opened().request(
                method,
                URL(url, encoded=True),  # names keep their percent-encoding
                headers=headers,
                data=io.BytesIO(body) if body else None,
                allow_redirects=False,
                skip_auto_headers=("Content-Type",),
            ) as response:
                data = bytearray()
                async for part in response.content.iter_any():
                    data += part
                    if len(data) > _MAX_ANSWER_BYTES:
                        raise bad_response(where, f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
                return Answer(response.status, headers_of(response), bytes(data))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise broken(error, where) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = open_session(
                self._connections, read_timeout_s=_READ_TIMEOUT_S, timeout_s=_REQUEST_TIMEOUT_S
            )
        return self._session


def error_of(answer: Answer, where: str, explained: HoldfastError | None) -> HoldfastError:
    """Return the error of an answer that is no success: `explained` by the store's own rules, else the general one."""
    return explained or response_error(answer.status, answer.headers, where, answer.body)


async def pause(attempt: int, answer: Answer | None = None) -> None:
    """Wait before another attempt, as long as the answer asks for, at most half a minute."""
    asked_s = None if answer is None else retry_after_s(answer.headers.get("Retry-After"), answer.headers.get("Date"))
    await asyncio.sleep(min(_LONGEST_WAIT_S, _WAIT_S * 2 ** (attempt - 1) if asked_s is None else asked_s))
