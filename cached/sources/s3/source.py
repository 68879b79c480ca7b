"""Versions in S3 and compatible servers; `cached.sources.s3.address` documents the location's parameters.

Law: lists, heads and signs; never reads a model's bytes and never writes. An ETag shows a change of an object; it never
counts as a checksum, as it is none for multipart and encrypted objects. The sums that S3 keeps count where they are of
the whole object (`sums.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any

from cached.contract.errors import HoldfastError, Permanent
from cached.contract.manifest import MANIFEST_NAME, MAX_FILE_BYTES, PUBLISHING_NAME
from cached.core.listing import Listing, RemoteFile, WeakValidators, bad_name, is_reserved
from cached.sources.base import identity_of
from cached.sources.manifests import list_published, read_manifest, unfinished_publish
from cached.sources.s3.address import S3Address
from cached.sources.s3.archive import archived, may_be_archived
from cached.sources.s3.client import S3Client, S3Object, quoted
from cached.sources.s3.errors import bad_response
from cached.sources.s3.sums import find_sums
from cached.transport.target import HttpTarget, Target

# A signed URL also expires with the credentials that signed it: the reader asks for a fresh one after a 403.
_URL_LIFETIME_S = 12 * 3600
_ATTEMPTS = 2  # the fetch queue retries with its own backoff; this saves a long listing from one failure
_CONNECTIONS = 10
_MAX_SUMMED = 256  # objects whose sums are asked for, one request each


class S3Source:
    """A `Source` over a prefix, or a single object."""

    kind = "s3"

    def __init__(self, uri: str, read_timeout_s: float) -> None:
        """`read_timeout_s`: the maximum silence of the server. Raises `Permanent` (`bad_source`)."""
        self._address = S3Address.parse(uri)
        self._client = S3Client(
            self._address, attempts=_ATTEMPTS, connections=_CONNECTIONS, read_timeout_s=read_timeout_s
        )

    @property
    def display(self) -> str:
        return self._address.display

    async def resolve(self) -> Listing:
        """List the version from `holdfast.json`, else the prefix, else as the single object with exactly this key."""
        data = await self._client.manifest()
        if data is not None:
            where = self._address.uri(self._address.prefix + MANIFEST_NAME)
            manifest = read_manifest(data.body, where)
            return list_published(manifest, self._address.prefix, await self._identity(), data.etag)
        files = await self._list()
        if not files and self._address.key and not self._address.key.endswith("/"):
            files = await self._single()
        if not files:
            prefix = self._address.uri(self._address.prefix)
            raise Permanent(
                "not_found",
                f"expected {prefix}{MANIFEST_NAME}, objects under {prefix}, or one object of that name; found none",
                "check the bucket, the prefix and endpoint_url",
            )
        return Listing(files, await self._identity())

    async def find(self, paths: Sequence[str]) -> Listing:
        """Describe named objects below the prefix by HeadObject. Raises as `Describing.find` says."""
        slots = asyncio.Semaphore(_CONNECTIONS)

        async def head(path: str) -> RemoteFile:
            key = self._address.prefix + path
            problem: HoldfastError | None = bad_name(self.display, path)
            if problem is None:
                async with slots:
                    try:
                        found = await self._object(key, path)
                    except HoldfastError as error:
                        return RemoteFile(path, key, None, problem=error)
                if found is not None:
                    return found
                problem = Permanent("not_found", f"{self._address.uri(key)}: there is no such object", "check the key")
            return RemoteFile(path, key, None, problem=problem)

        return Listing(tuple(await asyncio.gather(*map(head, paths))), await self._identity())

    async def is_current(self, tag: str) -> bool:
        """Return whether `holdfast.json` still has the ETag `tag`."""
        return await self._client.has_etag(self._address.prefix + MANIFEST_NAME, tag)

    async def locate(self, file: RemoteFile) -> Target:
        """Sign a GET of the listed object: with `If-Match`, or for its version if the bucket keeps versions."""
        etag, _, version = file.validator.partition(" ")
        url = await self._client.presign(file.key, version or file.object_version, _URL_LIFETIME_S)
        return HttpTarget(
            url,
            self._client.signed_headers,
            if_match=etag or None,
            stored_bytes=file.size,
            weak_validators=file.weak_validators,
            lifetime_s=min(_URL_LIFETIME_S, await self._client.keys_end_in_s()),
        )

    async def aclose(self) -> None:
        """Close the client."""
        await self._client.aclose()

    async def _identity(self) -> str:
        return identity_of(self.kind, *await self._client.describe_identity())

    async def _list(self) -> tuple[RemoteFile, ...]:
        objects = await self._client.objects(self._address.prefix)
        files, archive = await asyncio.to_thread(self._read, objects)  # half a second for 100,000 objects
        problems = await self._problems(archive)
        if problems:
            files = tuple(replace(file, problem=problems.get(file.key)) for file in files)
        summed = {item.key for item in objects if item.has_sum}
        if not 0 < len(summed) <= _MAX_SUMMED:  # a request for each: many files cost more than their listing
            return files
        return await self._with_sums(files, summed)

    async def _with_sums(self, files: Sequence[RemoteFile], summed: Set[str]) -> tuple[RemoteFile, ...]:
        """Add the sums and versions of the objects that have a sum. One that cannot be described stays as listed."""
        slots = asyncio.Semaphore(_CONNECTIONS)

        async def describe(file: RemoteFile) -> RemoteFile:
            if file.key not in summed or file.problem is not None:
                return file
            async with slots:
                try:
                    found = await self._client.head(file.key, ChecksumMode="ENABLED")
                except HoldfastError:
                    return file  # its bytes may be had nevertheless, else they say why not
            if found is None or quoted(found.get("ETag", "")) != file.validator:
                return file  # replaced in this moment: `If-Match` finds that
            return _with_sums(file, found)

        return tuple(await asyncio.gather(*map(describe, files)))

    def _read(self, objects: Sequence[S3Object]) -> tuple[tuple[RemoteFile, ...], list[str]]:
        """Return the files of a listing by path, and the keys of those that may be archived."""
        prefix = self._address.prefix
        files: list[RemoteFile] = []
        archive: list[str] = []
        for item in objects:
            path = item.key[len(prefix) :]
            if path in (PUBLISHING_NAME, MANIFEST_NAME):
                raise unfinished_publish(self._address.uri(item.key))
            if not is_reserved(path):
                files.append(_remote_file(path, item.key, item.size, item.etag, None))
                if may_be_archived(item.storage_class):
                    archive.append(item.key)
        return tuple(sorted(files, key=lambda file: file.path)), archive

    async def _problems(self, keys: Sequence[str]) -> dict[str, HoldfastError]:
        """Return the errors by key of objects in an archive's storage class, unless a restored copy is readable."""
        slots = asyncio.Semaphore(_CONNECTIONS)
        found: dict[str, HoldfastError] = {}

        async def check(key: str) -> None:
            async with slots:
                try:
                    problem = archived(self._address.uri(key), await self._client.head(key) or {})
                except HoldfastError as error:  # of a file that may not be chosen
                    problem = error
            if problem is not None:
                found[key] = problem

        async with asyncio.TaskGroup() as tasks:
            for key in keys:
                tasks.create_task(check(key))
        return found

    async def _single(self) -> tuple[RemoteFile, ...]:
        key = self._address.key
        file = await self._object(key, key.rpartition("/")[2])
        return () if file is None else (file,)

    async def _object(self, key: str, path: str) -> RemoteFile | None:
        """Return one object as HeadObject describes it, None if there is none."""
        found = await self._client.head(key, ChecksumMode="ENABLED")
        if found is None:
            return None
        size = found.get("ContentLength")
        if not isinstance(size, int) or not 0 <= size <= MAX_FILE_BYTES:
            raise bad_response(self._address.uri(key), f"the size {str(size)[:40]}")
        problem = archived(self._address.uri(key), found)
        file = _remote_file(path, key, size, quoted(found.get("ETag", "")), found.get("VersionId"))
        return replace(_with_sums(file, found), problem=problem)


def _with_sums(file: RemoteFile, found: dict[str, Any]) -> RemoteFile:
    """Add what HeadObject vouches for, and the version that it described."""
    sha256, sums = find_sums(found)
    version = str(found.get("VersionId") or "null")
    return replace(file, sha256=sha256, sums=sums, object_version="" if version == "null" else version)


def _remote_file(path: str, key: str, size: int, etag: str, version: str | None) -> RemoteFile:
    """Return one object. Its validator is the ETag, if strong, and its version in a bucket that keeps versions."""
    strong = etag if etag.startswith('"') else ""
    # A bucket with versioning off or suspended reports `null`, which names no fixed version.
    validator = f"{strong} {version}" if version and version != "null" else strong
    return RemoteFile(path, key, size, validator, weak_validators=None if validator else WeakValidators(etag or None))
