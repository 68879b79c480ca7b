"""A small client of the Kubernetes API: requests, and watches that end instead of hanging.

Law: knows HTTP, tokens and TLS, but no resource. Every error is a `HoldfastError`. The token is read for every request,
and again on 401, so a rotation causes no error. Nothing else is retried here.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from cached.contract.errors import HoldfastError, Transient
from cached.core.retries import backoff_s
from cached.kube.cluster import ApiServer
from cached.kube.errors import Unreachable, bad_response, of_status
from cached.kube.http import CONNECT_S, ApiConnections, BrokenAnswer, Response

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396: null removes
# Names, labels and annotations only: a pod's environment and images are not needed, and cost memory. A server without
# support (none since 1.15) sends whole objects, whose `metadata` is the same.
METADATA = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1,{JSON}"
METADATA_LIST = f"{JSON};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,{JSON}"

_LONGEST_BODY = 256 << 20
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
        self._timeout_s = timeout_s
        self._connections = ApiConnections(cluster.server, cluster.server_name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._connections.close()

    async def request(self, call: Call) -> dict[str, Any]:
        """Send one request and return the JSON object of the response; raises `HoldfastError`."""
        with self._errors_are_ours(call):
            async with asyncio.timeout(self._timeout_s), await self._open(call) as response:
                body = await response.read(_LONGEST_BODY)
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
        with self._errors_are_ours(call):
            async with asyncio.timeout(CONNECT_S + stall_s):
                response = await self._open(call)
        async with response:  # on the way out its connection ends: the server would continue to send
            yield self._events(response, call, stall_s)

    async def _events(self, response: Response, call: Call, stall_s: float) -> AsyncIterator[dict[str, Any]]:
        """Split the body at line feeds."""
        rest = bytearray()
        with self._errors_are_ours(call):
            async with aclosing(response.receive()) as pieces:
                while True:
                    async with asyncio.timeout(stall_s):
                        piece = await anext(pieces, b"")
                    if not piece:
                        return
                    rest += piece
                    if b"\n" in piece:
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
        except ssl.SSLError as error:
            self._tls = self._cluster.tls()  # the cluster's authority may have changed since
            raise Unreachable(self._cluster.server, str(error)) from error
        except BrokenAnswer as error:
            raise bad_response(call, str(error)) from error
        except (TimeoutError, OSError) as error:
            raise Unreachable(self._cluster.server, f"{call}: {error or type(error).__name__}") from error

    async def _open(self, call: Call) -> Response:
        """Return a successful response, which the caller closes; raises `HoldfastError`."""
        token = self._cluster.read_token()
        response = await self._send(call, token)
        if response.status == 401:
            now = self._cluster.read_token()
            if now != token:
                response.close()
                response = await self._send(call, now)
        if response.status >= 300:
            async with response:
                body = await response.read(_ERROR_BODY)
            after = response.headers.get("Retry-After", "")
            retry_after_s = float(after) if after.isascii() and after.isdigit() else None
            raise of_status(response.status, body, str(call), retry_after_s)
        return response

    async def _send(self, call: Call, token: str | None) -> Response:
        headers = {"Accept": call.accept, "User-Agent": "holdfast"}
        if token:  # it goes to this server only: no redirect is followed
            headers["Authorization"] = f"Bearer {token}"
        body = None
        if call.body is not None:
            headers["Content-Type"] = call.content_type
            body = json.dumps(call.body).encode()
        return await self._connections.send(call.method, call.path, call.query, headers, body, self._tls)


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
