"""Write objects to Google Cloud Storage, each under a condition and with its crc32c.

Law: the crc32c in the answer is the service's own, over the bytes that it stored. A request may arrive twice: an object
that is there already counts as written if its sums are those of the bytes. Formats: the JSON API's "Objects: insert",
"Performing resumable uploads".
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPMessage
from typing import Any

from cached.contract.errors import HoldfastError, Transient
from cached.core.listing import Algorithm, Checksum
from cached.publish.destination import PART_BYTES
from cached.publish.object_mark import PreconditionFailed
from cached.publish.reading import WrongSum
from cached.publish.requests import ATTEMPTS, Answer, Authorization, StoreRequests, error_of, pause
from cached.sources.gcs.access import GcsAccess
from cached.sources.gcs.address import GcsAddress
from cached.sources.gcs.objects import OBJECT_FIELDS, read_object
from cached.sources.objects import StoredObject
from cached.transport.checksums import Hasher, new_hasher
from cached.transport.client import Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.errors import is_retried
from cached.transport.response import bad_response
from cached.transport.target import Headers

_JSON: Headers = (("Content-Type", "application/json; charset=UTF-8"),)
_BYTES = "application/octet-stream"
_DONE = frozenset({200, 201})
_INCOMPLETE = 308
_ENDED = frozenset({404, 410, 499})  # of a session
_PERSISTED = re.compile(r"bytes=0-(\d{1,18})")
_WRONG_SUM = ("crc32c", "md5", "checksum", "hash")

Read = Callable[[int], bytes]  # blocking: returns the next bytes of the file, and checks the file at its end


@dataclass(frozen=True, slots=True)
class NewObject:
    """An object to write: its key, its `size` in bytes, its metadata, and the generation that it replaces (`0`: there
    is none)."""

    key: str
    size: int
    replaces: str
    metadata: dict[str, str]


class GcsWriter:
    """The writer of one bucket's objects."""

    def __init__(self, address: GcsAddress, access: GcsAccess, connections: int) -> None:
        self._address = address
        self._access = access

        def sign(url: str, cancellation: Cancellation) -> tuple[str, Headers]:
            return url, access.headers_for(url, cancellation)

        self._requests = StoreRequests(Authorization(sign, access.refuse), connections)

    async def put(self, new: NewObject, data: bytes) -> StoredObject:
        """Write a small object. Raises `PreconditionFailed` and `WrongSum`."""
        sums = await asyncio.to_thread(Sums.of, data)
        attributes = json.dumps({"name": new.key, "crc32c": sums.crc32c, "metadata": new.metadata}).encode()
        boundary = secrets.token_hex(16)
        body = b"\r\n".join(
            (
                b"--%b\r\nContent-Type: application/json; charset=UTF-8\r\n" % boundary.encode(),
                attributes,
                b"--%b\r\nContent-Type: %b\r\n" % (boundary.encode(), _BYTES.encode()),
                data,
                b"--%b--\r\n" % boundary.encode(),
            )
        )
        url = self._address.upload_url(uploadType="multipart", ifGenerationMatch=new.replaces, fields=OBJECT_FIELDS)
        headers = (("Content-Type", f"multipart/related; boundary={boundary}"),)
        return await self._written(new, sums, await self._requests.send("POST", url, headers, body))

    async def put_large(self, new: NewObject, read: Read, progress: Callable[[int], None]) -> StoredObject:
        """Write an object part by part, resumed where a part breaks. Raises `PreconditionFailed` and `WrongSum`, and
        what `read` raises: the object then stays unwritten."""
        url = self._address.upload_url(uploadType="resumable", ifGenerationMatch=new.replaces, fields=OBJECT_FIELDS)
        attributes = json.dumps({"name": new.key, "metadata": new.metadata}).encode()
        begun = await self._requests.send("POST", url, (*_JSON, ("X-Upload-Content-Type", _BYTES)), attributes)
        session = begun.headers.get("Location")
        if begun.status not in _DONE or session is None:
            return await self._written(new, Sums(), begun)
        if self._address.endpoint.startswith("https:") and not session.startswith("https:"):
            raise bad_response(self._uri(new.key), "an upload that would leave TLS")
        sums = Sums()
        try:
            for start in range(0, new.size, PART_BYTES):
                part = await asyncio.to_thread(read, min(PART_BYTES, new.size - start))
                await asyncio.to_thread(sums.update, part)
                answer = await self._send_part(new, session, start, part, sums)
                progress(len(part))
        except BaseException as error:
            await self._cancel(session, error)
            raise
        return await self._written(new, sums, answer)

    async def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        answer = await self._requests.send("DELETE", self._address.object_url(key), ())
        if answer.status not in (200, 204, 404):
            raise self._error(key, answer)

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._requests.aclose()

    async def _send_part(self, new: NewObject, session: str, start: int, part: bytes, sums: Sums) -> Answer:
        """Send one part, what the service lacks of it again after a failure; return the last answer."""
        end, sent = start + len(part), 0
        for attempt in range(1, ATTEMPTS + 1):
            extent = f"{start + sent}-{end - 1}" if sent < len(part) else "*"
            place: Headers = (("Content-Range", f"bytes {extent}/{new.size}"),)
            if end == new.size:
                place = (*place, ("X-Goog-Hash", f"crc32c={sums.crc32c}"))
            failure, answer = await self._try(session, place, part[sent:])
            if failure is not None or is_retried(answer.status):
                if attempt == ATTEMPTS:
                    raise failure or self._error(new.key, answer)
                await pause(attempt)
                failure, answer = await self._try(session, (("Content-Range", f"bytes */{new.size}"),), b"")
                if failure is not None or is_retried(answer.status):
                    continue
            if answer.status in _DONE and end == new.size:
                return answer
            if answer.status in _ENDED:
                raise Transient("upload_ended", f"{self._uri(new.key)}: the upload's session is gone", "publish again")
            if answer.status != _INCOMPLETE:
                raise self._refused(new, answer)
            sent = self._persisted(new, answer) - start
            if not 0 <= sent <= len(part):
                raise Transient("bad_response", f"{self._uri(new.key)}: the upload lost a part", "publish again")
            if sent == len(part) and end < new.size:
                return answer
        raise Transient("stalled", f"{self._uri(new.key)}: the upload makes no progress", "publish again")

    async def _try(self, session: str, place: Headers, data: bytes) -> tuple[Transient | None, Answer]:
        try:
            return None, await self._requests.send_once("PUT", session, place, data)
        except Transient as error:
            return error, _NONE

    def _persisted(self, new: NewObject, answer: Answer) -> int:
        found = answer.headers.get("Range")
        if found is None:
            return 0
        match = _PERSISTED.fullmatch(found.strip())
        if match is None:
            raise Transient("bad_response", f"{self._uri(new.key)}: the range {found[:80]!r}", "publish again")
        return int(match[1]) + 1

    async def _cancel(self, session: str, cause: BaseException) -> None:
        """Cancel an upload; one that stays ends after a week, and costs nothing."""
        try:
            await self._requests.send_once("DELETE", session, ())
        except HoldfastError as error:
            cause.add_note(f"the unfinished upload stays for a week ({error.message})")

    async def _written(self, new: NewObject, sums: Sums, answer: Answer) -> StoredObject:
        """Return the written object, proven by the service's own sum."""
        if answer.status == 412:
            there = await self.find(new.key)
            if there is None or there.size != new.size or not sums.prove(there):
                raise PreconditionFailed
            return there  # our own request, sent twice
        if answer.status not in _DONE:
            raise self._refused(new, answer)
        found = read_object(_document(answer), self._uri(new.key))
        if found.size != new.size or not sums.prove(found):
            raise WrongSum
        return found

    async def find(self, key: str) -> StoredObject | None:
        """Return the attributes of an object; None if there is none."""
        answer = await self._requests.send("GET", self._address.object_url(key, fields=OBJECT_FIELDS), ())
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise self._error(key, answer)
        return read_object(_document(answer), self._uri(key))

    def _refused(self, new: NewObject, answer: Answer) -> Exception:
        said = answer.body.decode("utf-8", errors="replace").lower()
        if answer.status == 400 and any(word in said for word in _WRONG_SUM):
            return WrongSum()
        if answer.status == 412:
            return PreconditionFailed()
        return self._error(new.key, answer)

    def _error(self, key: str, answer: Answer) -> HoldfastError:
        where = self._uri(key)
        response = Response(answer.status, answer.body, answer.headers, where)
        return error_of(answer, where, self._access.explain(response))

    def _uri(self, key: str) -> str:
        return self._address.uri(key)


_NONE = Answer(0, HTTPMessage(), b"")  # in place of an answer that did not come


def _document(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


class Sums:
    """The sums of the bytes that were sent."""

    def __init__(self) -> None:
        self._crc32c: Hasher = new_hasher(Algorithm.CRC32C)
        self._md5 = hashlib.md5(usedforsecurity=False)

    @classmethod
    def of(cls, data: bytes) -> Sums:
        """Return the sums of `data`."""
        sums = cls()
        sums.update(data)
        return sums

    @property
    def crc32c(self) -> str:
        """The crc32c as the service writes it."""
        return base64.b64encode(bytes.fromhex(self._crc32c.hexdigest())).decode("ascii")

    def update(self, data: bytes) -> None:
        """Add bytes; takes a second for 700 MB."""
        self._crc32c.update(memoryview(data))
        self._md5.update(data)

    def prove(self, found: StoredObject) -> bool:
        """Return whether the service's sums are those of the bytes; a composed object has no md5."""
        own = {Algorithm.CRC32C: self._crc32c.hexdigest(), Algorithm.MD5: self._md5.hexdigest()}
        return bool(found.sums) and all(each == Checksum(each.algorithm, own[each.algorithm]) for each in found.sums)
