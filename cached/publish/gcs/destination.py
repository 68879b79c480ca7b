"""Publish to Google Cloud Storage: large files as resumable uploads; an object appears only when it is complete.

Law: memory is bounded by `requests` parts. A file replaces the generation that was listed, or nothing: what another
program wrote in between is not overwritten. Every object has its sha256 as metadata (`holdfast-sha256`), for people: it
is what was sent, and proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Sequence

from cached.contract.manifest import CHAINS_NAME, MANIFEST_NAME, MAX_MANIFEST_BYTES, PUBLISHING_NAME, FileEntry
from cached.core.listing import Algorithm
from cached.peers.chain_file import MAX_CHAIN_FILE_BYTES
from cached.publish.destination import PART_BYTES, Progress, Say, Stored, Upload
from cached.publish.gcs.objects import GcsWriter, NewObject, Sums
from cached.publish.mark import MAX_MARK_BYTES, Mark, another_publisher
from cached.publish.object_mark import ObjectMark, PreconditionFailed, StoredMark, compute_age_s
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
from cached.transport.response import bad_response
from cached.transport.target import HttpTarget

_METADATA = "holdfast-sha256"
_ABSENT = "0"  # the generation of an object that is not there


class GcsDestination:
    """A `Destination` under a prefix; at most `requests` requests at once."""

    def __init__(self, uri: str, requests: int) -> None:
        self._address = GcsAddress.parse(uri)
        self._client = HttpClient(HttpSettings())
        self._access = GcsAccess(self._address, self._client, WRITE)
        self._writer = GcsWriter(self._address, self._access, requests + 1)
        self.mark = ObjectMark(_GcsMark(self), self._address.display)
        self._slots = asyncio.Semaphore(requests)
        self._listed: dict[str, StoredObject] = {}  # by key, as last listed

    @property
    def display(self) -> str:
        return self._address.display

    async def read_manifest(self) -> bytes | None:
        found = await self.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
        return None if found is None else found.body

    async def list_files(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        def ask(cancellation: Cancellation) -> dict[str, StoredObject]:
            return list_objects(self._access.service(cancellation), self._address, self._address.prefix)

        self._listed = await call_in_thread(ask)
        found = ((file.path, self._listed.get(self.key(file.path))) for file in files)
        return {path: Stored(each.size, each.validator) for path, each in found if each is not None}

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

    keeps_chains = True

    async def read_chains(self) -> bytes | None:
        found = await self.read(CHAINS_NAME, MAX_CHAIN_FILE_BYTES)
        return None if found is None else found.body

    async def write_chains(self, data: bytes) -> None:
        listed = self._listed.get(self.key(CHAINS_NAME))
        try:
            await self.write(CHAINS_NAME, data, _ABSENT if listed is None else listed.validator)
        except PreconditionFailed as error:
            raise another_publisher(self.display, None) from error

    async def claim(self, mark: Mark, say: Say) -> None:
        await self.mark.claim(mark, say)

    async def keep_claim(self) -> None:
        await self.mark.keep()

    async def withdraw(self) -> None:
        await self.delete(MANIFEST_NAME)

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

    async def seal(self, manifest: bytes) -> None:
        new = NewObject(self.key(MANIFEST_NAME), len(manifest), _ABSENT, {})
        try:
            await self._writer.put(new, manifest)
        except PreconditionFailed as error:
            raise another_publisher(self.display, None) from error
        except WrongSum as error:
            raise unproven(self._address.uri(new.key), hashlib.sha256(manifest).hexdigest()) from error

    async def delete(self, path: str) -> None:
        await self._writer.delete(self.key(path))

    async def unmark(self) -> None:
        await self.mark.remove()

    async def give_up(self) -> None:
        await self.mark.give_up()

    async def aclose(self) -> None:
        await self._writer.aclose()
        self._client.close()

    def key(self, path: str) -> str:
        """Return the key of a file."""
        return self._address.prefix + path

    def new(self, path: str, size: int, metadata: dict[str, str]) -> NewObject:
        """Return a file to write in place of the listed one, or of none."""
        listed = self._listed.get(self.key(path))
        return NewObject(self.key(path), size, _ABSENT if listed is None else listed.validator, metadata)

    async def read(self, path: str, limit_bytes: int) -> Response | None:
        """Return the answer with a small object's bytes; None if there is none."""
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

    async def write(self, path: str, data: bytes, generation: str) -> None:
        """Write a small object in place of `generation`. Raises `PreconditionFailed`."""
        new = NewObject(self.key(path), len(data), generation, {})
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


class _GcsMark:
    """The object with the mark."""

    def __init__(self, destination: GcsDestination) -> None:
        self._destination = destination

    async def read(self) -> StoredMark | None:
        found = await self._destination.read(PUBLISHING_NAME, MAX_MARK_BYTES)
        if found is None:
            return None
        generation = found.headers.get("X-Goog-Generation")
        if generation is None:
            raise bad_response(self._destination.display, f"expected the generation of {PUBLISHING_NAME}, found none")
        return StoredMark(found.body, generation, compute_age_s(found.headers))

    async def write(self, data: bytes, tag: str | None) -> None:
        await self._destination.write(PUBLISHING_NAME, data, tag or _ABSENT)

    async def delete(self) -> None:
        await self._destination.delete(PUBLISHING_NAME)

    def ignore_conditions(self) -> None:
        """Do nothing: an emulator that ignores them takes them all the same."""


def _sums_of(upload: Upload) -> Sums:
    sums = Sums()
    with CheckedReader(upload) as reader:
        for part in reader.read_parts():
            sums.update(part)
    return sums
