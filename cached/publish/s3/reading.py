"""The sha256 of a stored object: S3's own if it computed one over the whole object, else that of the bytes read.

Law: reads only, in bounded memory. A value that the client sent (metadata, or a checksum that the server only repeats)
is no proof: `rclone serve s3` returns any `x-amz-checksum-sha256` it was sent, without the type that S3 adds.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from cached.contract.errors import Transient
from cached.publish.destination import Stored
from cached.sources.s3.client import S3Client, quoted
from cached.sources.s3.errors import bad_response, translate_errors

_READ_BYTES = 1024 * 1024
_ATTEMPTS = 5  # without a byte of progress in between
_WAIT_S = 1.0


async def stored_sha256(client: S3Client, key: str) -> tuple[str, Stored] | None:
    """Return the sha256 of an object's bytes and the object, None if there is no such object."""
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
