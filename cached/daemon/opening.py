"""Open the node: lock and recover its root, and take over what an earlier daemon left.

Law: nothing is fetched, evicted or listened to here. An `AsyncExitStack` closes what is opened, the last one first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError
from cached.contract.layout import Layout
from cached.contract.program import limits
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State
from cached.core.space import Ledger
from cached.daemon.config import Config
from cached.daemon.metrics import DaemonMetrics
from cached.node.cluster import Cluster
from cached.node.disk_watch import DiskWatch
from cached.node.inventory import Inventory
from cached.node.recount import Marks, read_marks
from cached.node.start_index import StartIndex
from cached.node.status_files import AdoptedVersion, StatusFiles
from cached.node.threads import Blocking
from cached.node.tree_watch import TreeWatch
from cached.store.blob.digest_journal import DigestJournal
from cached.store.blob.hash_notes import HashNotes
from cached.store.disk import durable, verity
from cached.store.disk.root import Root, list_remarks
from cached.store.start import recovery

_log = logging.getLogger("holdfast")

_UNFINISHED = frozenset({State.QUEUED, State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING})


@dataclass(frozen=True, slots=True)
class OpenedRoot:
    """The root, locked for this daemon: `blocking` are the threads for calls that wait for its disk, `sealing` whether
    its blobs are sealed by fs-verity."""

    layout: Layout
    root: Root
    blocking: Blocking
    sealing: verity.Sealing


@dataclass(frozen=True, slots=True)
class OpenedNode(OpenedRoot):
    """A recovered root, as the parts of the daemon share it: what it holds, the space that this takes, and what watches
    it; where the daemon tells of it."""

    inventory: Inventory
    journal: DigestJournal
    notes: HashNotes
    start_index: StartIndex
    ledger: Ledger
    disk_watch: DiskWatch
    tree_watch: TreeWatch
    status_files: StatusFiles
    cluster: Cluster
    metrics: DaemonMetrics


@dataclass(frozen=True, slots=True)
class Remains:
    """What an earlier daemon left to do: snapshots to discard, versions to fetch again, statuses to adopt. `marks`: of
    the blobs' folders as they were counted; None: they were not."""

    damaged: Collection[Digest]
    lost: Collection[ModelRef]
    statuses: Mapping[ModelRef, recovery.FoundStatus]
    marks: Marks | None


async def open_root(stack: contextlib.AsyncExitStack, config: Config) -> OpenedRoot:
    """Lock the root. Raises `Permanent` where it is of no use."""
    layout = Layout(config.root)
    root, blocking = stack.enter_context(contextlib.closing(Root(layout))), Blocking(4)
    stack.push_async_callback(asyncio.to_thread, blocking.close)
    for remark in list_remarks(layout):
        _log.warning("%s", remark)
    return OpenedRoot(layout, root, blocking, await blocking.run(verity.choose, layout, config.fs_verity))


async def open_node(
    stack: contextlib.AsyncExitStack, config: Config, opened: OpenedRoot, cluster: Cluster, stopped: Callable[[], bool]
) -> tuple[OpenedNode, Remains]:
    """Recover an opened root. `stopped`: whether the daemon ends because it was told to."""
    layout, root, blocking = opened.layout, opened.root, opened.blocking
    marks = await blocking.run(_read_marks, layout)
    recovered = await blocking.run(_recover, layout)
    inventory = Inventory(layout, recovered)
    start_index = StartIndex(layout, root, inventory, blocking, stopped, is_believed=not recovered.are_blobs_read)
    stack.push_async_exit(start_index.leave)  # after the ends of all that writes, which come later here
    disk_watch = stack.enter_context(contextlib.closing(await blocking.run(DiskWatch, root)))
    status_files = StatusFiles(layout.public, config.node, root.check)
    stack.push_async_callback(asyncio.to_thread, status_files.close)
    tree_watch = stack.enter_context(contextlib.closing(TreeWatch(layout, asyncio.get_running_loop())))
    ledger = Ledger(config.quota, disk_watch.space)
    ledger.count_all(recovered.on_disk)
    node = OpenedNode(
        layout=layout,
        root=root,
        blocking=blocking,
        sealing=opened.sealing,
        inventory=inventory,
        journal=DigestJournal(layout.digests, recovered.digests),
        notes=HashNotes(layout.hashed, recovered.hashed),
        start_index=start_index,
        ledger=ledger,
        disk_watch=disk_watch,
        tree_watch=tree_watch,
        status_files=status_files,
        cluster=cluster,
        metrics=DaemonMetrics(),
    )
    statuses = await blocking.run(recovery.read_statuses, layout, recovered)
    remains = Remains(recovered.damaged, recovered.lost, statuses, marks if recovered.are_blobs_read else None)
    return node, remains  # the other tables of the recovery, as large as those that were made of them, end here


def adopt_statuses(
    before: Mapping[ModelRef, recovery.FoundStatus],
    status_files: StatusFiles,
    inventory: Inventory,
    lost: Collection[ModelRef],
) -> dict[ModelRef, Digest | None]:
    """Publish the status of each held version where its file does not have it, and remove stale status files. Return
    the versions to fetch, with their pins: unfinished at the last stop, or `lost` since."""
    unfinished: dict[ModelRef, Digest | None] = {}
    for ref, found in before.items():
        old = found.status
        status_files.adopt(ref, old)
        if ref in inventory.models:
            continue
        if old.state in _UNFINISHED or ref in lost:
            unfinished[ref] = _parse_pin(old)
            status_files.reset(ref, State.QUEUED, old.source, unfinished[ref])
        else:
            status_files.drop(ref)
    unfinished |= {ref: None for ref in lost if ref not in before}
    for ref, digest in inventory.models.items():
        last = before.get(ref)
        if ref not in inventory.fetched:
            inventory.adopt(ref, _find_old_source(None if last is None else last.status, digest))
        pinned, record = last is not None and last.status.pinned, inventory.fetched[ref]
        version = AdoptedVersion(digest, inventory.size(ref), pinned, record.source, record.verdict)
        status_files.adopt_ready(ref, version, is_exact=last is not None and last.is_exact)
    status_files.sweep()
    return unfinished


def _find_old_source(status: ModelStatus | None, digest: Digest) -> str:
    """Return the source of `digest` that an older release wrote in a `ready` status; empty where unknown."""
    if status is None or status.state is not State.READY or status.digest != str(digest):
        return ""
    return status.source


def _parse_pin(status: ModelStatus) -> Digest | None:
    try:
        return Digest.parse(status.digest) if status.pinned and status.digest else None
    except HoldfastError:
        return None


def _read_marks(layout: Layout) -> Marks | None:
    try:
        return read_marks(layout)
    except OSError:  # the recovery reads the same, and says what is wrong
        return None


def _recover(layout: Layout) -> recovery.Recovered:
    try:
        return recovery.recover(layout)
    except OSError as error:
        raise limits.find_limit_error(error, f"reading {layout.root}") or durable.refuse_root(
            f"{error.filename or layout.root}: {error.strerror or error}", "check the node's disk and kernel log"
        ) from error
