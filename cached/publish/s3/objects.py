"""Write objects to S3, conditionally where the store supports that, and prove the stored bytes.

Law: memory is bounded. The response's ETag identifies the written object. A value that the client sent (metadata, or a
checksum that the server only repeats) is no proof: `rclone serve s3` returns any `x-amz-checksum-sha256` it was sent,
without the type that S3 adds.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from botocore.exceptions import ClientError

from cached.contract.errors import Transient
from cached.publish.destination import Stored
from cached.publish.object_mark import PreconditionFailed
from cached.sources.s3.client import S3Client, quoted
from cached.sources.s3.errors import bad_response, is_missing, translate_errors

_TAKEN = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
_SMALL_BYTES = 64 * 1024
_UNKNOWN = frozenset({400, 501})  # the responses of stores to a header that they do not implement
_READ_BYTES = 1024 * 1024
_ATTEMPTS = 5  # without a byte of progress in between
_WAIT_S = 1.0


class S3Writer:
    """The writer of one bucket's objects. `conditional`: False once the store is known to ignore conditions."""

    def __init__(self, client: S3Client) -> None:
        self._client = client
        self.conditional = True

    async def put(self, key: str, data: bytes, **more: Any) -> str:
        """Write an object; return its ETag. `more`: botocore's parameters."""
        with translate_errors(self._client.address.uri(key)):
            return await self._put(key, data, more)

    async def put_if(self, key: str, data: bytes, **condition: str) -> str:
        """Write an object if `IfMatch` or `IfNoneMatch` holds, else raise `PreconditionFailed`; return its ETag."""
        with translate_errors(self._client.address.uri(key)):
            if not self.conditional:
                return await self._put(key, data, {})
            try:
                return await self._put(key, data, condition)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _TAKEN or is_missing(error):
                    raise PreconditionFailed from error
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") not in _UNKNOWN:
                    raise
            written = await self._put(key, data, {})
            self.conditional = False
            return written

    async def delete(self, key: str) -> None:
        """Delete an object, if it exists."""
        address = self._client.address
        with translate_errors(address.uri(key)):
            await (await self._client.api()).delete_object(Bucket=address.bucket, Key=key, **address.request_parameters)

    async def _put(self, key: str, data: bytes, more: dict[str, Any]) -> str:
        address = self._client.address
        # A heartbeat is small, and must not wait for a thread while all threads hash files.
        digest = md5(data) if len(data) <= _SMALL_BYTES else await asyncio.to_thread(md5, data)
        answer = await (await self._client.api()).put_object(
            Bucket=address.bucket,
            Key=key,
            Body=data,
            ContentMD5=base64.b64encode(digest).decode("ascii"),
            **address.upload_parameters,
            **more,
        )
        return quoted(answer.get("ETag", ""))


def md5(data: bytes) -> bytes:
    """Return the MD5, with which the server checks the request: the only checksum that every S3 server supports."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def etag_of_whole(md5_digest: bytes) -> str:
    """Return the ETag of an object sent in one request, if it is not encrypted with a key of KMS or a client."""
    return f'"{md5_digest.hex()}"'


def etag_of_parts(md5_digests: list[bytes]) -> str:
    """Return the ETag of an object sent in parts, likewise."""
    return f'"{md5(b"".join(md5_digests)).hex()}-{len(md5_digests)}"'


async def read_sha256(client: S3Client, key: str) -> tuple[str, Stored] | None:
    """Return the sha256 of an object's bytes, computed by S3 over the whole object or from the bytes read, and the
    object; None if there is no such object."""
    found = await client.head(key, ChecksumMode="ENABLED")
    if found is None:
        return None
    stored = Stored(int(found.get("ContentLength", 0)), quoted(found.get("ETag", "")))
    return _own_checksum(found) or await _read(client, key, stored), stored


def _own_checksum(found: dict[str, Any]) -> str | None:
    """Return the checksum of type FULL_OBJECT: a composite one is over the checksums of parts."""
    if found.get("ChecksumType") != "FULL_OBJECT":
        return None
    try:
        digest = base64.b64decode(found.get("ChecksumSHA256", ""), validate=True)
    except (binascii.Error, ValueError):
        return None
    return digest.hex() if len(digest) == hashlib.sha256().digest_size else None


async def _read(client: S3Client, key: str, stored: Stored) -> str:
    sha, done, failures = hashlib.sha256(), 0, 0
    while done < stored.size:
        before = done
        try:
            async for part in _parts(client, key, stored, done):
                await asyncio.to_thread(sha.update, part)
                done += len(part)
        except Transient:
            failures = 0 if done > before else failures + 1
            if failures == _ATTEMPTS:
                raise
            await asyncio.sleep(_WAIT_S)
    return sha.hexdigest()


async def _parts(client: S3Client, key: str, stored: Stored, start: int) -> AsyncIterator[bytes]:
    """Yield the bytes from `start`, all of one object: it is requested by its ETag."""
    address = client.address
    asked: dict[str, str] = {"IfMatch": stored.tag} if stored.tag else {}
    if start:
        asked["Range"] = f"bytes={start}-"
    left = stored.size - start
    with translate_errors(address.uri(key)):
        answer = await (await client.api()).get_object(
            Bucket=address.bucket, Key=key, **address.request_parameters, **asked
        )
        async with answer["Body"] as body:
            while left > 0 and (part := await body.read(min(_READ_BYTES, left))):
                left -= len(part)
                yield part
    if left:
        raise bad_response(address.uri(key), f"an object that ends {left} bytes early")
