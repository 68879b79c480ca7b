"""A few requests to the Kubernetes API: get, create, replace, and patch one object, and watch a collection.

Law: knows no kind of object and keeps no connection but a watch's: with a few requests a minute, the service account's
token and the cluster's CA are read anew each time, however they rotate. The caller decides whether to retry; `keep_up`
is the loop of callers that do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cached.contract.errors import HoldfastError, Permanent, Transient

_log = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = aiohttp.ClientTimeout(total=10)
_WATCH = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=90)  # bookmarks come once a minute
_LONGEST_EVENT = 16 << 20
_REMEDY = "check the injector's service account: its Role and ClusterRole, and that its token is mounted"

_EVERY_S = 15.0  # two small reads; also the time until what a person removed is restored
_RETRY_S = 2.0

Json = dict[str, Any]


async def keep_up(step: Callable[[], Awaitable[None]], what: str) -> None:
    """Repeat `step` for ever; log an error once, as one of `what`."""
    trouble = ""
    while True:
        try:
            await step()
        except HoldfastError as error:
            if str(error) != trouble:
                _log.error("%s: %s", what, error)
            trouble = str(error)
            await asyncio.sleep(_RETRY_S)
        else:
            trouble = ""
            await asyncio.sleep(_EVERY_S)


class KubeConflict(Transient):
    """Another writer changed the object first: read it again."""


@dataclass(frozen=True, slots=True)
class KubeApi:
    """One API server. `url` has no path; `account` is the folder with `token` and `ca.crt`."""

    url: str
    account: Path

    @classmethod
    def in_cluster(cls) -> KubeApi:
        """Return the API server of this process's cluster; raises `Permanent` (`no_cluster`) outside one."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise Permanent(
                "no_cluster",
                "expected KUBERNETES_SERVICE_HOST, which a pod has, found none",
                "outside a cluster give the certificate with --cert-dir, and leave `--mode auto` out",
            )
        return cls(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", ACCOUNT)

    async def get(self, path: str) -> Json | None:
        """Return the object at `path`, None where there is none."""
        return await self._send("GET", path)

    async def create(self, path: str, body: Json) -> None:
        """Create an object in the collection at `path`; raises `KubeConflict` where one of its name exists."""
        await self._send("POST", path, body)

    async def replace(self, path: str, body: Json) -> None:
        """Replace the object at `path`; raises `KubeConflict` where its `resourceVersion` is not that in `body`."""
        await self._send("PUT", path, body)

    async def patch(self, path: str, operations: Sequence[Json]) -> None:
        """Apply a JSON patch (RFC 6902) to the object at `path`."""
        await self._send("PATCH", path, operations, "application/json-patch+json")

    async def watch(self, path: str) -> AsyncGenerator[Json, None]:
        """Yield the events of a watch until the server ends it; raises as `get` does, and `Transient` where the server
        is silent for longer than between two bookmarks."""
        try:
            async with self._session(_WATCH) as session, session.get(self.url + path) as response:
                if response.status >= 300:
                    _parse("GET", path, response.status, await response.read())
                rest = b""
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in filter(None, lines):
                        yield _event(path, line)
                    if len(rest) > _LONGEST_EVENT:
                        raise Transient(
                            "kube_bad_answer", f"GET {path}: an event of more than {_LONGEST_EVENT} bytes", ""
                        )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable("GET", path, error) from error

    def _session(self, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
        headers = {"Authorization": f"Bearer {self._token()}", "Accept": "application/json"}
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._trust()), timeout=timeout, headers=headers
        )

    def _unreachable(self, method: str, path: str, error: Exception) -> Transient:
        problem = f"{method} {self.url}{path}: {error or type(error).__name__}"
        return Transient("kube_unreachable", problem, "check that the API server answers")

    async def _send(self, method: str, path: str, body: object = None, kind: str = "application/json") -> Json | None:
        data = None if body is None else json.dumps(body)
        try:
            async with (
                self._session(_TIMEOUT) as session,
                session.request(method, self.url + path, data=data, headers={"Content-Type": kind}) as response,
            ):
                status, content = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(method, path, error) from error
        return _parse(method, path, status, content)

    def _token(self) -> str:
        path = self.account / "token"
        try:
            return path.read_text().strip()
        except OSError as error:
            raise Permanent("no_token", f"{path}: {error.strerror}", _REMEDY) from error

    def _trust(self) -> ssl.SSLContext:
        path = self.account / "ca.crt"
        try:
            return ssl.create_default_context(cafile=str(path))
        except OSError as error:  # an SSLError too, where it is no certificate
            raise Permanent("no_ca", f"{path}: {error.strerror or error}", _REMEDY) from error


def _parse(method: str, path: str, status: int, content: bytes) -> Json | None:
    """Return the object in the response to a request, None where there is none to get; raises the status's error."""
    if status == 404 and method == "GET":
        return None
    if status == 404:
        raise Transient("kube_not_found", f"{path}: not there", "apply the injector's manifests")
    what = f"{method} {path}"
    if status == 409:
        raise KubeConflict("kube_conflict", f"{what}: another writer changed it, or it exists already", "")
    problem = f"{what}: {status} {_message(content)}"
    if status in (401, 403):
        raise Permanent("kube_forbidden", problem, _REMEDY)
    if status == 429 or status >= 500:
        raise Transient("kube_unavailable", problem, "")
    if status >= 300:
        raise Permanent("kube_refused", problem, "")
    return _parse_object(content, f"{what}: no JSON object came back")


def _event(path: str, line: bytes) -> Json:
    return _parse_object(line, f"GET {path}: no event came")


def _parse_object(data: bytes, problem: str) -> Json:
    """Return the JSON object in `data`. Raises `Transient` (`kube_bad_answer`) with `problem` where it is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        remedy = "check what answers at the API server's address"
        raise Transient("kube_bad_answer", f"{problem}, but {data[:100]!r}", remedy)
    return found


def _message(content: bytes) -> str:
    """Return the message of a `Status` object, else the first bytes of the response."""
    try:
        return str(json.loads(content)["message"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return repr(content[:200])
