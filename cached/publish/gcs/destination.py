"""Publish to Google Cloud Storage: large files as resumable uploads; an object appears only when it is complete.

Law: memory is bounded by `requests` parts. A file replaces the generation that was listed, or nothing: what another
program wrote in between is not overwritten. Every object has its sha256 as metadata (`holdfast-sha256`), for people: it
is what was sent, and proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator

from cached.core.listing import Algorithm
from cached.publish.destination import PART_BYTES, Progress, Stored, Upload
from cached.publish.gcs.objects import GcsWriter, NewObject, Sums
from cached.publish.mark import another_publisher
from cached.publish.object_destination import ObjectDestination
from cached.publish.object_mark import PreconditionFailed
from cached.publish.read_back import hash_stored
from cached.publish.reading import CheckedReader, WrongSum, unproven
from cached.sources.gcs.access import WRITE, GcsAccess
from cached.sources.gcs.address import GcsAddress
from cached.sources.gcs.objects import list_objects
from cached.sources.objects import StoredObject
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.target import HttpTarget

_METADATA = "holdfast-sha256"
_ABSENT = "0"  # the generation of an object that is not there


class GcsDestination(ObjectDestination):
    """A `Destination` under a prefix; at most `requests` requests at once."""

    def __init__(self, uri: str, requests: int) -> None:
        self._address = GcsAddress.parse(uri)
        super().__init__(self._address.display, self._address.prefix)
        self._client = HttpClient(HttpSettings())
        self._access = GcsAccess(self._address, self._client, WRITE)
        self._writer = GcsWriter(self._address, self._access, requests + 1)
        self._slots = asyncio.Semaphore(requests)

    def list_objects(self, cancellation: Cancellation) -> dict[str, StoredObject]:
        return list_objects(self._access.service(cancellation), self._address, self._address.prefix)

    def tag_of(self, answer: Response) -> str | None:
        return answer.headers.get("X-Goog-Generation")

    async def vouches_for(self, upload: Upload, stored: Stored) -> bool:
        """Compare the service's md5 with the local file's; read an object that has none, as it was composed."""
        found = self._listed.get(self.key(upload.entry.path))
        if found is None or found.validator != stored.tag:
            return False
        async with self._slots:
            if any(each.algorithm is Algorithm.MD5 for each in found.sums):
                return (await asyncio.to_thread(_sums_of, upload)).prove(found)
            return await self._sha256(found) == upload.entry.sha256

    async def get_sha256(self, path: str) -> str | None:
        async with self._slots:
            found = await self._writer.find(self.key(path))
            return None if found is None else await self._sha256(found)

    async def put(self, upload: Upload, progress: Progress) -> Stored:
        size = upload.entry.size
        new = self.new(upload.entry.path, size, {_METADATA: upload.entry.sha256})
        with await asyncio.to_thread(CheckedReader, upload) as reader, self._judged(upload):
            async with self._slots:
                if size > PART_BYTES:
                    found = await self._writer.put_large(new, reader.read_to_end, progress)
                else:
                    found = await self._writer.put(new, await asyncio.to_thread(reader.read_to_end, size))
                    progress(size)
            return Stored(found.size, found.validator)

    async def delete(self, path: str) -> None:
        await self._writer.delete(self.key(path))

    async def aclose(self) -> None:
        await self._writer.aclose()
        self._client.close()

    def new(self, path: str, size: int, metadata: dict[str, str]) -> NewObject:
        """Return a file to write in place of the listed one, or of none."""
        return NewObject(self.key(path), size, self.listed_tag(path) or _ABSENT, metadata)

    async def read(self, path: str, limit_bytes: int) -> Response | None:
        url = self._address.object_url(self.key(path), alt="media")

        def ask(cancellation: Cancellation) -> Response | None:
            service = self._access.service(cancellation)
            response = service.ask(url, limit_bytes=limit_bytes)
            if response.status == 404:
                return None
            if response.status != 200:
                raise service.error_of(url, response)
            return response

        return await call_in_thread(ask)

    async def write(self, path: str, data: bytes, tag: str | None) -> None:
        new = NewObject(self.key(path), len(data), tag or _ABSENT, {})
        try:
            await self._writer.put(new, data)
        except WrongSum as error:
            raise unproven(self._address.uri(new.key), hashlib.sha256(data).hexdigest()) from error

    @contextlib.contextmanager
    def _judged(self, upload: Upload) -> Iterator[None]:
        """Raise the error of a write that another one forestalled, or that stored other bytes."""
        where = self._address.uri(self.key(upload.entry.path))
        try:
            yield
        except PreconditionFailed as error:
            raise another_publisher(where, None) from error
        except WrongSum as error:
            raise unproven(where, upload.entry.sha256) from error

    async def _sha256(self, found: StoredObject) -> str:
        url = self._address.object_url(found.key, alt="media", generation=found.validator)
        target = HttpTarget(url, stored_bytes=found.size, names_version=True)

        def read(cancellation: Cancellation) -> str:
            return hash_stored(
                self._client, lambda asked: self._access.authorize(target, asked), found.size, cancellation
            )

        return await call_in_thread(read)


def _sums_of(upload: Upload) -> Sums:
    sums = Sums()
    with CheckedReader(upload) as reader:
        for part in reader.read_parts():
            sums.update(part)
    return sums
