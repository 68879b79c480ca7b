"""Write small objects to S3, conditionally if the store supports conditions.

Law: the response's ETag identifies the written object. A failed condition raises `PreconditionFailed`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any

from botocore.exceptions import ClientError

from cached.sources.s3.client import S3Client, quoted
from cached.sources.s3.errors import is_missing, translate_errors

_TAKEN = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict"})
_SMALL_BYTES = 64 * 1024
_UNKNOWN = frozenset({400, 501})  # the responses of stores to a header that they do not implement


class PreconditionFailed(Exception):
    """Control flow: another writer was first."""


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

    async def _put(self, key: str, data: bytes, more: dict[str, Any]) -> str:
        address = self._client.address
        answer = await (await self._client.api()).put_object(
            Bucket=address.bucket,
            Key=key,
            Body=data,
            ContentMD5=base64.b64encode(await self._md5(data)).decode("ascii"),
            **address.upload_parameters,
            **more,
        )
        return quoted(answer.get("ETag", ""))

    async def _md5(self, data: bytes) -> bytes:
        # A heartbeat is small, and must not wait for a thread while all threads hash files.
        return md5(data) if len(data) <= _SMALL_BYTES else await asyncio.to_thread(md5, data)


def md5(data: bytes) -> bytes:
    """Return the MD5, with which the server checks the request: the only checksum that every S3 server supports."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def etag_of_whole(md5_digest: bytes) -> str:
    """Return the ETag of an object sent in one request, if it is not encrypted with a key of KMS or a client."""
    return f'"{md5_digest.hex()}"'


def etag_of_parts(md5_digests: list[bytes]) -> str:
    """Return the ETag of an object sent in parts, likewise."""
    return f'"{md5(b"".join(md5_digests)).hex()}-{len(md5_digests)}"'
