"""A small client of the Kubernetes API on aiohttp: requests, and watches that end instead of hanging.

Law: knows HTTP, tokens and TLS, but no resource. Every error is a `HoldfastError`. The token is read for every request,
and again on 401, so a rotation causes no error. Nothing else is retried here.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp

from cached.contract.errors import HoldfastError, Transient
from cached.core.retries import backoff_s
from cached.kube.cluster import ApiServer
from cached.kube.errors import Unreachable, bad_response, of_status

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396: null removes
# Names, labels and annotations only: a pod's environment and images are not needed, and cost memory. A server without
# support (none since 1.15) sends whole objects, whose `metadata` is the same.
METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{JSON}"
METADATA_LIST = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{JSON}"

_CONNECT_S = 10.0
_LONGEST_EVENT = 16 << 20  # etcd stores 1.5 MiB; this bounds the memory that a faulty peer can use
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

    def __init__(self, cluster: ApiServer, timeout_s: float = 30.0) -> None:
        self._cluster = cluster
        self._tls = cluster.tls()
        self._limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers={"User-Agent": "holdfast"})
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._session.close()

    async def request(self, call: Call) -> dict[str, Any]:
        """Send one request and return the JSON object of the response; raises `HoldfastError`."""
        with self._errors_are_ours(call):
            async with await self._open(call, self._limits) as response:
                body = await response.read()
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise bad_response(call, "no JSON came back") from error
        if not isinstance(document, dict):
            raise bad_response(call, "no JSON object came back")
        return document

    @asynccontextmanager
    async def watch(self, call: Call, stall_s: float) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open a watch; inside, iterate over its events, including bookmarks, until the server ends it. Raises the
        error of an ERROR event, and `Unreachable` if no byte arrives for `stall_s` seconds: only bookmarks distinguish
        a quiet peer from a dead one."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=stall_s)
        with self._errors_are_ours(call):
            response = await self._open(call, limits)
        try:
            yield self._events(response, call)
        finally:
            response.close()  # and its connection: the server would continue to send

    async def _events(self, response: aiohttp.ClientResponse, call: Call) -> AsyncIterator[dict[str, Any]]:
        """Split the body at line feeds: aiohttp's own `readline` refuses lines longer than its buffer, as of pods."""
        rest = bytearray()
        with self._errors_are_ours(call):
            async for chunk in response.content.iter_any():
                rest += chunk
                if b"\n" in chunk:
                    *lines, last = bytes(rest).split(b"\n")
                    rest = bytearray(last)
                    for line in lines:
                        if line.strip():
                            yield _event(line, call)
                if len(rest) > _LONGEST_EVENT:
                    raise bad_response(call, f"an event of more than {_LONGEST_EVENT} bytes")

    @contextmanager
    def _errors_are_ours(self, call: Call) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientSSLError as error:
            self._tls = self._cluster.tls()  # the cluster's authority may have changed since
            raise Unreachable(self._cluster.server, str(error)) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(self._cluster.server, f"{call}: {error or type(error).__name__}") from error

    async def _open(self, call: Call, limits: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        """Return a successful response, which the caller closes; raises `HoldfastError`."""
        token = self._cluster.read_token()
        response = await self._send(call, limits, token)
        if response.status == 401:
            now = self._cluster.read_token()
            if now != token:
                response.release()
                response = await self._send(call, limits, now)
        if response.status >= 300:
            async with response:
                body = await response.content.read(_ERROR_BODY)
                after = response.headers.get("Retry-After", "")
                retry_after_s = float(after) if after.isascii() and after.isdigit() else None
                raise of_status(response.status, body, str(call), retry_after_s)
        return response

    async def _send(self, call: Call, limits: aiohttp.ClientTimeout, token: str | None) -> aiohttp.ClientResponse:
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
            timeout=limits,
            allow_redirects=False,  # the token is for this server only
            ssl=self._tls if self._tls is not None else True,
            server_hostname=self._cluster.server_name,
        )


def _event(line: bytes, call: Call) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise bad_response(call, "an event that is no JSON") from error
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        raise bad_response(call, "an event without an object")
    if event.get("type") == "ERROR":
        status: dict[str, Any] = event["object"]
        code = status.get("code")
        raise of_status(code if isinstance(code, int) else 500, json.dumps(status).encode(), str(call))
    return event


class Backoff:
    """The pauses between attempts, with jitter: a thousand daemons that lost the API at once return spread out."""

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s, self._cap_s = first_s, cap_s
        self._failures = 0

    def reset(self) -> None:
        """Note a success: the next pause is the shortest."""
        self._failures = 0

    def pause_s(self, error: HoldfastError | None = None) -> float:
        """Return the seconds to wait after a failure, at least the server's Retry-After within the cap."""
        self._failures += 1
        asked = error.retry_after_s if isinstance(error, Transient) else None
        if asked is not None:
            return min(asked, self._cap_s) * random.uniform(1.0, 1.5)  # noqa: S311 - jitter
        return backoff_s(self._first_s, self._cap_s, self._failures) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
