"""Open clients for one S3 location, and read what is small: listings and manifests.

Law: never reads a model's bytes. The credential chain is botocore's own; nothing here takes a key. Errors leave as
`HoldfastError`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.loaders import Loader, create_loader

from cached.contract.errors import Permanent
from cached.contract.manifest import MANIFEST_NAME, MAX_FILE_BYTES, MAX_MANIFEST_BYTES
from cached.sources.s3.address import S3Address
from cached.sources.s3.errors import bad_response, is_missing, translated
from cached.sources.s3.presigning import PROBE_KEY, Keys, Presigner
from cached.sources.s3.session import StrictSession

_CONNECT_TIMEOUT_S = 10
_PART_BYTES = 1024 * 1024
MAX_PAGES = 10_000  # some servers answer with pages of any size, and a lying one with no end
MAX_OBJECTS = 200_000  # about what a manifest can list; a bucket's root may hold any number


@dataclass(frozen=True, slots=True)
class S3Object:
    """One listed object: its whole key, size in bytes, ETag as an HTTP header carries it (in quotes), and its storage
    class where the listing tells."""

    key: str
    size: int
    etag: str
    storage_class: str = ""


@dataclass(slots=True)
class _Opened:
    """An open client, and its way to sign URLs once learned. `can_learn`: False where only botocore can sign."""

    session: AioSession
    context: AbstractAsyncContextManager[Any]
    client: Any
    presigner: Presigner | None = None
    can_learn: bool = True


class S3Client:
    """One aiobotocore client, opened at first use and closed by `aclose()`.

    `attempts`: how often botocore sends a request before the error reaches us (its `standard` retry mode).
    `connections`: the most it keeps open. `read_timeout_s`: how long a server may say nothing.
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
    def signed_headers(self) -> tuple[tuple[str, str], ...]:
        """The headers that a signed URL must be asked with."""
        payer = self.address.request_payer
        return (("x-amz-request-payer", payer),) if payer else ()

    async def api(self) -> Any:
        """The client itself; call it inside `translated()`."""
        return (await self._open()).client

    async def aclose(self) -> None:
        """Close the client's connections. Calling it again does nothing."""
        async with self._opening:
            opened, self._opened = self._opened, None
            if opened is not None:
                await opened.context.__aexit__(None, None, None)

    async def objects(self, prefix: str) -> list[S3Object]:
        """Every object under `prefix`, without the empty `…/` keys that consoles make for folders."""
        where = self.address.uri(prefix)
        found: list[S3Object] = []
        with translated(where):
            paginator = (await self.api()).get_paginator("list_objects_v2")
            number = 0
            async for page in paginator.paginate(Bucket=self.address.bucket, Prefix=prefix, **self.address.asking):
                number += 1
                found += listed(page, prefix, where)
                if len(found) > MAX_OBJECTS or number > MAX_PAGES:
                    raise Permanent(
                        "too_many_files",
                        f"{where}: expected at most {MAX_OBJECTS} objects on {MAX_PAGES} pages, found more",
                        "name the version's own prefix, not the whole bucket",
                    )
        return found

    async def manifest(self) -> bytes | None:
        """The bytes of the version's `holdfast.json`, of bounded size; None where there is none."""
        key = self.address.prefix + MANIFEST_NAME
        with translated(self.address.uri(key)):
            try:
                answer = await (await self.api()).get_object(Bucket=self.address.bucket, Key=key, **self.address.asking)
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
            data = bytearray()
            async with answer["Body"] as body:
                while len(data) <= MAX_MANIFEST_BYTES and (part := await body.read(_PART_BYTES)):
                    data += part
        if len(data) > MAX_MANIFEST_BYTES:
            raise Permanent(
                "invalid_manifest",
                f"{self.address.uri(key)}: more than the {MAX_MANIFEST_BYTES} bytes that are read",
                "publish the version again with `holdfast publish`",
            )
        if len(data) != answer.get("ContentLength", len(data)):
            raise bad_response(self.address.uri(key), f"{len(data)} bytes of {answer['ContentLength']}")
        return bytes(data)

    async def head(self, key: str, **more: str) -> dict[str, Any] | None:
        """The attributes of one object as HeadObject gives them; None where there is none. `more`: its parameters."""
        with translated(self.address.uri(key)):
            try:
                found: dict[str, Any] = await (await self.api()).head_object(
                    Bucket=self.address.bucket, Key=key, **self.address.asking, **more
                )
            except ClientError as error:
                if is_missing(error):
                    return None
                raise
            return found

    async def asked(self) -> tuple[str, ...]:
        """Who answers for a key, and as whom we ask: what the location, the environment and the profile come to.

        Without a session token an access key is one user's for long, and some servers give each user buckets of their
        own. Keys of a session change every hour and read the same: there the profile stands for the user.
        """
        with translated(self.address.uri(self.address.key)):
            opened = await self._open()
            keys = await self._keys_found(opened)
            user = keys.access_key if keys is not None and keys.token is None else ""
            profile = str(opened.session.get_config_variable("profile") or "")
            meta, style = opened.client.meta, opened.client.meta.config.s3 or {}
        return (
            *(str(meta.endpoint_url), str(meta.region_name), str(style.get("addressing_style", ""))),
            *(self.address.bucket, profile, str(self.address.anonymous), user),
        )

    async def presigned(self, key: str, version: str, lifetime_s: int) -> str:
        """A URL that gives an object, in its current or one named version, to whoever has it for `lifetime_s`."""
        with translated(self.address.uri(key)):
            opened = await self._open()
            if version:
                return await self._presigned_by_botocore(opened, key, lifetime_s, VersionId=version)
            presigner = opened.presigner or await self._learn(opened, lifetime_s)
            if presigner is None:
                return await self._presigned_by_botocore(opened, key, lifetime_s)
            return presigner.sign(key, await self._keys(opened), lifetime_s)

    async def _learn(self, opened: _Opened, lifetime_s: int) -> Presigner | None:
        """What botocore's way costs for each of thousands of files (0.2 ms of the event loop) is paid once."""
        async with self._learning:
            if opened.presigner is None and opened.can_learn:
                url = await self._presigned_by_botocore(opened, PROBE_KEY, lifetime_s)
                opened.presigner = Presigner.learn(url, await self._keys(opened), self.signed_headers)
                opened.can_learn = opened.presigner is not None
            return opened.presigner

    async def _presigned_by_botocore(self, opened: _Opened, key: str, lifetime_s: int, **more: str) -> str:
        parameters = {"Bucket": self.address.bucket, "Key": key, **self.address.asking, **more}
        url: str = await opened.client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=lifetime_s)
        return url

    async def _keys(self, opened: _Opened) -> Keys | None:
        """The credentials as they are now: botocore's chain renews those that are about to end."""
        keys = await self._keys_found(opened)
        if keys is None and not self.address.anonymous:
            raise NoCredentialsError
        return keys

    async def keys_end_in_s(self) -> float:
        """How long the credentials still sign what is accepted, in seconds: a signed URL ends with them."""
        with translated(self.address.uri(self.address.key)):
            opened = await self._open()
            credentials = None if self.address.anonymous else await opened.session.get_credentials()
        end = getattr(credentials, "_expiry_time", None)  # botocore's, where they are renewed; it has no other door
        return max(0.0, end.timestamp() - time.time()) if isinstance(end, datetime) else math.inf

    async def _keys_found(self, opened: _Opened) -> Keys | None:
        credentials = None if self.address.anonymous else await opened.session.get_credentials()
        if credentials is None:
            return None
        frozen = await credentials.get_frozen_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    async def _open(self) -> _Opened:
        async with self._opening:
            if self._opened is None:
                session = self._new_session()
                context = self._create(session)
                self._opened = _Opened(session, context, await context.__aenter__())
            return self._opened

    def _new_session(self) -> AioSession:
        session = AioSession(profile=self.address.profile)
        session.register_component("data_loader", _library())
        return session

    def _create(self, session: AioSession) -> AbstractAsyncContextManager[Any]:
        address = self.address
        config = AioConfig(
            # Not the default: without it botocore signs S3 URLs with version 2 wherever that is still accepted.
            signature_version=UNSIGNED if address.anonymous else "s3v4",
            s3={"addressing_style": address.addressing_style} if address.addressing_style else None,
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=self._read_timeout_s,
            http_session_cls=StrictSession,
            max_pool_connections=self._connections,
            retries={"mode": "standard", "total_max_attempts": self._attempts},
            # CRC trailers are unknown to many servers that speak S3; sha256 and Content-MD5 are what is checked here.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        context: AbstractAsyncContextManager[Any] = session.create_client(
            "s3", region_name=address.region, endpoint_url=address.endpoint_url, config=config
        )
        return context


@cache
def _library() -> Loader:
    """botocore's description of S3, read once: that takes a tenth of a second of the event loop, and every try at a
    version has a client of its own, so that credentials that were changed count at once."""
    return create_loader()


def listed(page: dict[str, Any], prefix: str, where: str) -> Iterator[S3Object]:
    """The objects of one page of a listing; raises `bad_response` for what no listing of `prefix` has."""
    for item in page.get("Contents", ()):
        key, size, etag = item.get("Key"), item.get("Size"), item.get("ETag", "")
        if not isinstance(key, str) or not key.startswith(prefix):
            raise bad_response(where, f"the key {str(key)[:200]!r} in a listing of {prefix!r}")
        if not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
            raise bad_response(where, f"the size {str(size)[:40]} of {key[:200]!r}")
        if not (key.endswith("/") and size == 0):
            yield S3Object(key, size, quoted(etag), str(item.get("StorageClass", "")))


def quoted(etag: str) -> str:
    """An ETag with its quotes, which rclone's listings leave out."""
    return etag if not etag or etag.endswith('"') else f'"{etag}"'
