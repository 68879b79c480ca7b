"""A pinned version whose manifest is at hand: its source is listed only once a file is to come from there.

Law: the manifest hashes to the pin, so it says what the version is, and its sha256s are known. The source only says
where its files are: one that has another file under a name of the version is of no use, whatever it vouches for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from cached.contract.errors import HoldfastError, Transient
from cached.contract.manifest import Manifest
from cached.core.listing import Listing, RemoteFile
from cached.sources.base import Source
from cached.transport.target import Target


class PinnedSource:
    """A `Source` of one version by its manifest, over the `source` that the catalog names. `list_source` lists that; it
    raises as `Source.resolve` does."""

    def __init__(self, source: Source, manifest: Manifest, list_source: Callable[[], Awaitable[Listing]]) -> None:
        self.kind = source.kind
        self.display = source.display
        self._source = source
        self._manifest = manifest
        self._list_source = list_source
        self._listing = asyncio.Lock()
        self._listed: Mapping[str, RemoteFile] | None = None
        self._failure: HoldfastError | None = None
        self._failures = 0

    async def resolve(self) -> Listing:
        """Return the files of the manifest, without a request."""
        digest = self._manifest.digest
        files = tuple(RemoteFile(each.path, each.path, each.size, sha256=each.sha256) for each in self._manifest.files)
        return Listing(files, digest.hex, self._manifest, tag=str(digest))

    async def locate(self, file: RemoteFile) -> Target:
        """Return the address of a file at the source. Raises as `Source.locate`, and `Transient` (`source_changed`)
        where the source has not this file."""
        found = (await self._list()).get(file.path)
        if found is None or found.size not in (None, file.size) or found.sha256 not in (None, file.sha256):
            has = "no such file" if found is None else f"{found.size} bytes, sha256 {found.sha256 or 'not listed'}"
            raise Transient(
                "source_changed",
                f"{self.display}: expected {file.path!r} of the pinned version {self._manifest.digest}, "
                f"{file.size} bytes, sha256 {file.sha256}; found {has}",
                "the pool is asked again; correct the pin, or publish the content that it names",
            )
        if found.problem is not None:
            raise found.problem
        return await self._source.locate(found)

    async def aclose(self) -> None:
        """Close the source."""
        await self._source.aclose()

    async def _list(self) -> Mapping[str, RemoteFile]:
        """Return the source's files by path. All that wait for a listing share its outcome."""
        failures = self._failures
        async with self._listing:
            if self._listed is None:
                if self._failure is not None and self._failures != failures:
                    raise self._failure
                try:
                    listing = await self._list_source()
                except HoldfastError as error:
                    self._failure = error
                    self._failures += 1
                    raise
                self._listed = {file.path: file for file in listing.files}
            return self._listed
