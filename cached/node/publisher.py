"""Keep the store in order: publish, evict, take bad content out of use, sweep what nothing refers to.

Law: the only one who makes or removes what holds on disk, one step at a time: a lock keeps a version from being
published into a snapshot that is just being deleted. After each step the holdings, the board and the ledger say what
the disk says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.manifest import Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import State
from cached.core.space import Ledger
from cached.node.cluster import Surroundings
from cached.node.inventory import Holdings, look_at_leases
from cached.node.log_once import Saying
from cached.node.status_files import Board, Progress
from cached.node.threads import Blocking
from cached.store import blobs, deletion, fetched, repair, snapshots
from cached.store.claims import Claims
from cached.store.digest_journal import DigestJournal
from cached.store.disk import durable
from cached.store.disk.root import Root
from cached.store.fetched import FetchRecord

_log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Ids = Callable[[], Collection[str]]  # asked when it matters: between asking and the lock things change


@dataclass(frozen=True, slots=True)
class NodeParts:
    """What holds on this node, and who has to know."""

    layout: Layout
    root: Root
    holdings: Holdings
    board: Board
    ledger: Ledger
    blocking: Blocking
    surroundings: Surroundings
    journal: DigestJournal


class Janitor:
    """One at a time."""

    def __init__(self, parts: NodeParts) -> None:
        self._layout = parts.layout
        self._root = parts.root
        self._holdings = parts.holdings
        self._board = parts.board
        self._ledger = parts.ledger
        self._blocking = parts.blocking
        self._surroundings = parts.surroundings
        self._saying = Saying(_log)
        self.claims = Claims(parts.journal)
        self._deletion = deletion.Deletion(parts.layout, self.claims, parts.ledger, parts.holdings.links)
        self._turn = asyncio.Lock()

    async def look_at_leases(self) -> None:
        """See which snapshots are in use."""
        digests = frozenset(self._holdings.models.values())
        self._holdings.saw_leases(await self._blocking.run(look_at_leases, self._layout, digests))

    async def publish(self, ref: ModelRef, manifest: Manifest, record: FetchRecord, notes: Ids) -> Digest:
        """Give `ref` the snapshot of `manifest`, whose blobs are all committed, and forget the `notes`: the ids in the
        digest journal that said which they are. `record` says what it was fetched for. Content that had the name stays
        for whoever holds its lease. Once begun it goes through, cancelled or not."""
        async with self._turn:
            try:
                journal = self.claims.journal
                publish = partial(_publish, self._layout, journal, ref, manifest, record, notes())
                digest = await self._blocking.finish(_on_root, self._root, publish)
            except BaseException:  # a snapshot that the disk refused its name is known too, or nobody would sweep it
                if await self._blocking.run(snapshots.is_there, self._layout, manifest.digest):
                    self._holdings.add_snapshot(manifest.digest, manifest)
                raise
            before = self._holdings.models.get(ref)
            self._holdings.add(ref, manifest, record)
            self._board.know(ref, str(digest), None)
            if before not in (None, digest):
                _log.warning("%s: leads to %s now, no longer to %s", ref, digest, before)
            self.tell()
            return digest

    def held(self, ref: ModelRef) -> tuple[FetchRecord, Manifest] | None:
        """What `ref` was fetched for, without the files, and its content; None where it is not here."""
        digest = self._holdings.models.get(ref)
        return None if digest is None else (self._holdings.fetched[ref], self._holdings.manifests[digest])

    async def evict(self, ref: ModelRef, digest: Digest, stays: Callable[[], bool]) -> int | None:
        """Remove a version; returns the bytes given back, None where it is in use or is another by now.

        `stays` is asked last of all whether somebody wants it: a pod may come while its label is being withdrawn.
        """
        async with self._turn:
            if self._holdings.models.get(ref) != digest:
                return None
            before = self._board.get(ref)
            size = self._holdings.size(ref)
            tells = before is not None and before.state is State.READY  # else its status speaks of a fetch under way
            if tells:
                self._board.move(ref, State.EVICTING, Progress(size, size, None, None))
            try:
                freed = await self._remove(ref, digest, stays)
            except HoldfastError as error:
                self._saying.trouble(f"eviction of {ref}", str(error))
                freed = None
            if freed is None:
                if tells and before is not None:
                    self._board.ready(ref, digest, size, before.pinned, before.source)
                return None
            self._board.know(ref, None, None)
            if tells:
                self._board.drop(ref)
            self._saying.fine(f"eviction of {ref}")
            _log.info("%s: evicted, %d bytes given back", ref, freed)
            return freed

    async def _remove(self, ref: ModelRef, digest: Digest, stays: Callable[[], bool]) -> int | None:
        """Delete the name, and the snapshot with its last name: then the node's label goes before it."""
        last = self._holdings.names(digest) == [ref]
        manifest = self._holdings.manifests[digest] if last else None
        async with self._surroundings.withdrawn(digest) if last else contextlib.nullcontext():
            if stays():
                return None
            freed = await self._do(deletion.evict, self._deletion, ref, digest, manifest)
            if freed is not None:
                self._holdings.remove(ref)
                if last:
                    self._holdings.drop_snapshot(digest)
                    self.tell()
            return freed

    async def quarantine(self, sha256: str) -> list[ModelRef]:
        """Take a blob whose bytes went bad out of use, with every snapshot that links it; returns their names.

        The blob goes first: after a crash between the two steps nobody takes it for a good one. The snapshots' other
        blobs stay, to be linked again.
        """
        async with self._turn:
            await self._do(deletion.quarantine, self._layout, self._ledger, sha256)
            gone: list[ModelRef] = []
            for digest in [digest for digest, sizes in self._holdings.blobs.items() if sha256 in sizes]:
                async with self._surroundings.withdrawn(digest):
                    gone += await self._lose(digest)
            return gone

    async def lose(self, digest: Digest) -> list[ModelRef]:
        """Take away a snapshot whose own manifest went bad; returns its names. Its blobs stay, to be linked again, and
        so does what its files alone have."""
        async with self._turn:
            if digest not in self._holdings.manifests:
                return []
            async with self._surroundings.withdrawn(digest):
                return await self._lose(digest)

    async def restore(self, suspects: Collection[Digest]) -> list[ModelRef]:
        """Put back what somebody deleted or replaced of these snapshots; returns the names of those whose bytes are
        gone: they are here no more."""
        gone: list[ModelRef] = []
        async with self._turn:
            todo = list(suspects)
            while todo:
                digest = todo.pop(0)
                if (manifest := self._holdings.manifests.get(digest)) is None:
                    continue
                refs = self._holdings.names(digest)
                _log.error(
                    "snapshot %s (%s): somebody deleted or replaced a part of it", digest, ", ".join(map(str, refs))
                )
                restored = await self._do(_restore, self._layout, self._ledger, refs, digest, manifest)
                if restored.lost:
                    async with self._surroundings.withdrawn(digest):
                        gone += await self._lose(digest, "somebody deleted files of it on this node")
                else:
                    _log.warning("snapshot %s: is whole again", digest)
                sharing = (each for each, sizes in self._holdings.blobs.items() if restored.condemned & sizes.keys())
                todo += [each for each in sharing if each != digest and each not in todo]
        return gone

    async def _lose(self, digest: Digest, why: str = "a file of it went bad on this node's disk") -> list[ModelRef]:
        """A snapshot has a bad file: take its names and itself away; returns the names."""
        refs = self._holdings.names(digest)
        for ref in refs:
            _log.error("%s: withdrawn: %s; it is fetched again", ref, why)
        self._surroundings.lost(refs, f"{why}; it is fetched again")
        belongs = self._holdings.blobs[digest].__contains__
        await self._do(_withdraw, self._layout, self._ledger, refs, digest, belongs)
        for ref in refs:
            self._holdings.remove(ref)
            self._board.know(ref, None, None)
            status = self._board.get(ref)
            if status is not None and status.state is State.READY:
                self._board.drop(ref)
        self._holdings.drop_snapshot(digest)
        self.tell()
        return refs

    async def discard(self, damaged: Collection[Digest]) -> None:
        """Remove snapshots whose manifest is not what their name says: publishing them again makes them anew."""
        async with self._turn:
            for digest in damaged:
                _log.error("snapshot %s: it is damaged, or was left when a file of it went bad; it is removed", digest)
                await self._do(_withdraw, self._layout, self._ledger, (), digest, _anything)

    async def drop_unnamed(self) -> None:
        """Remove snapshots that no name points at, in use excepted."""
        async with self._turn:
            for digest in self._holdings.unnamed():
                manifest = self._holdings.manifests[digest]
                freed = await self._do(deletion.delete_unnamed, self._deletion, digest, manifest)
                if freed is not None:
                    self._holdings.drop_snapshot(digest)

    async def sweep(self) -> int:
        """Delete blobs that nothing links and partial blobs, except what versions under way claim, and the quarantine;
        returns the bytes given back."""
        async with self._turn:
            swept = await self._do(deletion.sweep, self._deletion)
            if swept.trouble is not None:
                raise swept.trouble
            return swept.committed + swept.dying

    def tell(self) -> None:
        """Tell the cluster what is here."""
        self._surroundings.published(frozenset(self._holdings.models.values()))

    async def _do(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Take a step on the disk, if it is the one that is known here."""
        return await self._blocking.run(_on_root, self._root, partial(step, *args, **kwargs))


def _on_root(root: Root, step: Callable[[], T]) -> T:
    """Take a step unless another root, or none, is at this one's path."""
    root.check()
    return step()


def _publish(
    layout: Layout,
    journal: DigestJournal,
    ref: ModelRef,
    manifest: Manifest,
    record: FetchRecord,
    notes: Collection[str],
) -> Digest:
    if snapshots.is_there(layout, manifest.digest):
        repair.rejoin(layout, manifest.digest, manifest)  # what is made anew may have a file that no blob has
    digest = snapshots.publish(layout, manifest, snapshots.now())
    fetched.write(layout, ref, record)  # before the name: a record of other content than the name's counts for nothing
    snapshots.point(layout, ref, digest)
    journal.forget(notes)
    return digest


def _restore(
    layout: Layout, account: deletion.Account, refs: Collection[ModelRef], digest: Digest, manifest: Manifest
) -> repair.Restored:
    """Restore a snapshot, and count its blobs as they are then."""
    try:
        return repair.restore(layout, refs, digest, manifest)
    finally:
        with contextlib.suppress(OSError):  # a disk that does not say: the next recount finds out
            for sha256 in manifest.blob_sizes():
                account.count_blob(sha256, blobs.size(layout, sha256) or 0)
                account.count_quarantined(sha256, deletion.quarantined_bytes(layout, sha256))


def _anything(_sha256: str) -> bool:
    """Nobody knows what belongs to a snapshot whose manifest cannot be read."""
    return True


def _withdraw(
    layout: Layout,
    account: deletion.Account,
    refs: Collection[ModelRef],
    digest: Digest,
    belongs: Callable[[str], bool],
) -> None:
    """Remove names and their snapshot, in use or not: whoever has its files open keeps them, nobody new gets them. What
    only it had of what `belongs` to it stays, as blobs."""
    try:
        for ref in refs:
            snapshots.unpoint(layout, ref)
        for sha256 in repair.rescue(layout, digest, belongs):
            account.count_blob(sha256, blobs.size(layout, sha256) or 0)
        trashed = snapshots.trash(layout, digest)
        if trashed is not None:
            snapshots.delete_trash(trashed)
    except OSError as error:
        raise durable.disk_error(error, f"withdrawing snapshot {digest}") from error
