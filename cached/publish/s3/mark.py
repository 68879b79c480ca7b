"""The object that holds a publish's mark in a bucket.

Law: writes under a condition where the store supports that; the age of an object is by the store's own clock.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from email.utils import parsedate_to_datetime

from botocore.exceptions import ClientError

from cached.publish.mark import MAX_MARK_BYTES
from cached.publish.object_mark import StoredMark
from cached.publish.s3.objects import S3Writer
from cached.sources.s3.client import S3Client, quoted
from cached.sources.s3.errors import is_missing, translate_errors


class S3MarkStore:
    """The object at `key`."""

    def __init__(self, client: S3Client, writer: S3Writer, key: str) -> None:
        self._client = client
        self._writer = writer
        self._key = key

    async def write(self, data: bytes, tag: str | None) -> None:
        """Write the object if it still has the ETag `tag`, or if there is none. Raises `PreconditionFailed`."""
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        await self._writer.put_if(self._key, data, **condition)

    async def delete(self) -> None:
        """Delete the object."""
        await self._writer.delete(self._key)

    def ignore_conditions(self) -> None:
        """Write without conditions from now on."""
        self._writer.conditional = False

    async def read(self) -> StoredMark | None:
        """Return the object with the mark."""
        address = self._client.address
        with translate_errors(address.uri(self._key)):
            try:
                answer = await (await self._client.api()).get_object(
                    Bucket=address.bucket, Key=self._key, **address.request_parameters
                )
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
            async with answer["Body"] as body:
                data = await body.read(MAX_MARK_BYTES)
            written = answer.get("LastModified")
            now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        age_s = None
        if isinstance(written, datetime) and now is not None:
            with contextlib.suppress(ValueError, TypeError):  # an invalid date
                age_s = (parsedate_to_datetime(now) - written).total_seconds()
        return StoredMark(data, quoted(answer.get("ETag", "")), age_s)
