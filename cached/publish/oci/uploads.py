"""Uploads of blobs and manifests to one repository of a registry.

Law: memory is bounded by a part for each upload; a blob that the registry has is not sent; an upload that broke off
goes on where the registry says that it is. The registry is asked for the sha256 of what it stored (`digest=`), and
refuses other bytes. Protocol: OCI Distribution Specification 1.1, "Push": uploads in chunks.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import aiohttp
from yarl import URL

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.publish.connections import broken, headers_of, open_session
from cached.publish.destination import PART_BYTES, Progress
from cached.publish.oci.layers import LayerBytes
from cached.publish.reading import wrong_bytes
from cached.sources.oci.access.auth import RegistryAuth
from cached.sources.oci.registry import error_of
from cached.transport.client import Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.errors import is_retried, retry_after_s
from cached.transport.urls import Address, display_url, split_url

_TRIES = 3  # without credentials, with those that a 401 asks for, and with new ones
_ATTEMPTS = 5  # without a byte of progress in between
_WAIT_S = 1.0
_READ_TIMEOUT_S = 120.0
_CONNECTIONS = 100  # most of them idle: the slots bound those that send
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_LENGTH = re.compile(r"[0-9]{1,18}")
_MAX_ANSWER_BYTES = 1024 * 1024
_MAX_PART_BYTES = 256 * 1024 * 1024


class RegistryUploads:
    """The uploads below `base` (the URL of the registry's API). `slots` bounds the requests that send at once."""

    def __init__(self, base: str, repository: str, auth: RegistryAuth, slots: asyncio.Semaphore) -> None:
        self._base = base
        self._prefix = f"{base}/{repository}"
        self._auth = auth
        self._slots = slots
        self._session: aiohttp.ClientSession | None = None

    async def has_blob(self, digest: str) -> bool:
        """Return whether the repository has a blob."""
        answer = await self._ask_again("HEAD", f"{self._prefix}/blobs/{digest}", redirected=True)
        if answer.status not in (200, 307, 404):
            raise error_of(answer, f"the blob {digest}")
        return answer.status != 404

    async def put_blob(self, digest: str, layer: LayerBytes, progress: Progress) -> bool:
        """Store a layer unless it is there; return whether it was sent. Raises `Permanent` (`stored_wrong`) where the
        registry got other bytes."""
        if await self.has_blob(digest):
            return False
        begun = await self._ask_again("POST", f"{self._prefix}/blobs/uploads/", headers={"Content-Length": "0"})
        if begun.status == 405:
            problem = f"{display_url(self._prefix)} takes no uploads (405): the registry is read-only"
            raise Permanent("read_only", problem, "publish to the registry that it mirrors, or end its maintenance")
        if begun.status != 202:
            raise error_of(begun, f"the repository {display_url(self._prefix)}")
        least = begun.headers.get("OCI-Chunk-Min-Length", "")
        part_bytes = max(PART_BYTES, min(_MAX_PART_BYTES, int(least))) if _LENGTH.fullmatch(least) else PART_BYTES
        location = self._location(begun)
        try:
            if layer.size <= part_bytes:
                async with self._slots:
                    await self._finish(location, digest, await asyncio.to_thread(layer.read, 0, layer.size))
                progress(layer.size)
                return True
            location = await self._send(location, layer, part_bytes, progress)
            await self._finish(location, digest)
        except BaseException:
            await self._abandon(location)
            raise
        return True

    async def put_manifest(self, reference: str, data: bytes, media_type: str) -> None:
        """Store a manifest under a tag or its digest."""
        url = f"{self._prefix}/manifests/{reference}"
        answer = await self._ask_again("PUT", url, body=data, headers={"Content-Type": media_type})
        if answer.status not in (200, 201):
            raise error_of(answer, f"the manifest {reference}")

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _send(self, location: str, layer: LayerBytes, part_bytes: int, progress: Progress) -> str:
        """Send the bytes of a layer; return the location at which the upload is finished. Raises `Transient` after
        some tries without a byte that is new."""
        sent, counted, failures = 0, 0, 0
        while sent < layer.size:
            try:
                async with self._slots:
                    data = await asyncio.to_thread(layer.read, sent, part_bytes)
                    if not data:
                        raise _cut(location)
                    answer = await self._patch(location, data, sent)
                location, arrived = self._location(answer), _arrived(answer, sent + len(data))
                if arrived <= sent:
                    raise _stuck(location, sent, arrived)
            except Transient as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                await asyncio.sleep(_WAIT_S if error.retry_after_s is None else error.retry_after_s)
                location, arrived = await self._resume(location, sent)
            if arrived > counted:
                failures = 0
            sent = min(arrived, layer.size)
            progress(max(0, sent - counted))
            counted = max(counted, sent)
        return location

    async def _patch(self, location: str, data: bytes, start: int) -> Response:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{start}-{start + len(data) - 1}",
        }
        answer = await self._ask("PATCH", location, body=data, headers=headers)
        if answer.status == 416:  # the registry has another number of bytes than we think
            raise Transient("bad_response", f"{display_url(location)}: the upload is out of step", "it goes on")
        if answer.status not in (202, 204, 201):
            raise error_of(answer, "the upload")
        return answer

    async def _resume(self, location: str, sent: int) -> tuple[str, int]:
        """Return where an upload goes on, and the number of bytes that the registry has of it."""
        answer = await self._ask_again("GET", location)
        if answer.status not in (204, 202):
            raise error_of(answer, "the upload")
        return self._location(answer), _arrived(answer, sent)

    async def _finish(self, location: str, digest: str, rest: bytes = b"") -> None:
        """End an upload with the `rest` of its bytes, which are few."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(rest))}
        answer = await self._ask_again("PUT", _with_digest(location, digest), body=rest, headers=headers)
        if answer.status == 404 and await self.has_blob(digest):
            return  # an answer that was lost: the registry had it already
        if answer.status == 400 and b"DIGEST_INVALID" in answer.body:
            raise wrong_bytes(display_url(location), digest.removeprefix("sha256:"), "of other bytes")
        if answer.status not in (201, 204):
            raise error_of(answer, f"the blob {digest}")
        said = answer.headers.get("Docker-Content-Digest", digest)
        if said != digest:
            raise wrong_bytes(display_url(location), digest.removeprefix("sha256:"), said.removeprefix("sha256:"))

    async def _abandon(self, location: str) -> None:
        """Tell the registry that an upload ends; it forgets one by itself after a while as well."""
        try:
            async with asyncio.timeout(5):
                await self._ask("DELETE", location)
        except (HoldfastError, TimeoutError):
            return

    def _location(self, answer: Response) -> str:
        location = answer.headers.get("Location")
        if not location:
            problem = f"{display_url(answer.url)}: expected a Location of the upload, found none"
            raise Permanent("bad_response", problem, "use a registry of the OCI Distribution Specification")
        try:
            url = urljoin(answer.url, location)
        except ValueError as error:
            problem = f"{display_url(answer.url)}: expected the address of the upload, found none that is a URL"
            raise Permanent("bad_response", problem, "look at the registry, and at a proxy before it") from error
        if urlsplit(self._base).scheme == "https" and urlsplit(url).scheme != "https":
            # Behind a proxy that ends TLS some registries name themselves by http; the way to them is ours.
            own, parts = urlsplit(self._base), urlsplit(url)
            if own.hostname != parts.hostname:
                problem = f"{display_url(self._base)} names an upload at {display_url(url)}, without TLS"
                raise Permanent("insecure_redirect", problem, "give the registry its own https address")
            url = urlunsplit((own.scheme, own.netloc, parts.path, parts.query, ""))
        return url

    async def _ask_again(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        redirected: bool = False,
    ) -> Response:
        """Return what `_ask` returns, asked again while the registry is busy or away; for requests that may arrive
        twice."""
        for attempt in range(1, _ATTEMPTS + 1):
            wait_s: float | None = None
            try:
                answer = await self._ask(method, url, body=body, headers=headers, redirected=redirected)
                if not is_retried(answer.status) or attempt == _ATTEMPTS:
                    return answer
                wait_s = retry_after_s(answer.headers.get("Retry-After"), answer.headers.get("Date"))
            except Transient:
                if attempt == _ATTEMPTS:
                    raise
            await asyncio.sleep(_WAIT_S if wait_s is None else wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        redirected: bool = False,
    ) -> Response:
        """Return the answer of any status, after the credentials that a 401 asks for. Raises `Transient` where there is
        none. `redirected`: a redirect is an answer too."""
        for _ in range(_TRIES):
            sent = await asyncio.to_thread(self._auth.headers_for, url, Cancellation())
            async with self._answer(method, url, body, {**(headers or {}), **dict(sent)}) as answer:
                response = Response(answer.status, await _read(answer), headers_of(answer), url)
            if response.status != 401:
                break
            await asyncio.to_thread(self._auth.learn, response, sent)
        if 300 <= response.status < 400 and not redirected:
            problem = f"{display_url(url)} redirects an upload ({response.status})"
            raise Permanent("redirect", problem, "publish to the address of the registry itself")
        return response

    @asynccontextmanager
    async def _answer(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        Address.parse(url)
        if self._session is None:
            self._session = open_session(_CONNECTIONS, read_timeout_s=_READ_TIMEOUT_S)
        try:
            async with self._session.request(
                method, _exactly(url), data=io.BytesIO(body) if body else None, headers=headers, allow_redirects=False
            ) as answer:
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise broken(error, display_url(url)) from error


def _exactly(url: str) -> URL:
    return URL(url, encoded=True)  # an upload's location is signed as it is


def _arrived(answer: Response, otherwise: int) -> int:
    """Return the number of bytes that the registry has, from `Range: 0-N`."""
    match = _RANGE.fullmatch(answer.headers.get("Range", ""))
    if match is None:
        return otherwise
    return int(match[1]) + 1 if match[1] != "0" else 0  # an empty upload is `0-0` as well


def _with_digest(location: str, digest: str) -> str:
    parts = split_url(location)
    given = [pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] != "digest"]
    return urlunsplit(parts._replace(query=urlencode([*given, ("digest", digest)])))


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for part in answer.content.iter_any():  # `read` of a limit returns what came first
        data += part
        if len(data) > _MAX_ANSWER_BYTES:
            break
    return bytes(data[:_MAX_ANSWER_BYTES])


def _stuck(location: str, sent: int, arrived: int) -> Transient:
    problem = f"{display_url(location)}: sent bytes from {sent} on, and the registry says that it has {arrived}"
    return Transient("bad_response", problem, "publish again; if it goes on, look at the registry's storage")


def _cut(location: str) -> Permanent:
    problem = f"{display_url(location)}: a file became shorter while it was sent; no manifest was written"
    return Permanent("changed_while_publishing", problem, "publish again once nothing writes to the folder")
