"""A version, pulled as the daemon pulls it: the listing, the choice of files, and real downloads into a store.

Law: the daemon's own workers, over a root of the test's own; nothing is published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.core.filters import choose_files
from cached.core.listing import Listing, RemoteFile
from cached.fetch.bodies.local_file import LocalBody
from cached.fetch.bodies.stream_body import StreamBody
from cached.fetch.download import Download
from cached.fetch.resolving.locator import Locator
from cached.fetch.resolving.wanted_files import blob_spec
from cached.fetch.workers import Workers, WorkerSettings
from cached.sources.base import Source
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk.verity import Sealing
from cached.store.start import recovery
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import HttpSettings
from cached.transport.target import LocalTarget, StreamTarget, Target

_CONNECTIONS = 4
_PATIENCE_S = 120.0


@dataclass
class _Metrics:
    """Counts what the downloads tell."""

    received_bytes: int = 0
    failures: list[str] = field(default_factory=list)

    def received(self, kind: str, size: int) -> None:  # noqa: ARG002 - as the Protocol
        self.received_bytes += size

    def fetch_failed(self, kind: str, code: str) -> None:  # noqa: ARG002 - as the Protocol
        self.failures.append(code)

    def fetched(self, kind: str, seconds: float) -> None:
        """Nothing to count."""

    def verify_failed(self, where: str) -> None:
        """Nothing to count."""


class _Plenty:
    """Space without end."""

    def grow(self, size: int) -> None:
        """There is room."""


class Puller:
    """Pulls versions into its own store. `client`: what sources send their small requests with."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        recovery.prepare(self.layout)
        self.client = HttpClient(HttpSettings(header_timeout_s=20.0, stall_window_s=20.0))
        self.metrics = _Metrics()
        self._workers = Workers(
            self.layout,
            self.client,
            WorkerSettings(_CONNECTIONS, _CONNECTIONS, None, Sealing.NONE),
            self.metrics,
            DigestJournal(self.layout.digests, {}),
            HashNotes(self.layout.hashed, {}),
        )

    async def pull(self, source: Source, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Digest:
        """Resolve and fetch a version; return its manifest digest. Raises `HoldfastError`."""
        return await self.fetch(source, await source.resolve(), include, exclude)

    async def fetch(
        self, source: Source, listing: Listing, include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> Digest:
        """Fetch the chosen files of a listing; return the manifest digest. Raises `HoldfastError`."""
        files = choose_files(listing, source.display, include, exclude)
        locator = Locator(source, files)
        downloads: list[tuple[RemoteFile, Download]] = []
        for file in files:
            spec = blob_spec(file, source, listing.identity)
            download = Download(spec, partial(locator.locate, file), _Plenty(), self._workers, 0)
            downloads.append((file, download))
        self._workers.submit(download for _, download in downloads)
        waiting = asyncio.gather(
            *(asyncio.wrap_future(download.result) for _, download in downloads), return_exceptions=True
        )
        entries = []
        results = await asyncio.wait_for(waiting, _PATIENCE_S)
        for (file, _), result in zip(downloads, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            entries.append(FileEntry(file.path, result.sha256, result.size))
        return Manifest.build(entries).digest

    def read(self, target: Target, offset: int, length: int) -> bytes:
        """Read a range of a file from its address, as a download does; blocking. Raises `HoldfastError`."""
        cancellation = Cancellation()
        data = bytearray(length)
        if isinstance(target, LocalTarget):
            with LocalBody(target, offset, length) as local:
                return bytes(data[: local.readinto(memoryview(data))])
        if isinstance(target, StreamTarget):
            whole = bytearray(offset + length)
            with StreamBody(target, cancellation) as stream:
                return bytes(whole[offset : stream.readinto(memoryview(whole))])
        with self.client.get(target, offset, length, cancellation) as body:
            skipped = offset - body.start  # a server may send the whole file
            whole = bytearray(skipped + length)
            return bytes(whole[skipped : body.readinto(memoryview(whole))])

    def blobs(self) -> list[str]:
        """Return the committed blobs."""
        return sorted(path.name for path in self.layout.blobs.rglob("*") if path.is_file())

    def close(self) -> None:
        """Stop the downloads."""
        self._workers.stop()
        self.client.close()


@contextmanager
def puller_in(root: Path) -> Iterator[Puller]:
    """Return a puller for the block."""
    puller = Puller(root)
    try:
        yield puller
    finally:
        puller.close()
