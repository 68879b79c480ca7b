"""The publisher: publish and evict versions, withdraw corrupt content, sweep unused blobs.

Law: the only writer of names and snapshots, one step at a time: a lock keeps a version from being published into a
snapshot that is being deleted. After each step the inventory, the status files and the ledger agree with the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Transient
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.core.space import Ledger
from cached.node.cluster import Cluster, PodLife
from cached.node.inventory import Inventory, find_leased
from cached.node.log_once import LogOnce
from cached.node.status_files import FetchProgress, StatusFiles
from cached.node.threads import Blocking
from cached.store.blob import blobs
from cached.store.blob.claims import Claims
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk import durable
from cached.store.disk.root import Root
from cached.store.version import deletion, kept_snapshots, repair, snapshots
from cached.store.version.fetch_records import FetchRecord
from cached.store.version.publication import Publication, publish_all

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
_GROUP_FILES = 256  # in all versions published together: the first one waits for the last one's


@dataclass(slots=True, eq=False)
class _QueuedPublication:
    """A publication that waits for the lock, until it is `started`. `list_ids` gives its ids in the digest journal,
    called under the lock: they change before it is taken."""

    publication: Publication
    list_ids: Callable[[], Collection[str]]
    result: asyncio.Future[Digest]
    started: bool = False


class Publisher:
    """The steps that change the store, one at a time."""

    def __init__(
        self,
        *,
        layout: Layout,
        root: Root,
        inventory: Inventory,
        status_files: StatusFiles,
        ledger: Ledger,
        blocking: Blocking,
        cluster: Cluster,
        journal: DigestJournal,
        notes: HashNotes,
        ignoring_own: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._layout = layout
        self._root = root
        self._ignoring_own = ignoring_own  # around our own locks of leases: no use of a snapshot
        self._inventory = inventory
        self._status_files = status_files
        self._ledger = ledger
        self._blocking = blocking
        self._cluster = cluster
        self._log_once = LogOnce(_log)
        self.claims = Claims(journal)
        self._notes = notes
        self._deletion = deletion.Deletion(layout, self.claims, notes, ledger, inventory.links)
        self._lock = asyncio.Lock()
        self._evicting: Digest | None = None  # the snapshot whose lease is taken exclusively now
        self._waiting: deque[_QueuedPublication] = deque()

    async def update_leases(self, digests: Collection[Digest] | None = None, used: Collection[Digest] = ()) -> None:
        """Update which of these snapshots are leased, by default of all; those in `used` were just now. An eviction's
        own lock is no lease."""
        inventory, checked = self._inventory, time.monotonic()
        asked = (inventory.digests if digests is None else inventory.digests.intersection(digests)) - {self._evicting}
        if not asked:
            return
        with self._ignoring_own():
            leased = await self._blocking.run(find_leased, self._layout, asked, used)
        others = inventory.leased - asked if digests is not None else frozenset()
        inventory.set_leased((others | leased) - {self._evicting}, asked.intersection(used), checked)

    async def publish(self, publication: Publication, list_ids: Callable[[], Collection[str]]) -> Digest:
        """Publish a version whose blobs are all committed; return its digest. `list_ids` gives its ids in the digest
        journal, which are forgotten. The previous snapshot of the name stays while it is leased. A started publication
        is completed, cancelled or not. Versions that wait for the lock at the same time are published together, in the
        turn of the first. Raises `HoldfastError`, also what forbids the publication."""
        result = asyncio.get_running_loop().create_future()
        mine = _QueuedPublication(publication, list_ids, result)
        self._waiting.append(mine)
        turn = asyncio.ensure_future(self._take_turn(mine))  # a task of its own: no cancelled caller interrupts others
        try:
            return await asyncio.shield(mine.result)
        except asyncio.CancelledError:
            if not mine.started:
                self._waiting.remove(mine)
                turn.cancel()
                raise
            await asyncio.wait([mine.result])
            if mine.result.exception() is not None:
                raise
            return mine.result.result()

    async def _take_turn(self, mine: _QueuedPublication) -> None:
        async with self._lock:
            while not mine.started:
                await self._publish_group(self._take_group())

    def _take_group(self) -> list[_QueuedPublication]:
        """Take the first waiting publication, and the next ones up to `_GROUP_FILES` files in all."""
        group: list[_QueuedPublication] = []
        files = 0
        for each in self._waiting:
            files += len(each.publication.manifest.files)
            if group and files > _GROUP_FILES:
                break
            group.append(each)
        for each in group:
            each.started = True
            self._waiting.popleft()
        return group

    async def _publish_group(self, group: list[_QueuedPublication]) -> None:
        publications = [each.publication for each in group]
        error: Exception | None = Transient("interrupted", "the publication was cancelled", "it is tried again")
        try:
            for each in group:
                each.publication.journal_ids = each.list_ids()
                each.publication.keeps = self._find_readers(each.publication)
            # The newest first: a version shares most with the one before it, and the look ends with its last blob.
            here = tuple(reversed(self._inventory.manifests.items()))
            manifests = [each.manifest for each in publications]
            await self._do(_quarantine_rotten, self._layout, self._ledger, self._notes, here, manifests)
            journals = self.claims.journal, self._notes
            await self._blocking.finish(_publish, self._layout, self._ledger, *journals, self._root.check, publications)
            for publication in publications:
                self._record(publication)
            self.report_published()
            error = None
        except Exception as unexpected:  # noqa: BLE001 - raised to every caller
            error = unexpected
        finally:
            for each in group:
                failure = each.publication.failure or error
                if failure is None:
                    each.result.set_result(each.publication.record.digest)
                else:
                    each.result.set_exception(failure)

    def _record(self, publication: Publication) -> None:
        """Record the result of a publication in the inventory and the status file."""
        ref, digest = publication.ref, publication.record.digest
        self._status_files.set_verdict(ref, publication.record.verdict)
        if publication.failure is not None:
            if publication.has_snapshot:  # without its name it is added too, so that a sweep deletes it
                self._inventory.add_snapshot(digest, publication.manifest)
            return
        before = self._inventory.models.get(ref)
        if publication.keeps is not None:
            kept_digest, pods = publication.keeps
            self._inventory.kept[kept_digest] = pods
        self._inventory.add(ref, publication.manifest, publication.record)
        self._status_files.set_content(ref, str(digest), None)
        if before not in (None, digest):
            _log.warning("%s: leads to %s now, no longer to %s", ref, digest, before)

    def _find_readers(self, publication: Publication) -> tuple[Digest, frozenset[str]] | None:
        """Return the snapshot that a publication takes the name from, with the pods that may read it; None without."""
        ref, before = publication.ref, self._inventory.models.get(publication.ref)
        if before is None or before == publication.record.digest:
            return None
        pods = frozenset(pod.uid for pod in self._cluster.users() if pod.ref == ref)
        pods |= self._inventory.kept.get(before, frozenset())
        return (before, pods) if pods else None

    def find_published(self, ref: ModelRef) -> tuple[FetchRecord, Manifest] | None:
        """Return a version's fetch record, without `files`, and its manifest; None if this node does not have it."""
        digest = self._inventory.models.get(ref)
        return None if digest is None else (self._inventory.fetched[ref], self._inventory.manifests[digest])

    async def evict(self, ref: ModelRef, digest: Digest, stays: Callable[[], Awaitable[bool]]) -> int | None:
        """Evict a version; return the bytes freed, None if it is in use or has another digest by now. `stays` is called
        last, under the snapshot's lock, and returns whether a pod wants it: one may come before, and from then on none
        opens its gate."""
        async with self._lock:
            if self._inventory.models.get(ref) != digest:
                return None
            before = self._status_files.get(ref)
            size = self._inventory.size(ref)
            tells = before is not None and before.state is State.READY  # else its status is that of a running fetch
            if tells:
                self._status_files.set_progress(ref, State.EVICTING, FetchProgress(size, size))
            try:
                freed = await self._remove(ref, digest, stays)
            except HoldfastError as error:
                self._log_once.log_error(f"eviction of {ref}", str(error), ref)
                freed = None
            if freed is None:
                if tells and before is not None:
                    self._status_files.set_ready(ref, digest, size, pinned=before.pinned, source=before.source)
                return None
            self._status_files.set_content(ref, None, None)
            if tells:
                self._status_files.drop(ref)
            self._log_once.log_recovery(f"eviction of {ref}", ref)
            _log.info("%s: evicted, %d bytes given back", ref, freed)
            return freed

    async def _remove(self, ref: ModelRef, digest: Digest, stays: Callable[[], Awaitable[bool]]) -> int | None:
        """Delete the name, and with its last name the snapshot, after the node's label."""
        last = self._inventory.names(digest) == [ref]
        manifest = self._inventory.manifests[digest] if last else None
        async with self._cluster.withdrawn(digest) if last else contextlib.nullcontext():
            self._evicting = digest
            try:
                freed = await self._evict_locked(ref, digest, manifest, stays)
            finally:
                self._evicting = None
            if freed is None:
                return None
            self._inventory.remove(ref)
            if last:
                self._inventory.drop_snapshot(digest)
                self.report_published()
            return freed

    async def _evict_locked(
        self, ref: ModelRef, digest: Digest, manifest: Manifest | None, stays: Callable[[], Awaitable[bool]]
    ) -> int | None:
        """Delete the name, and the snapshot of `manifest` if any, under the snapshot's lock; None if it is leased."""
        with self._ignoring_own():
            lock = await self._do(deletion.lock, self._layout, ref, digest)
        if lock is None:
            return None
        try:
            return None if await stays() else await self._do(deletion.evict, self._deletion, ref, digest, manifest)
        finally:
            with self._ignoring_own():
                await self._blocking.run(lock.close)

    async def quarantine(self, sha256s: Collection[str], gone: list[ModelRef]) -> None:
        """Move corrupt blobs into quarantine, then withdraw every snapshot that links one. In this order, a crash
        between the two steps leaves no usable corrupt blob. Other blobs stay, to be linked again. `gone` gets the names
        of the snapshots, also if the disk fails: raises `HoldfastError` then."""
        async with self._lock:
            moved: set[str] = set()
            try:
                for sha256 in sha256s:
                    await self._do(deletion.quarantine, self._layout, self._ledger, sha256)
                    moved.add(sha256)
            finally:
                for digest in [digest for digest, sizes in self._inventory.blobs.items() if moved & sizes.keys()]:
                    async with self._cluster.withdrawn(digest):
                        gone += await self._lose(digest)

    async def restore_missing(self, suspects: Collection[Digest]) -> list[ModelRef]:
        """Restore those of these snapshots of which a name, a record or a file is missing or was replaced: not those
        that a publication or an eviction was changing when they were looked at. Return as `restore`."""
        async with self._lock:
            damaged = [digest for digest in suspects if await self._is_damaged(digest)]
            return await self._restore_all(damaged)

    async def restore(self, suspects: Collection[Digest]) -> list[ModelRef]:
        """Restore parts of these snapshots that were deleted or replaced by hand; return the names of the snapshots
        that were withdrawn because blobs are lost."""
        async with self._lock:
            return await self._restore_all(suspects)

    async def _is_damaged(self, digest: Digest) -> bool:
        manifest, refs = self._inventory.manifests.get(digest), self._inventory.names(digest)
        if manifest is None or not refs:
            return False
        with durable.disk_errors(f"looking at snapshot {digest}"):
            is_named = await self._do(repair.is_named, self._layout, refs, digest)
            return not (is_named and await self._do(repair.is_intact, self._layout, digest, manifest))

    async def _restore_all(self, suspects: Collection[Digest]) -> list[ModelRef]:
        gone: list[ModelRef] = []
        todo = list(suspects)
        while todo:
            digest = todo.pop(0)
            if (manifest := self._inventory.manifests.get(digest)) is None:
                continue
            refs = self._inventory.names(digest)
            names = ", ".join(map(str, refs))
            _log.error("snapshot %s (%s): a part of it was deleted, replaced or added, or went bad", digest, names)
            restored = await self._do(_restore, self._layout, self._ledger, refs, digest, manifest)
            if restored.lost:
                async with self._cluster.withdrawn(digest):
                    gone += await self._lose(digest, "files of it were deleted on this node")
            else:
                _log.warning("snapshot %s: is whole again", digest)
                self._inventory.note_changed((digest,))
            sharing = (each for each, sizes in self._inventory.blobs.items() if restored.condemned & sizes.keys())
            todo += [each for each in sharing if each != digest and each not in todo]
        return gone

    async def _lose(self, digest: Digest, why: str = "a file of it went bad on this node's disk") -> list[ModelRef]:
        """Withdraw a snapshot with a corrupt or lost file, and its names; return the names."""
        refs = self._inventory.names(digest)
        for ref in refs:
            _log.error("%s: withdrawn: %s; it is fetched again", ref, why)
        self._cluster.lost(refs, f"{why}; it is fetched again")
        manifest = self._inventory.manifests[digest]
        await self._do(_withdraw, self._layout, self._ledger, self._notes, refs, digest, manifest)
        for ref in refs:
            self._inventory.remove(ref)
            self._status_files.set_content(ref, None, None)
            status = self._status_files.get(ref)
            if status is not None and status.state is State.READY:
                self._status_files.drop(ref)
        self._inventory.drop_snapshot(digest)
        self.report_published()
        return refs

    async def discard(self, damaged: Collection[Digest]) -> None:
        """Delete snapshots whose manifest does not hash to their name: publishing them again rebuilds them."""
        async with self._lock:
            for digest in damaged:
                _log.error("snapshot %s: it is damaged, or was left when a file of it went bad; it is removed", digest)
                await self._do(_quarantine_unlisted, self._layout, self._ledger, digest)
                # Every rescued file is kept: without a readable manifest, the snapshot's blobs are unknown.
                await self._do(_withdraw, self._layout, self._ledger, self._notes, (), digest, None)

    async def drop_unnamed(self) -> None:
        """Delete the snapshots without a name, except those that are leased or kept for a pod."""
        async with self._lock:
            for digest in self._inventory.unnamed():
                if any(self._is_there(uid) for uid in self._inventory.kept.get(digest, ())):
                    continue
                manifest = self._inventory.manifests[digest]
                with self._ignoring_own():
                    freed = await self._do(deletion.delete_unnamed, self._deletion, digest, manifest)
                if freed is not None:
                    self._inventory.drop_snapshot(digest)
            for digest in [each for each in self._inventory.kept if each not in self._inventory.manifests]:
                await self._do(kept_snapshots.remove, self._layout, digest)
                del self._inventory.kept[digest]

    def _is_there(self, uid: str) -> bool:
        life = self._cluster.find_pod(uid)
        return life in (PodLife.ALIVE, PodLife.ENDING) or not self._cluster.synced

    async def sweep(self) -> int:
        """Delete unlinked and partial blobs that no fetch claims, and the quarantine; return the bytes freed."""
        async with self._lock:
            return await self._do(deletion.sweep, self._deletion)

    def report_published(self) -> None:
        """Report the published digests to the cluster."""
        self._cluster.published(self._inventory.digests)

    async def _do(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a step on the disk, if the root is the locked one."""
        return await self._blocking.run(_on_root, self._root, partial(step, *args, **kwargs))


def _on_root(root: Root, step: Callable[[], T]) -> T:
    """Call a step unless another root, or none, is at the root's path."""
    root.check()
    return step()


def _publish(
    layout: Layout,
    ledger: Ledger,
    journal: DigestJournal,
    notes: HashNotes,
    check: Callable[[], None],
    group: Sequence[Publication],
) -> None:
    """Publish a group, and count the blobs that a snapshot that was there may have changed."""
    publish_all(layout, journal, notes, check, group)
    for each in group:
        if each.was_there:
            _count(layout, ledger, each.manifest.blob_sizes())


def _count(layout: Layout, ledger: Ledger, sha256s: Iterable[str]) -> None:
    """Count these blobs as they are now, committed and in quarantine."""
    with contextlib.suppress(OSError):  # the next recount corrects the ledger
        for sha256 in sha256s:
            ledger.count_blob(sha256, blobs.size(layout, sha256) or 0)
            ledger.count_quarantined(sha256, deletion.quarantined_bytes(layout, sha256))


def _restore(
    layout: Layout, ledger: Ledger, refs: Collection[ModelRef], digest: Digest, manifest: Manifest
) -> repair.Restored:
    """Restore a snapshot, and count its blobs afterwards."""
    try:
        return repair.restore(layout, refs, digest, manifest)
    finally:
        _count(layout, ledger, manifest.blob_sizes())


def _quarantine_rotten(
    layout: Layout,
    ledger: Ledger,
    notes: HashNotes,
    here: Sequence[tuple[Digest, Manifest]],
    manifests: Sequence[Manifest],
) -> None:
    """Hash the blobs of new versions of which nothing tells that they are as when they were hashed, and quarantine
    those that are wrong: the publication ends with `blob_gone`, and snapshots that link them are withdrawn at the next
    look."""
    with durable.disk_errors("looking at committed blobs"):
        listed = {sha256 for manifest in manifests for sha256 in manifest.packed.blobs()}
        right, wrong = repair.hash_unproven(layout, repair.find_unproven(layout, here, listed, notes.find))
        notes.add(right)
        for sha256 in wrong:
            deletion.quarantine(layout, ledger, sha256)


def _quarantine_unlisted(layout: Layout, ledger: Ledger, digest: Digest) -> None:
    """Quarantine the blobs of a snapshot without a manifest that were written to since they were hashed, and are
    wrong."""
    with durable.disk_errors(f"looking at snapshot {digest}"):
        for sha256 in repair.find_rotten_unlisted(layout, digest):
            deletion.quarantine(layout, ledger, sha256)


def _withdraw(
    layout: Layout,
    ledger: Ledger,
    notes: HashNotes,
    refs: Collection[ModelRef],
    digest: Digest,
    manifest: Manifest | None,
) -> None:
    """Delete names and their snapshot, in use or not: open files stay usable. First, `repair.rescue` its files, and
    note what its record says of its blobs. `manifest`: None if it went bad."""
    belongs = (lambda _sha256: True) if manifest is None else manifest.blob_sizes().__contains__
    with durable.disk_errors(f"withdrawing snapshot {digest}"):
        for ref in refs:
            snapshots.delete_name(layout, ref)
        for sha256 in repair.rescue(layout, digest, belongs):
            ledger.count_blob(sha256, blobs.size(layout, sha256) or 0)
        if manifest is None:
            recorded = repair.list_recorded_unlisted(layout, digest)
        else:
            recorded = repair.list_recorded(layout, digest, manifest)
        snapshots.delete(layout, digest)
        notes.add({sha256: seen for sha256, seen in recorded.items() if blobs.is_unlinked(layout, sha256)})
