"""Write blobs to Azure, each part with the MD5 that the service compares, the whole under a condition.

Law: the MD5 in the answer to a part is the service's own, over the bytes that it got. A request may arrive twice: a
blob that is there already counts as written if its MD5 is that of the bytes. Formats: "Put Blob", "Put Block", "Put
Block List", "Specifying conditional headers".
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cached.contract.errors import HoldfastError, Transient
from cached.publish.object_mark import PreconditionFailed
from cached.publish.reading import WrongSum
from cached.publish.requests import Answer, Authorization, StoreRequests, error_of
from cached.sources.azure.access import VERSION, AzureAccess, code_of
from cached.sources.azure.address import AzureAddress
from cached.sources.azure.blobs import parse_xml
from cached.transport.client import Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.response import strong_etag
from cached.transport.target import Headers

_DONE = 201
_BLOCK_BLOB: Headers = (("x-ms-blob-type", "BlockBlob"),)
_WRONG_SUM = frozenset({"Md5Mismatch", "Crc64Mismatch", "InvalidMd5"})
_FORESTALLED = frozenset({"BlobAlreadyExists", "PathAlreadyExists", "ConditionNotMet", "LeaseIdMissing"})


@dataclass(frozen=True, slots=True)
class NewBlob:
    """A blob to write: its name, its metadata, and the ETag of the one that it replaces (None: there is none)."""

    key: str
    replaces: str | None
    metadata: dict[str, str]

    @property
    def headers(self) -> Headers:
        """The headers of the request after which it appears."""
        condition = ("If-None-Match", "*") if self.replaces is None else ("If-Match", self.replaces)
        return (condition, *((f"x-ms-meta-{name}", value) for name, value in self.metadata.items()))


@dataclass(frozen=True, slots=True)
class FoundBlob:
    """A blob that is there: its size in bytes, its ETag, its Content-MD5 (empty without one) and its metadata."""

    size: int
    etag: str
    md5: str
    metadata: dict[str, str]


class BlobWriter:
    """The writer of one container's blobs."""

    def __init__(self, address: AzureAddress, access: AzureAccess, connections: int) -> None:
        self._address = address
        self._access = access

        def sign(url: str, cancellation: Cancellation) -> tuple[str, Headers]:
            return access.signed(url, cancellation), access.headers_for(url, cancellation)

        self._requests = StoreRequests(Authorization(sign, access.refuse), connections)

    async def put(self, new: NewBlob, data: bytes) -> str:
        """Write a blob in one request; return its ETag. Raises `PreconditionFailed` and `WrongSum`."""
        md5 = await asyncio.to_thread(md5_of, data)
        headers = (*VERSION, *_BLOCK_BLOB, *new.headers, ("Content-MD5", md5))
        answer = await self._requests.send("PUT", self._address.blob_url(new.key), headers, data)
        self._check_sum(md5, answer)
        return await self._written(new, md5, answer)

    async def list_blocks(self, key: str) -> frozenset[str]:
        """Return the ids of the blocks of a blob that were sent and are not in it yet."""
        url = self._address.blob_url(key, comp="blocklist", blocklisttype="uncommitted")
        answer = await self._requests.send("GET", url, VERSION)
        if answer.status == 404:
            return frozenset()
        if answer.status != 200:
            raise self._error(key, answer)
        root = parse_xml(answer.body, self._address.uri(key))
        return frozenset(name.text or "" for name in root.iterfind("UncommittedBlocks/Block/Name"))

    async def put_block(self, key: str, start: int, data: bytes, there: Collection[str]) -> str:
        """Send one block of a blob, from the byte `start`, unless it is among those that are `there`; return its id,
        which follows from its bytes. It stays invisible. Raises `WrongSum`."""
        md5 = await asyncio.to_thread(md5_of, data)
        block = base64.b64encode(f"{base64.b64decode(md5).hex()}-{start:016x}".encode()).decode("ascii")
        if block in there:
            return block
        url = self._address.blob_url(key, comp="block", blockid=block)
        answer = await self._requests.send("PUT", url, (*VERSION, ("Content-MD5", md5)), data)
        self._check_sum(md5, answer)
        if answer.status != _DONE:
            raise self._error(key, answer)
        return block

    async def put_block_list(self, new: NewBlob, blocks: Sequence[str], md5: str) -> str:
        """Let a blob of these blocks appear, with the MD5 of the whole; return its ETag. Raises
        `PreconditionFailed`."""
        listed = "".join(f"<Latest>{block}</Latest>" for block in blocks)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        headers = (*VERSION, *new.headers, ("x-ms-blob-content-md5", md5), ("Content-MD5", md5_of(body)))
        url = self._address.blob_url(new.key, comp="blocklist")
        return await self._written(new, md5, await self._requests.send("PUT", url, headers, body))

    async def find(self, key: str) -> FoundBlob | None:
        """Return what there is under a name; None if there is no blob."""
        answer = await self._requests.send("HEAD", self._address.blob_url(key), VERSION)
        if answer.status == 404:
            return None
        etag, length = strong_etag(answer.headers), answer.headers.get("Content-Length", "")
        if answer.status != 200:
            raise self._error(key, answer)
        if etag is None or not (length.isdecimal() and len(length) <= 18):
            raise Transient(
                "bad_response", f"{self._address.uri(key)}: a blob without size or ETag", "it is tried again"
            )
        prefix = "x-ms-meta-"
        metadata = {n.lower()[len(prefix) :]: v for n, v in answer.headers.items() if n.lower().startswith(prefix)}
        return FoundBlob(int(length), etag, answer.headers.get("Content-MD5", ""), metadata)

    async def delete(self, key: str) -> None:
        """Delete a blob, if it exists."""
        answer = await self._requests.send("DELETE", self._address.blob_url(key), VERSION)
        if answer.status not in (200, 202, 404):
            raise self._error(key, answer)

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        await self._requests.aclose()

    def _check_sum(self, md5: str, answer: Answer) -> None:
        if self._code(answer) in _WRONG_SUM or (
            answer.status == _DONE and answer.headers.get("Content-MD5", md5) != md5
        ):
            raise WrongSum

    async def _written(self, new: NewBlob, md5: str, answer: Answer) -> str:
        if answer.status == _DONE:
            etag = strong_etag(answer.headers)
            if etag is None:
                raise Transient("bad_response", f"{self._address.uri(new.key)}: no ETag", "publish again")
            return etag
        if answer.status in (409, 412) and self._code(answer) in _FORESTALLED:
            there = await self.find(new.key)
            if there is None or there.md5 != md5:
                raise PreconditionFailed
            return there.etag  # our own request, sent twice
        if answer.status == 404 and new.replaces is not None:
            raise PreconditionFailed
        raise self._error(new.key, answer)

    def _error(self, key: str, answer: Answer) -> HoldfastError:
        where = self._address.uri(key)
        return error_of(
            answer, where, self._access.explain(Response(answer.status, answer.body, answer.headers, where))
        )

    def _code(self, answer: Answer) -> str:
        return code_of(Response(answer.status, answer.body, answer.headers, ""))


def md5_of(data: bytes) -> str:
    """Return the MD5 as HTTP writes it."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")
