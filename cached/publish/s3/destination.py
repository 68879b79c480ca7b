"""Publish to S3: parallel parts, each checked by the server; an object appears only when it is complete.

Law: memory is bounded by `requests` parts; a failed upload is aborted, so that invisible parts cost nothing. The ETag
proves the stored bytes, if it is the MD5 of the object (or of its parts' MD5s); else, as for objects encrypted with
KMS, the object is read back. Every object has its sha256 as metadata (`x-amz-meta-holdfast-sha256`), for people: it is
what was sent, and proves nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from botocore.exceptions import ClientError

from cached.contract.errors import HoldfastError, Permanent, Transient
from cached.contract.manifest import (
    CHAINS_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PUBLISHING_NAME,
    REPLACED_NAME,
    FileEntry,
)
from cached.peers.chain_file import MAX_CHAIN_FILE_BYTES
from cached.publish.destination import PART_BYTES, Progress, Say, Stored, Upload
from cached.publish.mark import Mark, another_publisher
from cached.publish.object_mark import ObjectMark, PreconditionFailed
from cached.publish.parallel import ungrouped
from cached.publish.reading import CheckedReader, wrong_bytes
from cached.publish.s3.mark import S3MarkStore
from cached.publish.s3.objects import S3Writer, etag_of_parts, etag_of_whole, md5, read_sha256
from cached.sources.s3.address import S3Address
from cached.sources.s3.client import S3Client, quoted
from cached.sources.s3.errors import translate_errors

_METADATA = "holdfast-sha256"
_MOST_PARTS = 10_000  # S3's limit
_ATTEMPTS = 5  # a publish is not retried elsewhere
_READ_TIMEOUT_S = 60
_RULE = "a lifecycle rule AbortIncompleteMultipartUpload removes such"


class S3Destination:
    """A `Destination` under a prefix; at most `requests` requests at once."""

    def __init__(self, uri: str, requests: int) -> None:
        self._address = S3Address.parse(uri)
        self._client = S3Client(
            self._address, attempts=_ATTEMPTS, connections=requests + 1, read_timeout_s=_READ_TIMEOUT_S
        )
        self._writer = S3Writer(self._client)
        self._mark = ObjectMark(
            S3MarkStore(self._client, self._writer, self._key(PUBLISHING_NAME)), self._address.display
        )
        self._slots = asyncio.Semaphore(requests)
        self._is_marked = False  # as last listed
        self._wanted: frozenset[str] = frozenset()  # the paths that were asked for then

    @property
    def display(self) -> str:
        return self._address.display

    async def read_manifest(self) -> bytes | None:
        found = await self._client.manifest()
        return None if found is None else found.body

    async def list_files(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        prefix = self._address.prefix
        wanted = self._wanted = frozenset(file.path for file in files)
        found = {item.key[len(prefix) :]: item for item in await self._client.objects(prefix)}
        self._is_marked = PUBLISHING_NAME in found
        return {path: Stored(item.size, item.etag) for path, item in found.items() if path in wanted}

    async def vouches_for(self, upload: Upload, stored: Stored) -> bool:
        """Compare the ETag with the local file's; read an object whose ETag is no MD5."""
        async with self._slots:
            if stored.tag in await asyncio.to_thread(_etags, upload):
                return True
            found = await self._client.head(self._key(upload.entry.path))
            if found is None or not _is_encrypted(found):
                return False
            checked = await read_sha256(self._client, self._key(upload.entry.path))
            return checked == (upload.entry.sha256, stored)

    async def get_sha256(self, path: str) -> str | None:
        async with self._slots:
            found = await read_sha256(self._client, self._key(path))
        return None if found is None else found[0]

    keeps_chains = True

    async def read_chains(self) -> bytes | None:
        found = await self._client.read_small(self._key(CHAINS_NAME), MAX_CHAIN_FILE_BYTES)
        return None if found is None else found.body

    async def write_chains(self, data: bytes) -> None:
        await self._writer.put(self._key(CHAINS_NAME), data)

    async def claim(self, mark: Mark, say: Say) -> None:
        await self._mark.claim(mark, say)
        if self._is_marked:
            await self._abort_left(say)

    async def is_marked(self) -> bool:
        return self._is_marked

    async def keep_claim(self) -> None:
        await self._mark.keep()

    async def read_replaced(self) -> bytes | None:
        found = await self._client.read_small(self._key(REPLACED_NAME), MAX_MANIFEST_BYTES)
        return None if found is None else found.body

    async def keep_replaced(self, manifest: bytes) -> None:
        await self._writer.put(self._key(REPLACED_NAME), manifest)

    async def withdraw(self) -> None:
        await self.delete(MANIFEST_NAME)

    async def put(self, upload: Upload, progress: Progress) -> Stored:
        with await asyncio.to_thread(CheckedReader, upload) as reader:
            if upload.entry.size > PART_BYTES:
                return await self._multipart(upload, reader, progress)
            async with self._slots:
                data = await asyncio.to_thread(reader.read, upload.entry.size)
                reader.finish()
                tag = await self._writer.put(
                    self._key(upload.entry.path), data, Metadata={_METADATA: upload.entry.sha256}
                )
                progress(len(data))
                if tag == etag_of_whole(md5(data)):
                    return Stored(len(data), tag)
                return await self._read_back(upload)

    async def seal(self, manifest: bytes) -> None:
        try:
            tag = await self._writer.put_if(self._key(MANIFEST_NAME), manifest, IfNoneMatch="*")
        except PreconditionFailed as error:
            if await self.read_manifest() == manifest:  # our own request, sent twice
                return
            raise another_publisher(self.display, None) from error
        if tag != etag_of_whole(md5(manifest)) and (found := await self.read_manifest()) != manifest:
            sent, stored = (hashlib.sha256(data or b"").hexdigest() for data in (manifest, found))
            raise wrong_bytes(self._address.uri(self._key(MANIFEST_NAME)), sent, stored)

    async def delete(self, path: str) -> None:
        await self._writer.delete(self._key(path))

    async def unmark(self) -> None:
        await self._mark.remove()

    async def give_up(self) -> None:
        await self._mark.give_up()

    async def aclose(self) -> None:
        await self._client.aclose()

    def _key(self, path: str) -> str:
        return self._address.prefix + path

    async def _read_back(self, upload: Upload) -> Stored:
        key = self._key(upload.entry.path)
        found = await read_sha256(self._client, key)
        if found is None:
            raise Permanent("not_found", f"{self._address.uri(key)}: gone right after it was sent", "publish again")
        if found[0] != upload.entry.sha256:
            raise wrong_bytes(self._address.uri(key), upload.entry.sha256, found[0])
        return found[1]

    async def _multipart(self, upload: Upload, reader: CheckedReader, progress: Progress) -> Stored:
        key = self._key(upload.entry.path)
        target = {"Bucket": self._address.bucket, "Key": key, **self._address.request_parameters}
        with translate_errors(self._address.uri(key)):
            created = await (await self._client.api()).create_multipart_upload(
                **target | self._address.upload_parameters, Metadata={_METADATA: upload.entry.sha256}
            )
        target["UploadId"] = created["UploadId"]
        try:
            parts, sums = await self._parts(upload.entry.size, reader, target, progress)
            reader.finish()
            await self._complete(target, parts, sums)
        except BaseException as error:
            await self._abort(target, error)
            raise
        async with self._slots:
            found = await self._client.head(key)  # some servers list another ETag than the one in the response
            if found is not None and quoted(found.get("ETag", "")) == etag_of_parts(sums):
                return Stored(int(found.get("ContentLength", -1)), quoted(found["ETag"]))
            return await self._read_back(upload)

    async def _complete(self, target: dict[str, str], parts: list[dict[str, Any]], sums: list[bytes]) -> None:
        """Let the object appear. It may be sent twice: without the upload, the ETag tells whose object is there."""
        where = self._address.uri(target["Key"])
        with translate_errors(where):
            try:
                await (await self._client.api()).complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
            except ClientError as error:
                if not _is_gone(error):
                    raise
                found = await self._client.head(target["Key"])
                if found is None or quoted(found.get("ETag", "")) != etag_of_parts(sums):
                    problem = f"{where}: the store has no such upload any more: it was aborted, or forgotten"
                    raise Transient(
                        "upload_ended", problem, "see whether a rule aborts uploads, and publish again"
                    ) from error

    async def _parts(
        self, size: int, reader: CheckedReader, target: dict[str, str], progress: Progress
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Send the parts in parallel, but read them in order, for the sha256; return their ETags and MD5s."""
        tags: dict[int, str] = {}
        sums: dict[int, bytes] = {}

        async def send(number: int, data: bytes) -> None:
            sums[number] = await asyncio.to_thread(md5, data)
            with translate_errors(self._address.uri(target["Key"])):
                answer = await (await self._client.api()).upload_part(
                    **target, PartNumber=number, Body=data, ContentMD5=base64.b64encode(sums[number]).decode("ascii")
                )
            tags[number] = answer["ETag"]
            progress(len(data))

        part_bytes = _part_bytes(size)
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
        return [{"PartNumber": n, "ETag": tags[n]} for n in sorted(tags)], [sums[n] for n in sorted(sums)]

    async def _abort_left(self, say: Say) -> None:
        """Abort the uploads of this version's files that a dead publisher left: their parts are kept, and paid for. Of
        more than a thousand the rest stays, as where the role may not do it."""
        prefix, common = self._address.prefix, {"Bucket": self._address.bucket, **self._address.request_parameters}
        try:
            with translate_errors(self.display):
                listed = await (await self._client.api()).list_multipart_uploads(**common, Prefix=prefix)
            for each in listed.get("Uploads", ()):
                if each["Key"][len(prefix) :] in self._wanted:
                    await self._end_upload({**common, "Key": each["Key"], "UploadId": each["UploadId"]})
        except HoldfastError as error:
            say(f"unfinished uploads of that publish may stay at the bucket ({error.message}); {_RULE}")

    async def _end_upload(self, target: dict[str, str]) -> None:
        with translate_errors(self._address.uri(target["Key"])):
            try:
                await (await self._client.api()).abort_multipart_upload(**target)
            except ClientError as error:
                if not _is_gone(error):
                    raise

    async def _abort(self, target: dict[str, str], cause: BaseException) -> None:
        try:
            await self._end_upload(target)
        except HoldfastError as error:
            cause.add_note(f"the unfinished upload {target['UploadId']} stays at the bucket ({error.message}); {_RULE}")


def _is_gone(error: ClientError) -> bool:
    """Return whether the store has no such upload: it was completed, aborted or forgotten."""
    return bool(error.response.get("Error", {}).get("Code") == "NoSuchUpload")


def _part_bytes(size: int) -> int:
    return max(PART_BYTES, -(-size // _MOST_PARTS))


def _etags(upload: Upload) -> set[str]:
    """Return the possible ETags of an unencrypted object with this file's bytes: sent whole, or in `_part_bytes`."""
    whole, sums = hashlib.md5(usedforsecurity=False), []
    with CheckedReader(upload) as reader:
        for part in reader.read_parts(_part_bytes(upload.entry.size)):
            whole.update(part)
            sums.append(md5(part))
    return {etag_of_whole(whole.digest()), etag_of_parts(sums)}


def _is_encrypted(found: dict[str, Any]) -> bool:
    """Return whether an object's ETag is no MD5 because of its encryption."""
    return str(found.get("ServerSideEncryption", "")).startswith("aws:kms") or "SSECustomerAlgorithm" in found
