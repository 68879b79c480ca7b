"""Imports: versions that a client sends over the control socket, published as fetched ones are.

Law: space is reserved before a byte is written; a version is published only after the client has said that all of its
archive was right. A fetch of the version that runs beside it goes on until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from cached.contract.archive.import_stream import IMPORTED, LineReader, send_document, send_error
from cached.contract.digest import Digest
from cached.contract.errors import DigestMismatch, HoldfastError, Permanent, Transient
from cached.contract.loadable.verdict import find_name_problems
from cached.contract.manifest import MAX_MANIFEST_BYTES, Manifest
from cached.contract.program import limits
from cached.contract.reference import ModelRef
from cached.contract.status import Verdict, timestamp
from cached.contract.trust import Trust
from cached.core.catalog import CatalogVersion
from cached.core.demand import Priority, Want
from cached.core.eviction import list_freed
from cached.core.space import NoSpace, Reservation
from cached.daemon.catalog.catalog_file import CatalogFile
from cached.daemon.fetching import Fetching
from cached.daemon.opening import OpenedNode
from cached.fetch.attempt import AttemptResources
from cached.fetch.downloads import DownloadSpace
from cached.fetch.received import ReceivedBlobs, received_id
from cached.fetch.resolving.selection import judge_blobs
from cached.fetch.small_attempt import SMALL_BYTES
from cached.store.blob import blobs
from cached.store.version.fetch_records import FetchRecord
from cached.store.version.publication import Publication

T = TypeVar("T")

_log = logging.getLogger(__name__)

_AT_ONCE = 4  # each has a thread and a buffer
_STOPPING_S = 5.0


class Imports:
    """The imports of this node."""

    def __init__(self, node: OpenedNode, fetching: Fetching, catalog: CatalogFile) -> None:
        self._node = node
        self._publisher = fetching.publisher
        self._reconciler = fetching.reconciler
        self._resources: AttemptResources = fetching.workers
        self._state = fetching.state
        self._catalog = catalog
        self._running = 0

    def require_room(self) -> None:
        """Raise `Transient` (`busy`) while as many imports run as may run at once."""
        if self._running >= _AT_ONCE:
            raise Transient("busy", f"{self._running} imports run on this node", "import again when one has ended")

    async def receive(self, ref: ModelRef, stream: socket.socket, *, replace: bool) -> None:
        """Receive a version over `stream` and publish it; tell the client the outcome. `replace`: also where the name
        leads to other content."""
        self._running += 1
        transfer = secrets.token_hex(8)
        try:
            await self._receive(ref, transfer, LineReader(stream), stream, replace=replace)
        except HoldfastError as error:
            _log.warning("%s: an import failed: %s", ref, error)
            self._node.metrics.fetch_failed("import", error.code)
            if isinstance(error, DigestMismatch):
                self._node.metrics.verify_failed("import")
            with contextlib.suppress(TimeoutError):  # of a disk that hangs
                async with asyncio.timeout(_STOPPING_S):
                    await self._node.status_files.flushed()  # versions may have been evicted for it
            await self._tell(stream, partial(send_error, stream, error))
        except OSError as error:
            _log.warning("%s: an import failed: its client is gone: %s", ref, error.strerror)
        except Exception as error:  # noqa: BLE001 - the client gets it
            _log.exception("%s: an import failed", ref)
            failure = Permanent("internal", f"{ref}: {error!r}", "report this with the daemon's log")
            await self._tell(stream, partial(send_error, stream, failure))
        finally:
            self._running -= 1
            self._publisher.claims.drop(("import", transfer))

    async def _receive(
        self, ref: ModelRef, transfer: str, lines: LineReader, stream: socket.socket, *, replace: bool
    ) -> None:
        began = time.monotonic()
        await self._catalog.wait_until_current()
        manifest = await _on_thread(partial(_read_manifest, lines), stream)
        digest = manifest.digest
        self._check(ref, digest, replace=replace)
        needed = await self._node.blocking.run(self._claim, transfer, manifest)
        spaces: dict[str, DownloadSpace] = {}
        try:
            await self._reserve(transfer, needed, spaces)
            answer = {"need": list(needed)}
            await _on_thread(partial(send_document, stream, answer), stream)
            count = partial(self._node.metrics.received, "import")
            received = ReceivedBlobs(self._resources, transfer, needed, spaces, count)
            await _on_thread(partial(received.receive, lines), stream)
        finally:
            await self._node.blocking.run(_give_back, spaces)
        self._publisher.claims.add_existing(("import", transfer), needed)
        entry = self._check(ref, digest, replace=replace)  # both may have changed since
        publication = await self._node.blocking.run(self._make_publication, ref, manifest, entry)
        await self._publisher.publish(publication, tuple)
        self._node.metrics.fetched("import", time.monotonic() - began)
        self._reconciler.adopt_import(ref)
        await self._show(ref)
        _log.info(
            "%s: imported, %d bytes, of which %d were not here, %s",
            ref,
            manifest.total_bytes,
            sum(needed.values()),
            digest,
        )
        await self._tell(stream, partial(send_document, stream, {"digest": str(digest)}))

    async def _show(self, ref: ModelRef) -> None:
        """Return once the status file says what holds now, so that the client's next look sees it; after some seconds
        where a fetch that was stopped does not end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOPPING_S):
                await self._reconciler.wait_until_stopped(ref)
        await self._node.status_files.flushed()

    def _check(self, ref: ModelRef, digest: Digest, *, replace: bool) -> CatalogVersion | None:
        """Return the catalog's entry of the version, if any; raises `HoldfastError` where it forbids this content, or
        the node has other content."""
        entry = self._state.find_entry(ref)
        if entry is not None and entry.digest not in (None, digest):
            raise DigestMismatch(
                f"{ref}: the digest of the archive",
                f"{entry.digest} (the catalog's digest)",
                str(digest),
                "import the archive that the catalog pins, or correct its digest",
            )
        held = self._node.inventory.models.get(ref)
        if held not in (None, digest) and not replace:
            raise Permanent(
                "other_content",
                f"{ref}: expected {digest} or nothing on this node, found {held}",
                "import it with --replace if the name is to move, or under another name",
            )
        return entry

    def _claim(self, transfer: str, manifest: Manifest) -> dict[str, int]:
        """Claim the version's blobs, and return the sizes of those that are not here, by sha256. Blocking."""
        sizes, claimant, claims = manifest.blob_sizes(), ("import", transfer), self._publisher.claims
        claims.claim(claimant, sizes, [received_id(sha256, transfer) for sha256 in sizes])
        claims.wait_for_deletion()
        missing = {sha256: size for sha256, size in sizes.items() if blobs.size(self._node.layout, sha256) != size}
        claims.add_existing(claimant, {sha256: sizes[sha256] for sha256 in sizes.keys() - missing.keys()})
        return missing

    async def _reserve(self, transfer: str, needed: Mapping[str, int], spaces: dict[str, DownloadSpace]) -> None:
        """Reserve the space of each of these blobs; `spaces` gets it by sha256, also if the caller is cancelled. Where
        it is short, evict versions without a want, a lease or a pin, the least recently used first, but none in vain.
        Raises `NoSpace` or `Permanent` (`too_large`)."""
        while True:
            try:
                return await self._node.blocking.run(self._try_reserve, transfer, needed, spaces)
            except NoSpace as error:
                short = error
            if not await self._free_some(short):
                raise short

    def _try_reserve(self, transfer: str, needed: Mapping[str, int], spaces: dict[str, DownloadSpace]) -> None:
        ids = {sha256: received_id(sha256, transfer) for sha256 in needed}
        self._node.ledger.require_files(len(ids) + 1)
        reservations = self._node.ledger.reserve({ids[sha256]: size for sha256, size in needed.items()})
        spaces.update({sha256: self._make_space(reservations[id_]) for sha256, id_ in ids.items()})

    def _make_space(self, reservation: Reservation) -> DownloadSpace:
        is_small = reservation.size <= SMALL_BYTES
        return DownloadSpace(
            self._node.ledger, reservation, None if is_small else self._node.layout.ingest / reservation.id
        )

    async def _free_some(self, short: NoSpace) -> bool:
        """Delete unused blobs, else evict one version, if that leads to enough; return whether something was freed."""
        if await self._reconciler.sweep():
            return True
        await self._reconciler.update_leases()
        victims = self._reconciler.list_evictable()
        most = sum(list_freed(victims, self._state.list_inventory()))
        if self._node.ledger.compute_use().free + most < short.needed_bytes:
            return False
        for victim in victims:
            if await self._reconciler.evict(victim.ref, victim.digest, "import"):
                return True
            if self._reconciler.unlisted_pods is not None:
                raise self._reconciler.unlisted_pods
        return False

    def _make_publication(self, ref: ModelRef, manifest: Manifest, entry: CatalogVersion | None) -> Publication:
        """Return the publication. Its record has the catalog's request: who imports says that this is what the catalog
        asks for, so that no source needs to be asked."""
        require = entry is not None and entry.require_loadable
        want = Want(
            ref=ref,
            source="",
            pin=None,
            include=(),
            exclude=(),
            priority=Priority.PULL,
            reasons=("import",),
            keep=False,
            require_loadable=require,
        )
        names = [file.path for file in manifest.files]
        record = FetchRecord(
            digest=manifest.digest,
            request=None if entry is None else entry.request,
            source=IMPORTED,
            revision=None,
            resolved_at=timestamp(time.time()),
            files={},
            verdict=Verdict(tuple(find_name_problems(names)), (), Trust.KNOWN),
        )
        return Publication(ref, manifest, record, partial(judge_blobs, self._node.layout, want))

    async def _tell(self, stream: socket.socket, send: Callable[[], None]) -> None:
        try:
            await _on_thread(send, stream)
        except (OSError, Transient) as error:
            _log.info("the client of an import was not told of its outcome: %s", error)


def _give_back(spaces: Mapping[str, DownloadSpace]) -> None:
    for space in spaces.values():
        space.give_back()


def _read_manifest(lines: LineReader) -> Manifest:
    text = lines.read_line(32)
    if not text.isascii() or not text.isdigit() or int(text) > MAX_MANIFEST_BYTES:
        raise Permanent("bad_request", f"expected the manifest's length, found {text[:40]!r}", "send it first")
    data = bytearray(int(text))
    rest = memoryview(data)
    while rest:
        rest = rest[lines.read_into(rest) :]
    return Manifest.parse(bytes(data))


async def _on_thread(work: Callable[[], T], stream: socket.socket) -> T:
    """Run `work` on a thread of its own, since it may wait for the client as long as that likes; return its result.
    Cancelled, hang up, which ends the work, and wait for that."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            loop.call_soon_threadsafe(ended.set_exception, error)
        else:
            loop.call_soon_threadsafe(ended.set_result, result)

    limits.start_thread(threading.Thread(target=run, name="import", daemon=True), "an import")
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        stream.shutdown(socket.SHUT_RDWR)
        await asyncio.wait([ended])
        raise
