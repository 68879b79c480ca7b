"""Wire the daemon together and run it: the only module that knows every part.

Law: parts get each other here and nowhere else. SIGTERM stops the fetches, records what is durable, and ends with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.contract.program import limits
from cached.contract.program.limits import started_pool
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.process import Ending
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State
from cached.core.space import Ledger, OnDisk
from cached.daemon import connection_limits
from cached.daemon.catalog_file import CatalogFile
from cached.daemon.config import Config, parse_config
from cached.daemon.control_api import control
from cached.daemon.freshness import Freshness
from cached.daemon.listeners import ControlDoor, open_doors
from cached.daemon.read_api import reads
from cached.daemon.reconciler import Parts, Scheduler
from cached.daemon.service import Daemon
from cached.fetch.downloads import Flights
from cached.fetch.version import TransferParts, Transfers
from cached.fetch.workers import Workers, WorkerSettings
from cached.kube.kubeconfig import find_cluster
from cached.kube.kubernetes import Membership
from cached.node.cluster import NoCluster, Surroundings
from cached.node.disk_watch import DiskWatch
from cached.node.gc_pauses import collect_when_quiet
from cached.node.inspection import Inspection
from cached.node.inventory import Holdings
from cached.node.log_once import Saying
from cached.node.publisher import Janitor, NodeParts
from cached.node.recount import Recount
from cached.node.scrub import Scrub, ScrubParts
from cached.node.status_files import Board
from cached.node.threads import Blocking
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.store import recovery
from cached.store.digest_journal import DigestJournal
from cached.store.disk import durable, preflight, verity
from cached.store.disk.root import Root
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings

_log = logging.getLogger("holdfast")

_PATIENCE_S = 15.0  # for a farewell: half of the kubelet's usual grace
_LEAVING_S = 0.5  # for a last call to the disk
_HEARTBEAT_S = 2.0  # the design asks for 5 at most
_TELL_S = 1.0
_SPACE_S = 4.0
_SPACE_A_LOOK = 3  # leases and files are looked at every 12 s (the design asks for 15): hundreds of versions cost more
_DELETING_S = 1.0  # whoever deletes a root may not be done with the rest of it
_LEAST_FILES = 128  # open at once, beside two a connection: partial blobs, idle connections, the daemon's own
_LEAST_STANDING = 16  # clients at each door, whatever the limit
_DISK = "the root's disk"
_LOOKUPS = 8  # threads for names in the DNS, and for folders that are sources
_SWITCH_S = 0.0005  # a thread that hashes gets the interpreter back soon: at Python's 5 ms it would wait more than work
_LISTING_STALLS = 20  # a listing of many pages may take ten minutes, where 30 s without progress end a connection
_UNFINISHED = frozenset({State.QUEUED, State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING})


def main(argv: Sequence[str]) -> int:
    """`holdfast daemon`."""
    config = parse_config(argv)
    _log_to_stderr(logging.getLevelNamesMapping()[config.log_level.upper()])
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o022)  # folders get their modes as they are made: a crash finds none with another
    ending = Ending(_PATIENCE_S, partial(_leave, Layout(config.root)))
    try:
        limits.start(ending, "the daemon")
        _require_proc()
        standing = _standing(limits.raise_open_files(_LEAST_FILES + 2 * config.connections))
        asyncio.run(_run(config, ending, standing))
    except (HoldfastError, OSError, RuntimeError) as error:
        told = error if isinstance(error, HoldfastError) else limits.shortage(error, "the daemon")
        if told is None:
            raise
        if ending.asked:
            return EXIT_DONE  # asyncio takes a thread to end its own pool, after everything of ours has ended
        sys.stderr.write(f"holdfast daemon: {told}\n")
        return EXIT_FAILED
    return EXIT_DONE


def _require_proc() -> None:
    """Refuse to start without /proc, whose short names of open folders the socket and the scrub go by."""
    if not os.path.exists("/proc/self/fd"):
        raise Permanent("no_proc", "/proc is not mounted here", "mount proc at /proc in the daemon's container")


def _standing(files: int) -> int:
    """How many clients may stand at each door where the process may have so many files open: fetches come first."""
    most = min(connection_limits.MOST_CONNECTIONS, max(_LEAST_STANDING, (files - _LEAST_FILES) // 4))
    if most < connection_limits.MOST_CONNECTIONS:
        _log.warning("the limit of open files is %d: at most %d connections at each door", files, most)
    return most


def _log_to_stderr(level: int) -> None:
    """Log what is ours from `level` on, and of libraries what is wrong and no more: looking for credentials, the S3
    one writes down what it was answered."""
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, format=form)
    for ours in ("cached", _log.name):
        logging.getLogger(ours).setLevel(level)


def _leave(layout: Layout, why: str) -> None:
    """Something does not end (a hung disk, a library that waits): what is durable stays, as after a kill."""
    threads = ", ".join(sorted(thread.name for thread in threading.enumerate()))
    _log.warning("%s: leaving at once; threads: %s", why, threads)
    unlinking = threading.Thread(target=_unlink_socket, args=(layout,), name="leaving", daemon=True)
    with contextlib.suppress(HoldfastError):  # no thread to be had: the next start replaces the socket
        limits.start(unlinking, "leaving")
        unlinking.join(_LEAVING_S)  # the disk may be what does not answer


def _unlink_socket(layout: Layout) -> None:
    with contextlib.suppress(OSError):
        layout.socket.unlink(missing_ok=True)


def _explain(saying: Saying, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say once that a door can let nobody in for want of descriptors: asyncio tries again each second, and would tell
    each time, with a traceback."""
    error = context.get("exception")
    short = None if error is None else limits.shortage(error, "letting a client in")
    if short is None:
        loop.default_exception_handler(context)
    else:
        saying.trouble("doors", str(short))


async def _run(config: Config, ending: Ending, standing: int) -> None:
    """One life on one root. Where somebody deletes the root there is nothing to go on with: begin with a new one."""
    layout = Layout(config.root)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(partial(_explain, Saying(_log)))
    loop.set_default_executor(started_pool(_LOOKUPS, "lookup"))
    while True:
        recovery.prepare(layout)
        root, blocking = Root(layout), Blocking(4)
        for remark in preflight.remarks(layout):
            _log.warning("%s", remark)
        try:
            address = await _work(config, _Ground(layout, root, blocking), ending, stop, standing)
        finally:
            await asyncio.to_thread(blocking.close)
            root.close()
        if stop.is_set():
            return
        config = replace(config, listen=address)
        await asyncio.sleep(_DELETING_S)


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a life works on."""

    layout: Layout
    root: Root
    blocking: Blocking


async def _work(config: Config, on: _Ground, ending: Ending, stop: asyncio.Event, standing: int) -> tuple[str, int]:
    """Recover what is there, make the parts, know each other, and run; returns the address that was listened on."""
    layout, root, blocking = on.layout, on.root, on.blocking
    sealing = await blocking.run(verity.choose, layout, config.fs_verity)
    recovered = await blocking.run(_recover, layout)
    board = Board(layout.public, config.node, root.check)
    holdings = Holdings(layout, recovered)
    watch = await blocking.run(DiskWatch, root)
    ledger = Ledger(config.quota, watch.space)
    ledger.count_all(OnDisk(recovered.blobs, recovered.ingests, recovered.quarantined))
    around = _surroundings(config)
    journal = DigestJournal(layout.digests, recovered.digests)
    node = NodeParts(layout, root, holdings, board, ledger, blocking, around, journal)
    daemon = Daemon(node)
    patience = HttpSettings(header_timeout_s=config.stall_timeout_s, stall_window_s=config.stall_timeout_s)
    client = HttpClient(patience)
    bounds = WorkerSettings(config.connections, config.connections_per_origin, config.max_bandwidth, sealing)
    workers = Workers(layout, client, bounds, daemon.counters, journal)
    try:
        flights = Flights(layout, workers, ledger)
        janitor = Janitor(node)
        await janitor.discard(recovered.damaged)
        janitor.tell()
        listing_timeout_s = _LISTING_STALLS * config.stall_timeout_s
        fetching = TransferParts(layout, flights, board, janitor, blocking, daemon.counters, journal, listing_timeout_s)
        transfers = Transfers(fetching, partial(_open, client))
        parts = Parts(board, holdings, ledger, flights, transfers, janitor, daemon.counters, around, time.monotonic)
        scheduler = Scheduler(parts, config.high_watermark, config.low_watermark)
        catalog = CatalogFile(config.catalog, scheduler.use_catalog, daemon.waits_for)
        daemon.drive(scheduler, workers, catalog)
        scheduler.resume(_take_up(layout, board, holdings, recovered.lost))
        scrub = Scrub(
            ScrubParts(
                layout=layout,
                holdings=holdings,
                sealing=sealing,
                busy=workers.busy,
                bad_blob=scheduler.lost_blob,
                bad_snapshot=scheduler.lost_snapshot,
                apart=scheduler.put_together,
                count_hashed=daemon.counters.scrubbed,
                count_bad=partial(daemon.counters.verify_failed, "scrub"),
            ),
            config.scrub_rate,
        )
        recount = Recount(node)
        inspection = Inspection(node, janitor, lambda lost: scheduler.resume(dict.fromkeys(lost)), recount.soon)
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        watch.follow(ledger, partial(_tell, loop, gone))
        ending.farewell(partial(loop.call_soon_threadsafe, stop.set))
        async with open_doors(config.listen, (layout, blocking), reads(daemon), control(daemon), standing) as doors:
            freshness = Freshness(scheduler, transfers, config.resolve_interval_s or 0.0)
            tasks = _Tasks(daemon, node, scheduler, catalog, scrub, freshness, inspection, recount, doors.control)
            await _live(config, tasks, gone, stop)
            return doors.address
    finally:
        await asyncio.to_thread(workers.stop)
        client.close()
        await asyncio.to_thread(board.close)
        watch.close()


@dataclass(frozen=True, slots=True)
class _Tasks:
    """What runs."""

    daemon: Daemon
    node: NodeParts
    scheduler: Scheduler
    catalog: CatalogFile
    scrub: Scrub
    freshness: Freshness
    inspection: Inspection
    recount: Recount
    socket: ControlDoor


async def _live(config: Config, parts: _Tasks, gone: asyncio.Event, stop: asyncio.Event) -> None:
    """Run every task until a signal asks to stop, or the root is gone for good."""
    daemon, node, scheduler, scrub = parts.daemon, parts.node, parts.scheduler, parts.scrub
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(scheduler.run(), name="scheduler"),
            group.create_task(parts.catalog.run(), name="catalog"),
            group.create_task(_beat(node.board, scheduler), name="heartbeat"),
            group.create_task(_look_at_disk(scheduler, parts.inspection), name="disk"),
            group.create_task(parts.recount.run(), name="recount"),
            group.create_task(parts.socket.keep(), name="socket"),
            group.create_task(node.surroundings.run(scheduler.wake), name="cluster"),
            group.create_task(_tell_around(node), name="telling"),
            group.create_task(collect_when_quiet(scheduler.is_fetching), name="garbage"),
        ]
        if config.scrub_rate > 0:
            tasks.append(group.create_task(scrub.run(), name="scrub"))
        if config.resolve_interval_s is not None:
            tasks.append(group.create_task(parts.freshness.run(), name="freshness"))
        await _end(gone, stop)
        if stop.is_set():
            _log.info("stopping: what is under way is recorded and goes on at the next start")
        else:
            _log.error("%s was deleted: beginning anew, with nothing", node.layout.root)
        daemon.waits_for("stopping")
        for task in tasks:
            task.cancel()


def _tell(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event of the loop from a thread; nothing where the loop has ended."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


async def _end(gone: asyncio.Event, stop: asyncio.Event) -> None:
    """Wait until this life is over."""
    while not stop.is_set() and not gone.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HEARTBEAT_S):
                await stop.wait()


async def _beat(board: Board, scheduler: Scheduler) -> None:
    """Show that the daemon lives, and see by that whether the disk takes what it is given."""
    well, saying = True, Saying(_log)
    while True:
        board.beat()
        if (hanging := board.hanging) is None:
            saying.fine(_DISK)
        else:
            saying.trouble(_DISK, f"it does not answer ({hanging.remedy})")
        await asyncio.sleep(_HEARTBEAT_S)
        if not well and board.trouble_writing is None:
            scheduler.try_again()
        well = board.trouble_writing is None


async def _tell_around(node: NodeParts) -> None:
    """Tell pods and people what is new, at once: a fetch may be over in less than any period. Each hears each thing
    once."""
    summarised = -math.inf
    while True:
        node.board.news.clear()
        node.surroundings.tell_pods(node.board.get)
        if time.monotonic() - summarised >= _TELL_S:
            summarised = time.monotonic()
            try:
                use = node.ledger.use()
            except HoldfastError:  # whoever works on the disk says so
                use = node.ledger.use_unseen()
            node.surroundings.summarise(node.board.all(), use.used + use.dying, use.capacity)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TELL_S):
                await node.board.news.wait()


def _surroundings(config: Config) -> Surroundings:
    cluster = find_cluster(os.environ) if config.kube == "auto" else None
    if cluster is None:
        return NoCluster()
    _log.info("cluster: %s, as node %s", cluster.server, config.node)
    return Membership(cluster, config.node)


async def _look_at_disk(scheduler: Scheduler, inspection: Inspection) -> None:
    while True:
        await inspection.look()
        await scheduler.look_at_leases()
        scheduler.plan_all()
        for _ in range(_SPACE_A_LOOK):
            scheduler.try_what_fits()
            await asyncio.sleep(_SPACE_S)


def _take_up(
    layout: Layout, board: Board, holdings: Holdings, lost: Collection[ModelRef]
) -> dict[ModelRef, Digest | None]:
    """Show what is here, and find what was on its way when the daemon last stopped, with its pin, or was `lost` since;
    other status files go."""
    before = recovery.read_statuses(layout)
    unfinished: dict[ModelRef, Digest | None] = {}
    for ref, old in before.items():
        board.adopt(ref, old)
        if ref in holdings.models:
            continue
        if old.state in _UNFINISHED or ref in lost:
            unfinished[ref] = _pin_of(old)
            board.begin(ref, State.QUEUED, old.source, unfinished[ref])
        else:
            board.drop(ref)
    unfinished |= {ref: None for ref in lost if ref not in before}
    for ref, digest in holdings.models.items():
        old_status = before.get(ref)
        holdings.adopt(ref, _told_source(old_status, digest))
        pinned = old_status is not None and old_status.pinned
        board.ready(ref, digest, holdings.size(ref), pinned, holdings.fetched[ref].source)
    board.sweep()
    return unfinished


def _told_source(status: ModelStatus | None, digest: Digest) -> str:
    """Where an older release got `digest` from; only what it called ready tells."""
    if status is None or status.state is not State.READY or status.digest != str(digest):
        return ""
    return status.source


def _pin_of(status: ModelStatus) -> Digest | None:
    try:
        return Digest.parse(status.digest) if status.pinned and status.digest else None
    except HoldfastError:
        return None


def _open(client: HttpClient, uri: str) -> Source:
    return open_source(uri, client)


def _recover(layout: Layout) -> recovery.Recovered:
    try:
        return recovery.recover(layout)
    except OSError as error:
        raise limits.shortage(error, f"reading {layout.root}") or durable.refuse_root(
            f"{error.filename or layout.root}: {error.strerror or error}", "check the node's disk and kernel log"
        ) from error
