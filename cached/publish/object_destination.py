"""What the destinations in object stores that know conditions have in common: records, mark and listing.

Law: a record replaces the object that was listed, or nothing. What differs (requests, tags, sums) is the subclass's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from cached.contract.manifest import (
    CHAINS_NAME,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    PUBLISHING_NAME,
    REPLACED_NAME,
    FileEntry,
)
from cached.peers.chain_file import MAX_CHAIN_FILE_BYTES
from cached.publish.destination import Say, Stored
from cached.publish.mark import MAX_MARK_BYTES, Mark, another_publisher
from cached.publish.object_mark import ObjectMark, PreconditionFailed, StoredMark, compute_age_s
from cached.sources.objects import StoredObject
from cached.transport.client import Response
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.thread_call import call_in_thread
from cached.transport.response import bad_response


class ObjectDestination(ABC):
    """The part of a `Destination` under `prefix` that is the same in every such store."""

    keeps_chains = True

    def __init__(self, display: str, prefix: str) -> None:
        self.display = display
        self.mark = ObjectMark(_MarkObject(self), display)
        self._prefix = prefix
        self._listed: dict[str, StoredObject] = {}  # by key, as last listed

    @abstractmethod
    async def read(self, path: str, limit_bytes: int) -> Response | None:
        """Return the answer with a small object's bytes; None if there is none."""

    @abstractmethod
    async def write(self, path: str, data: bytes, tag: str | None) -> None:
        """Write a small object in place of the one with this tag, or of none. Raises `PreconditionFailed`."""

    @abstractmethod
    async def delete(self, path: str) -> None:
        """Delete one file, if it exists."""

    @abstractmethod
    def tag_of(self, answer: Response) -> str | None:
        """Return the tag of the object in an answer of `read`; None where that has none."""

    @abstractmethod
    def list_objects(self, cancellation: Cancellation) -> dict[str, StoredObject]:
        """Return the objects under the prefix, by key. Blocking."""

    async def read_manifest(self) -> bytes | None:
        return await self._read_record(MANIFEST_NAME, MAX_MANIFEST_BYTES)

    async def list_files(self, files: Sequence[FileEntry]) -> dict[str, Stored]:
        self._listed = await call_in_thread(self.list_objects)
        found = ((file.path, self._listed.get(self.key(file.path))) for file in files)
        return {path: Stored(each.size, each.validator) for path, each in found if each is not None}

    async def read_chains(self) -> bytes | None:
        return await self._read_record(CHAINS_NAME, MAX_CHAIN_FILE_BYTES)

    async def write_chains(self, data: bytes) -> None:
        await self._write_record(CHAINS_NAME, data, self.listed_tag(CHAINS_NAME))

    async def claim(self, mark: Mark, say: Say) -> None:
        await self.mark.claim(mark, say)

    async def is_marked(self) -> bool:
        return self.listed_tag(PUBLISHING_NAME) is not None

    async def keep_claim(self) -> None:
        await self.mark.keep()

    async def read_replaced(self) -> bytes | None:
        return await self._read_record(REPLACED_NAME, MAX_MANIFEST_BYTES)

    async def keep_replaced(self, manifest: bytes) -> None:
        await self._write_record(REPLACED_NAME, manifest, self.listed_tag(REPLACED_NAME))

    async def withdraw(self) -> None:
        await self.delete(MANIFEST_NAME)

    async def seal(self, manifest: bytes) -> None:
        await self._write_record(MANIFEST_NAME, manifest, None)

    async def unmark(self) -> None:
        await self.mark.remove()

    async def give_up(self) -> None:
        await self.mark.give_up()

    def key(self, path: str) -> str:
        """Return the key of a file."""
        return self._prefix + path

    def listed_tag(self, path: str) -> str | None:
        """Return the tag of a file as last listed; None if it was not there."""
        listed = self._listed.get(self.key(path))
        return None if listed is None else listed.validator

    async def _read_record(self, path: str, limit_bytes: int) -> bytes | None:
        found = await self.read(path, limit_bytes)
        return None if found is None else found.body

    async def _write_record(self, path: str, data: bytes, tag: str | None) -> None:
        try:
            await self.write(path, data, tag)
        except PreconditionFailed as error:
            raise another_publisher(self.display, None) from error


class _MarkObject:
    """The object with the mark."""

    def __init__(self, destination: ObjectDestination) -> None:
        self._destination = destination

    async def read(self) -> StoredMark | None:
        found = await self._destination.read(PUBLISHING_NAME, MAX_MARK_BYTES)
        if found is None:
            return None
        tag = self._destination.tag_of(found)
        if tag is None:
            problem = f"expected the generation or ETag of {PUBLISHING_NAME}, found none"
            raise bad_response(self._destination.display, problem)
        return StoredMark(found.body, tag, compute_age_s(found.headers))

    async def write(self, data: bytes, tag: str | None) -> None:
        await self._destination.write(PUBLISHING_NAME, data, tag)

    async def delete(self) -> None:
        await self._destination.delete(PUBLISHING_NAME)

    def ignore_conditions(self) -> None:
        """Do nothing: these services know conditions; an emulator that ignores them takes them all the same."""
