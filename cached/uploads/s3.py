"""Publish to S3: parallel parts, each checked by the server, and an object appears only when it is whole.

Law: memory is bounded by `requests` parts; an upload that fails is aborted, so that no unseen parts are paid for.
Every object carries its sha256 as metadata (`x-amz-meta-holdfast-sha256`): an ETag could not tell a resumed publish
whether the bytes there are the right ones.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from cached.contract.errors import HoldfastError
from cached.contract.manifest import MANIFEST_NAME, PUBLISHING_NAME, FileEntry
from cached.s3.address import S3Address
from cached.s3.client import S3Client
from cached.s3.errors import translated
from cached.uploads.base import PART_BYTES, Progress, Upload
from cached.uploads.parallel import ungrouped
from cached.uploads.reading import CheckedReader

_METADATA = "holdfast-sha256"
_MOST_PARTS = 10_000  # S3's limit
_ATTEMPTS = 5  # nobody else retries a publish
_READ_TIMEOUT_S = 60


class S3Destination:
    """A `Destination` under a prefix; at most `requests` requests at once."""

    def __init__(self, uri: str, requests: int) -> None:
        self._address = S3Address.parse(uri)
        self._client = S3Client(self._address, attempts=_ATTEMPTS, connections=requests, read_timeout_s=_READ_TIMEOUT_S)
        self._slots = asyncio.Semaphore(requests)

    @property
    def display(self) -> str:
        return self._address.display

    async def manifest(self) -> bytes | None:
        return await self._client.manifest()

    async def sizes(self, files: Sequence[FileEntry]) -> dict[str, int]:
        prefix = self._address.prefix
        wanted = {file.path for file in files}
        found = {item.key[len(prefix) :]: item.size for item in await self._client.objects(prefix)}
        return {path: size for path, size in found.items() if path in wanted}

    async def sha256(self, path: str) -> str | None:
        """What an earlier `publish` wrote into the object's metadata, after checking the bytes it sent."""
        found = await self._client.head(self._key(path))
        sha256: str | None = found["Metadata"].get(_METADATA) if found is not None else None
        return sha256

    async def mark(self) -> None:
        await self._put_object(self._key(PUBLISHING_NAME), b"", {})

    async def withdraw(self) -> None:
        await self.delete(MANIFEST_NAME)

    async def put(self, upload: Upload, progress: Progress) -> None:
        with await asyncio.to_thread(CheckedReader, upload) as reader:
            if upload.entry.size > PART_BYTES:
                await self._multipart(upload, reader, progress)
                return
            async with self._slots:
                data = await asyncio.to_thread(reader.read, upload.entry.size)
                reader.finish()
                await self._put_object(self._key(upload.entry.path), data, {_METADATA: upload.entry.sha256})
                progress(len(data))

    async def seal(self, manifest: bytes) -> None:
        await self._put_object(self._key(MANIFEST_NAME), manifest, {})

    async def delete(self, path: str) -> None:
        key = self._key(path)
        with translated(self._address.uri(key)):
            await (await self._client.api()).delete_object(Bucket=self._address.bucket, Key=key)

    async def unmark(self) -> None:
        await self.delete(PUBLISHING_NAME)

    async def aclose(self) -> None:
        await self._client.aclose()

    def _key(self, path: str) -> str:
        return self._address.prefix + path

    async def _put_object(self, key: str, data: bytes, metadata: dict[str, str]) -> None:
        md5 = await asyncio.to_thread(_md5, data)
        with translated(self._address.uri(key)):
            await (await self._client.api()).put_object(
                Bucket=self._address.bucket, Key=key, Body=data, ContentMD5=md5, Metadata=metadata
            )

    async def _multipart(self, upload: Upload, reader: CheckedReader, progress: Progress) -> None:
        target = {"Bucket": self._address.bucket, "Key": self._key(upload.entry.path)}
        with translated(self._address.uri(target["Key"])):
            created = await (await self._client.api()).create_multipart_upload(
                **target, Metadata={_METADATA: upload.entry.sha256}
            )
        target["UploadId"] = created["UploadId"]
        try:
            parts = await self._parts(upload.entry.size, reader, target, progress)
            reader.finish()
            with translated(self._address.uri(target["Key"])):
                await (await self._client.api()).complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
        except BaseException as error:
            await self._abort(target, error)
            raise

    async def _parts(
        self, size: int, reader: CheckedReader, target: dict[str, str], progress: Progress
    ) -> list[dict[str, Any]]:
        """Send the parts side by side, read one after the other: the sha256 needs them in order."""
        part_bytes = max(PART_BYTES, -(-size // _MOST_PARTS))
        tags: dict[int, str] = {}

        async def send(number: int, data: bytes) -> None:
            with translated(self._address.uri(target["Key"])):
                answer = await (await self._client.api()).upload_part(
                    **target, PartNumber=number, Body=data, ContentMD5=await asyncio.to_thread(_md5, data)
                )
            tags[number] = answer["ETag"]
            progress(len(data))

        with ungrouped():
            async with asyncio.TaskGroup() as tasks:
                for number, start in enumerate(range(0, size, part_bytes), 1):
                    await self._slots.acquire()
                    try:
                        data = await asyncio.to_thread(reader.read, min(part_bytes, size - start))
                        sending = tasks.create_task(send(number, data))
                    except BaseException:
                        self._slots.release()
                        raise
                    # Not in `send`: a task cancelled before its first step never reaches its own `finally`.
                    sending.add_done_callback(lambda _: self._slots.release())
        return [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]

    async def _abort(self, target: dict[str, str], cause: BaseException) -> None:
        try:
            with translated(self._address.uri(target["Key"])):
                await (await self._client.api()).abort_multipart_upload(**target)
        except HoldfastError as error:
            cause.add_note(
                f"the unfinished upload {target['UploadId']} stays at the bucket ({error.message}); a lifecycle rule "
                "AbortIncompleteMultipartUpload removes such"
            )


def _md5(data: bytes) -> str:
    # For the server to check what arrived; the one checksum that every S3 server knows.
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")
