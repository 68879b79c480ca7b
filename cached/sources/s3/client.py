"""The client of one S3 location, which reads listings and manifests.

Law: never reads a model's bytes. The credential chain is botocore's own; nothing here takes a key. Every error is a
`HoldfastError`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.loaders import create_loader
from botocore.utils import parse_timestamp

from cached.contract.errors import Permanent
from cached.contract.manifest import MANIFEST_NAME, MAX_FILE_BYTES, MAX_MANIFEST_BYTES
from cached.sources.objects import check_bounds
from cached.sources.s3.address import S3Address
from cached.sources.s3.errors import bad_response, is_missing, is_not_modified, translate_errors
from cached.sources.s3.presigning import PROBE_KEY, Presigner, SigningKeys
from cached.sources.s3.session import StrictSession
from cached.sources.s3.sums import FULL_OBJECT
from cached.transport.connection.resolver import BoundedResolver
from cached.transport.target import Headers

_CONNECT_TIMEOUT_S = 4  # of each of two attempts: an unreachable server is told within 10 s
_PART_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class S3Object:
    """One listed object: its full key, size in bytes, ETag in quotes as in HTTP, its storage class if listed, and
    whether S3 has a sum of the whole object."""

    key: str
    size: int
    etag: str
    storage_class: str = ""
    has_sum: bool = False


@dataclass(frozen=True, slots=True)
class S3SmallObject:
    """The bytes of a small object, and its ETag if that is strong."""

    body: bytes
    etag: str | None


@dataclass(slots=True)
class _Opened:
    """An open client, and its presigner once learned. `can_learn`: False if only botocore can sign."""

    session: AioSession
    client: Any
    presigner: Presigner | None = None
    can_learn: bool = True


class S3Client:
    """One aiobotocore client, opened at first use and closed by `aclose()`.

    `attempts`: how often botocore sends a request before it raises the error (its `standard` retry mode).
    `connections`: the maximum of open ones. `read_timeout_s`: the maximum silence of a server.
    """

    def __init__(self, address: S3Address, *, attempts: int, connections: int, read_timeout_s: float) -> None:
        self.address = address
        self._read_timeout_s = read_timeout_s
        self._attempts = attempts
        self._connections = connections
        self._opening = asyncio.Lock()
        self._learning = asyncio.Lock()
        self._opened: _Opened | None = None

    @property
    def signed_headers(self) -> Headers:
        """The headers that a request for a signed URL needs."""
        payer = self.address.request_payer
        return (("x-amz-request-payer", payer),) if payer else ()

    async def api(self) -> Any:
        """Return the client itself; call this inside `translate_errors`."""
        return (await self._open()).client

    async def aclose(self) -> None:
        """Close the client's connections. Idempotent."""
        async with self._opening:
            opened, self._opened = self._opened, None
            if opened is not None:
                await opened.client.close()

    async def objects(self, prefix: str) -> list[S3Object]:
        """Return every object under `prefix`, without the empty `…/` keys that consoles create for folders. Raises
        `HoldfastError`, also `Permanent` (`too_many_files`)."""
        where = self.address.uri(prefix)
        found: list[S3Object] = []
        with translate_errors(where):
            paginator = (await self.api()).get_paginator("list_objects_v2")
            number = 0
            async for page in paginator.paginate(
                Bucket=self.address.bucket, Prefix=prefix, **self.address.request_parameters
            ):
                number += 1
                found += listed(page, prefix, where)
                check_bounds(where, len(found), number)
        return found

    async def manifest(self) -> S3SmallObject | None:
        """Return the version's `holdfast.json`, of bounded size; None without one."""
        key = self.address.prefix + MANIFEST_NAME
        try:
            return await self.read_small(key, MAX_MANIFEST_BYTES)
        except Permanent as error:
            if error.code != "too_large":
                raise
            remedy = "publish the version again with `holdfast publish`"
            raise Permanent("invalid_manifest", error.message, remedy) from error

    async def read_small(self, key: str, limit_bytes: int) -> S3SmallObject | None:
        """Return an object of at most `limit_bytes`, None if there is none. Raises `Permanent` (`too_large`) too."""
        with translate_errors(self.address.uri(key)):
            try:
                answer = await (await self.api()).get_object(
                    Bucket=self.address.bucket, Key=key, **self.address.request_parameters
                )
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
            data = bytearray()
            async with answer["Body"] as body:
                while len(data) <= limit_bytes and (part := await body.read(_PART_BYTES)):
                    data += part
        if len(data) > limit_bytes:
            raise Permanent(
                "too_large",
                f"{self.address.uri(key)}: more than the {limit_bytes} bytes that are read",
                "check that it is what its name says",
            )
        if len(data) != answer.get("ContentLength", len(data)):
            raise bad_response(self.address.uri(key), f"{len(data)} bytes of {answer['ContentLength']}")
        return S3SmallObject(bytes(data), _strong(answer.get("ETag")))

    async def has_etag(self, key: str, etag: str) -> bool:
        """Return whether the object still has this ETag, by a conditional HeadObject."""
        with translate_errors(self.address.uri(key)):
            try:
                await (await self.api()).head_object(
                    Bucket=self.address.bucket, Key=key, IfNoneMatch=etag, **self.address.request_parameters
                )
            except ClientError as error:
                if is_missing(error):
                    return False
                if is_not_modified(error):
                    return True
                raise
            return False  # changed, or a store that takes no conditions: a listing tells

    async def head(self, key: str, **more: str) -> dict[str, Any] | None:
        """Return the result of HeadObject with the parameters `more`, None if the object is missing."""
        with translate_errors(self.address.uri(key)):
            try:
                found: dict[str, Any] = await (await self.api()).head_object(
                    Bucket=self.address.bucket, Key=key, **self.address.request_parameters, **more
                )
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
            return found

    async def describe_identity(self) -> tuple[str, ...]:
        """Return the identity of the server and the user, from location, environment and profile.

        An access key without a session token belongs to one user for long, and some servers give each user buckets of
        their own. Session keys change every hour and read the same: the profile identifies the user then.
        """
        with translate_errors(self.address.uri(self.address.key)):
            opened = await self._open()
            keys = await self._keys(opened)
            user = keys.access_key if keys is not None and keys.token is None else ""
            profile = str(opened.session.get_config_variable("profile") or "")
            meta, style = opened.client.meta, opened.client.meta.config.s3 or {}
        return (
            *(str(meta.endpoint_url), str(meta.region_name), str(style.get("addressing_style", ""))),
            *(self.address.bucket, profile, str(self.address.anonymous), user),
        )

    async def presign(self, key: str, version: str, lifetime_s: int) -> str:
        """Return a URL that reads an object, the current or one named version, without credentials for `lifetime_s`."""
        with translate_errors(self.address.uri(key)):
            opened = await self._open()
            if version:
                return await self._presigned_by_botocore(opened, key, lifetime_s, VersionId=version)
            presigner = opened.presigner or await self._learn(opened, lifetime_s)
            if presigner is None:
                return await self._presigned_by_botocore(opened, key, lifetime_s)
            return presigner.sign(key, await self._keys(opened), lifetime_s)

    async def _learn(self, opened: _Opened, lifetime_s: int) -> Presigner | None:
        """Learn once, because botocore takes 0.2 ms of the event loop for each of thousands of files."""
        async with self._learning:
            if opened.presigner is None and opened.can_learn:
                url = await self._presigned_by_botocore(opened, PROBE_KEY, lifetime_s)
                opened.presigner = Presigner.learn(url, await self._keys(opened), self.signed_headers)
                opened.can_learn = opened.presigner is not None
            return opened.presigner

    async def _presigned_by_botocore(self, opened: _Opened, key: str, lifetime_s: int, **more: str) -> str:
        parameters = {"Bucket": self.address.bucket, "Key": key, **self.address.request_parameters, **more}
        url: str = await opened.client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=lifetime_s)
        return url

    async def _keys(self, opened: _Opened) -> SigningKeys | None:
        """Return the current credentials, None for anonymous requests: botocore's chain renews those soon to expire."""
        if self.address.anonymous:
            return None
        credentials = await opened.session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        frozen = await credentials.get_frozen_credentials()
        return SigningKeys(frozen.access_key, frozen.secret_key, frozen.token)

    async def keys_end_in_s(self) -> float:
        """Return how long the credentials remain valid, in seconds: a signed URL expires with them."""
        with translate_errors(self.address.uri(self.address.key)):
            opened = await self._open()
            credentials = None if self.address.anonymous else await opened.session.get_credentials()
        end = getattr(credentials, "_expiry_time", None)  # renewed credentials have it, and no public attribute
        return max(0.0, end.timestamp() - time.time()) if isinstance(end, datetime) else math.inf

    async def _open(self) -> _Opened:
        async with self._opening:
            if self._opened is None:
                session = AioSession(profile=self.address.profile)
                session.register_component("data_loader", _load_library())
                session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_read_time)
                creation = session.create_client(
                    "s3",
                    region_name=self.address.region,
                    endpoint_url=self.address.endpoint_url,
                    config=self._configuration(),
                )
                self._opened = _Opened(session, await creation.__aenter__())
            return self._opened

    def _configuration(self) -> AioConfig:
        style = self.address.addressing_style
        return AioConfig(
            # Not the default: without it botocore signs S3 URLs with version 2 wherever that is still accepted.
            signature_version=UNSIGNED if self.address.anonymous else "s3v4",
            s3={"addressing_style": style} if style else None,
            connect_timeout=_CONNECT_TIMEOUT_S,
            connector_args={"resolver": BoundedResolver(_CONNECT_TIMEOUT_S)},
            read_timeout=self._read_timeout_s,
            http_session_cls=StrictSession,
            max_pool_connections=self._connections,
            retries={"mode": "standard", "total_max_attempts": self._attempts},
            # Many servers that speak S3 do not know CRC trailers; sha256 and Content-MD5 are checked here.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )


# botocore's description of S3, read once: reading takes a tenth of a second of the event loop, and every attempt at a
# version opens its own client, so that changed credentials apply at once.
_load_library = cache(create_loader)


def _read_time(value: Any) -> Any:
    """Return a time in an answer. botocore's own parser takes 45 ms for the thousand of a page, more than all of the
    rest, and reads the forms that ISO 8601 does not name."""
    if isinstance(value, str) and "T" in value:
        with suppress(ValueError):
            return datetime.fromisoformat(value)
    return parse_timestamp(value)


def listed(page: dict[str, Any], prefix: str, where: str) -> Iterator[S3Object]:
    """Yield the objects of one page. Raises `Transient` (`bad_response`) if it is no listing of `prefix`."""
    for item in page.get("Contents", ()):
        key, size, etag = item.get("Key"), item.get("Size"), item.get("ETag", "")
        if not isinstance(key, str) or not key.startswith(prefix):
            raise bad_response(where, f"the key {str(key)[:200]!r} in a listing of {prefix!r}")
        if not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
            raise bad_response(where, f"the size {str(size)[:40]} of {key[:200]!r}")
        if not (key.endswith("/") and size == 0):
            storage_class, has_sum = str(item.get("StorageClass", "")), item.get("ChecksumType") == FULL_OBJECT
            yield S3Object(key, size, quoted(etag), storage_class, has_sum)


def _strong(etag: str | None) -> str | None:
    return quoted(etag) if etag and not etag.startswith("W/") else None


def quoted(etag: str) -> str:
    """Return an ETag with quotes, which rclone's listings omit."""
    return etag if not etag or etag.endswith('"') else f'"{etag}"'
