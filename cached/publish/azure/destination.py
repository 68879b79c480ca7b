"""Publish to Azure Blob Storage: parallel blocks, each checked by the service; a blob appears only when it is complete.

Law: memory is bounded by `requests` parts. A file replaces the blob that was listed, or nothing: what another program
wrote in between is not overwritten. The service compares the MD5 of every block, and keeps the MD5 of the whole as it
is told: that of a blob with our sha256 in its metadata (`holdfast_sha256`) counts as checked, any other blob is read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import Iterator

from cached.publish.azure.blobs import BlobWriter, NewBlob
from cached.publish.destination import PART_BYTES, Progress, Stored, Upload
from cached.publish.mark import another_publisher
from cached.publish.object_destination import ObjectDestination
from cached.publish.object_mark import PreconditionFailed
from cached.publish.parallel import ungrouped
from cached.publish.read_back import hash_stored
from cached.publish.reading import CheckedReader, WrongSum, unproven
from cached.sources.azure.access import VERSION, WRITE, AzureAccess, code_of
from cached.sources.azure.address import AzureAddress
from cached.sources.azure.blobs import list_blobs
from cached.sources.objects import StoredObject
from cached.transport.client import HttpClient, Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.response import strong_etag
from cached.transport.target import HttpTarget

_METADATA = "holdfast_sha256"  # names are identifiers
_MOST_BLOCKS = 50_000  # the service's limit


class AzureDestination(ObjectDestination):
    """A `Destination` under a prefix; at most `requests` requests at once."""

    def __init__(self, uri: str, requests: int) -> None:
        self._address = AzureAddress.parse(uri)
        super().__init__(self._address.display, self._address.prefix)
        self._client = HttpClient(HttpSettings())
        self._access = AzureAccess(self._address, self._client, WRITE)
        self._writer = BlobWriter(self._address, self._access, requests + 1)
        self._slots = asyncio.Semaphore(requests)

    def list_objects(self, cancellation: Cancellation) -> dict[str, StoredObject]:
        return list_blobs(self._access, self._address, self._address.prefix, cancellation)

    def tag_of(self, answer: Response) -> str | None:
        return strong_etag(answer.headers)

    async def vouches_for(self, upload: Upload, stored: Stored) -> bool:
        """Compare the MD5 with the local file's, where our own publish wrote it; read any other blob."""
        async with self._slots:
            found = await self._writer.find(self.key(upload.entry.path))
            if found is None or found.etag != stored.tag or found.size != upload.entry.size:
                return False
            if found.md5 and found.md5 != await asyncio.to_thread(_md5_of, upload):
                return False
            if found.md5 and found.metadata.get(_METADATA) == upload.entry.sha256:
                return True
            return await self._sha256(upload.entry.path, found.size, found.etag) == upload.entry.sha256

    async def get_sha256(self, path: str) -> str | None:
        async with self._slots:
            found = await self._writer.find(self.key(path))
            return None if found is None else await self._sha256(path, found.size, found.etag)

    async def put(self, upload: Upload, progress: Progress) -> Stored:
        size = upload.entry.size
        metadata = {_METADATA: upload.entry.sha256}
        new = NewBlob(self.key(upload.entry.path), self.listed_tag(upload.entry.path), metadata)
        with await asyncio.to_thread(CheckedReader, upload) as reader, self._judged(upload):
            if size > PART_BYTES:
                return Stored(size, await self._put_blocks(new, upload, reader, progress))
            async with self._slots:
                etag = await self._writer.put(new, await asyncio.to_thread(reader.read_to_end, size))
                progress(size)
                return Stored(size, etag)

    async def delete(self, path: str) -> None:
        await self._writer.delete(self.key(path))

    async def aclose(self) -> None:
        await self._writer.aclose()
        self._client.close()

    async def read(self, path: str, limit_bytes: int) -> Response | None:
        def ask(cancellation: Cancellation) -> Response | None:
            service = self._access.service(cancellation)
            url = self._access.signed(self._address.blob_url(self.key(path)), cancellation)
            response = service.ask(url, VERSION, limit_bytes)
            if response.status == 404 and code_of(response) != "ContainerNotFound":
                return None
            if response.status != 200:
                raise service.error_of(url, response)
            return response

        return await call_in_thread(ask)

    async def write(self, path: str, data: bytes, tag: str | None) -> None:
        new = NewBlob(self.key(path), tag, {})
        try:
            await self._writer.put(new, data)
        except WrongSum as error:
            raise unproven(self._address.uri(new.key), hashlib.sha256(data).hexdigest()) from error

    async def _put_blocks(self, new: NewBlob, upload: Upload, reader: CheckedReader, progress: Progress) -> str:
        """Send the blocks in parallel, but read them in order, for the sha256; return the ETag of the whole. Those that
        an earlier publish sent and did not finish are not sent again."""
        size, md5 = upload.entry.size, hashlib.md5(usedforsecurity=False)
        block_bytes = max(PART_BYTES, -(-size // _MOST_BLOCKS))
        blocks: dict[int, str] = {}
        async with self._slots:
            there = await self._writer.list_blocks(new.key)

        def read(length: int) -> bytes:
            data = reader.read_to_end(length)
            md5.update(data)
            return data

        async def send(start: int, data: bytes) -> None:
            blocks[start] = await self._writer.put_block(new.key, start, data, there)
            progress(len(data))

        with ungrouped():
            async with asyncio.TaskGroup() as tasks:
                for start in range(0, size, block_bytes):
                    await self._slots.acquire()
                    try:
                        data = await asyncio.to_thread(read, min(block_bytes, size - start))
                        sending = tasks.create_task(send(start, data))
                    except BaseException:
                        self._slots.release()
                        raise
                    # Not in `send`: a task cancelled before its first step never reaches its own `finally`.
                    sending.add_done_callback(lambda _: self._slots.release())
        async with self._slots:
            whole = base64.b64encode(md5.digest()).decode("ascii")
            return await self._writer.put_block_list(new, [blocks[start] for start in sorted(blocks)], whole)

    @contextlib.contextmanager
    def _judged(self, upload: Upload) -> Iterator[None]:
        """Raise the error of a write that another one forestalled, or of other bytes."""
        where = self._address.uri(self.key(upload.entry.path))
        try:
            yield
        except (PreconditionFailed, WrongSum, ExceptionGroup) as error:  # a group: of the tasks that send blocks
            found = ExceptionGroup("", (error,))  # not `except*`: early 3.11 releases wrap what is raised in it
            if found.subgroup(PreconditionFailed) is not None:
                raise another_publisher(where, None) from error
            if found.subgroup(WrongSum) is not None:
                raise unproven(where, upload.entry.sha256) from error
            raise

    async def _sha256(self, path: str, size: int, etag: str) -> str:
        target = HttpTarget(self._address.blob_url(self.key(path)), VERSION, if_match=etag, stored_bytes=size)

        def read(cancellation: Cancellation) -> str:
            return hash_stored(self._client, lambda asked: self._access.authorize(target, asked), size, cancellation)

        return await call_in_thread(read)


def _md5_of(upload: Upload) -> str:
    md5 = hashlib.md5(usedforsecurity=False)
    with CheckedReader(upload) as reader:
        for part in reader.read_parts():
            md5.update(part)
    return base64.b64encode(md5.digest()).decode("ascii")
