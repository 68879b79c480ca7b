"""A small client of the Kubernetes API on aiohttp: requests, and watches that end instead of hanging.

Law: knows HTTP, tokens and TLS; knows no resource. Every error is a `HoldfastError`. The token is read for every
request, and once more on 401, so a rotation is never noticed. Nothing is retried here but that 401.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from cached.contract.errors import HoldfastError
from cached.kube.cluster import Cluster
from cached.kube.errors import Unreachable, bad_answer, of_status

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396: null removes
# Names, labels and annotations only: a pod's environment and images are nobody's business here, nor our memory's. A
# server that cannot (none since 1.15) sends whole objects, whose `metadata` is the same.
METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{JSON}"
METADATA_LIST = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{JSON}"

_CONNECT_S = 10.0
_LONGEST_EVENT = 16 << 20  # etcd stores 1.5 MiB; this only bounds what a confused peer can make us keep
_ERROR_BODY = 64 << 10


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `path` begins with `/api` or `/apis`; `body` is sent as JSON."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    content_type: str = JSON
    accept: str = JSON

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class KubeClient:
    """Use as `async with KubeClient(cluster) as client`. `timeout_s` bounds one request, not a watch."""

    def __init__(self, cluster: Cluster, timeout_s: float = 30.0) -> None:
        self._cluster = cluster
        self._tls = cluster.tls()
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers={"User-Agent": "holdfast"})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def request(self, call: Call) -> dict[str, Any]:
        """Send one request and return the object that came back."""
        async with self._answer(call, self._timeout) as answer:
            body = await answer.read()
        try:
            document = json.loads(body)
        except ValueError as error:
            raise bad_answer(str(call), "no JSON came back") from error
        if not isinstance(document, dict):
            raise bad_answer(str(call), "no JSON object came back")
        return document

    async def watch(self, call: Call, stall_s: float) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a watch, bookmarks and ERROR among them, until the server ends it.

        Raises `Unreachable` where nothing at all comes for `stall_s` seconds: a peer that died says nothing, and only
        bookmarks tell it from a quiet one. The first thing yielded is `{}`: the watch stands.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=stall_s)
        async with self._answer(call, timeout) as answer:
            yield {}
            async with aclosing(_lines(answer, str(call))) as lines:
                async for line in lines:
                    yield _event(line, call)

    @asynccontextmanager
    async def _answer(self, call: Call, timeout: aiohttp.ClientTimeout) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, where it is a success; everything that goes wrong meanwhile becomes ours."""
        try:
            token = self._cluster.read_token()
            answer = await self._send(call, timeout, token)
            if answer.status == 401 and self._cluster.read_token() != token:
                answer.release()
                answer = await self._send(call, timeout, self._cluster.read_token())
            async with answer:
                if answer.status >= 300:
                    raise await _refusal(answer, call)
                yield answer
        except aiohttp.ClientSSLError as error:
            self._tls = self._cluster.tls()  # the cluster's authority may have changed since
            raise Unreachable(self._cluster.server, str(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(self._cluster.server, f"{call}: {error or type(error).__name__}") from error

    async def _send(self, call: Call, timeout: aiohttp.ClientTimeout, token: str | None) -> aiohttp.ClientResponse:
        headers = {"Accept": call.accept}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        data = None
        if call.body is not None:
            headers["Content-Type"] = call.content_type
            data = json.dumps(call.body).encode()
        return await self._session.request(
            call.method,
            self._cluster.server + call.path,
            params=dict(call.query),
            data=data,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,  # the token is for this server and no other
            ssl=self._tls if self._tls is not None else True,
            server_hostname=self._cluster.server_name,
        )


async def _lines(answer: aiohttp.ClientResponse, doing: str) -> AsyncIterator[bytes]:
    """Split the body at line feeds; aiohttp's own `readline` refuses lines beyond its buffer, and pods can be longer."""
    rest = bytearray()
    async for chunk in answer.content.iter_any():
        rest += chunk
        if b"\n" in chunk:
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                if line.strip():
                    yield line
        if len(rest) > _LONGEST_EVENT:
            raise bad_answer(doing, f"an event of more than {_LONGEST_EVENT} bytes")


def _event(line: bytes, call: Call) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise bad_answer(str(call), "an event that is no JSON") from error
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        raise bad_answer(str(call), "an event without an object")
    if event.get("type") == "ERROR":
        status: dict[str, Any] = event["object"]
        raise of_status(int(status.get("code") or 500), json.dumps(status).encode(), str(call))
    return event


async def _refusal(answer: aiohttp.ClientResponse, call: Call) -> HoldfastError:
    body = await answer.content.read(_ERROR_BODY)
    after = answer.headers.get("Retry-After", "")
    return of_status(answer.status, body, str(call), float(after) if after.isascii() and after.isdigit() else None)
