"""Wire the daemon together and run it: the only module that knows every part.

Law: parts are connected here and nowhere else. SIGTERM stops the fetches, records durable ranges, and ends with 0.
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
from cached.contract.program.logs import log_to_stderr
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.process import SignalThread
from cached.contract.program.thread_pool import start_pool
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State
from cached.core.space import Ledger, OnDisk
from cached.daemon import connection_limits
from cached.daemon.catalog_file import CatalogFile
from cached.daemon.config import Config, parse_config
from cached.daemon.control_api import make_control_app
from cached.daemon.freshness import PeriodicResolve
from cached.daemon.listeners import ControlListener, open_listeners
from cached.daemon.read_api import make_read_app
from cached.daemon.reconciler import Reconciler, ReconcilerParts
from cached.daemon.service import DaemonService
from cached.fetch.downloads import Downloads
from cached.fetch.version import VersionFetches, VersionFetchParts
from cached.fetch.workers import Workers, WorkerSettings
from cached.kube.kubeconfig import find_cluster
from cached.kube.kubernetes import KubernetesCluster
from cached.node.cluster import Cluster, NoCluster
from cached.node.disk_watch import DiskWatch
from cached.node.gc_pauses import collect_when_quiet
from cached.node.inspection import Inspection
from cached.node.inventory import Inventory
from cached.node.log_once import LogOnce
from cached.node.publisher import NodeParts, Publisher
from cached.node.recount import Recount
from cached.node.scrub import Scrub, ScrubParts
from cached.node.status_files import StatusFiles
from cached.node.threads import Blocking
from cached.sources.registry import open_source
from cached.store import recovery
from cached.store.digest_journal import DigestJournal
from cached.store.disk import durable, preflight, verity
from cached.store.disk.root import Root
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings

_log = logging.getLogger("holdfast")

_PATIENCE_S = 15.0  # for a shutdown: half of the kubelet's usual grace period
_LEAVING_S = 0.5  # to unlink the socket at a forced exit
_HEARTBEAT_S = 2.0  # the design asks for 5 at most
_TELL_S = 1.0
_SPACE_S = 4.0
_SPACE_A_LOOK = 3  # leases and files are checked every 12 s (design: 15 at most); more often costs with many versions
_DELETING_S = 1.0  # an `rm -r` of the root may still be running
_LEAST_FILES = 128  # open at once, besides two a connection: partial blobs, idle connections, the daemon's own
_LEAST_STANDING = 16  # clients of each listener, whatever the limit
_DISK = "the root's disk"
_LOOKUPS = 8  # threads for DNS lookups and for local sources
_SWITCH_S = 0.0005  # at Python's 5 ms a hashing thread waits for the interpreter longer than it hashes
_LISTING_STALLS = 20  # stall timeouts for a listing of many pages: ten minutes at the default of 30 s
_UNFINISHED = frozenset({State.QUEUED, State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING})


def main(argv: Sequence[str]) -> int:
    """Run `holdfast daemon`; return the exit code."""
    config = parse_config(argv)
    # Of libraries what is wrong and no more: looking for credentials, the S3 one writes down what it was answered.
    log_to_stderr(config.log_level, ours=("cached", _log.name))
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o022)  # folders get their final mode from mkdir itself, also before a crash
    ending = SignalThread(_PATIENCE_S, partial(_force_exit, Layout(config.root)))
    try:
        limits.start_thread(ending, "the daemon")
        _require_proc()
        standing = _standing(limits.raise_open_files(_LEAST_FILES + 2 * config.connections))
        asyncio.run(_run(config, ending, standing))
    except (HoldfastError, OSError, RuntimeError) as error:
        told = error if isinstance(error, HoldfastError) else limits.find_limit_error(error, "the daemon")
        if told is None:
            raise
        if ending.signalled:
            return EXIT_DONE  # no thread for asyncio's own pool shutdown, after all of ours ended
        sys.stderr.write(f"holdfast daemon: {told}\n")
        return EXIT_FAILED
    return EXIT_DONE


def _require_proc() -> None:
    """Refuse to start without /proc: the socket and the scrub use its short names of open folders."""
    if not os.path.exists("/proc/self/fd"):
        raise Permanent("no_proc", "/proc is not mounted here", "mount proc at /proc in the daemon's container")


def _standing(files: int) -> int:
    """Return the connection limit of each listener for a limit of open files; downloads come first."""
    most = min(connection_limits.MOST_CONNECTIONS, max(_LEAST_STANDING, (files - _LEAST_FILES) // 4))
    if most < connection_limits.MOST_CONNECTIONS:
        _log.warning("the limit of open files is %d: at most %d connections a listener", files, most)
    return most


def _force_exit(layout: Layout, why: str) -> None:
    """Log and unlink the socket before a forced exit (hung disk, blocked library); the disk is as after a kill."""
    threads = ", ".join(sorted(thread.name for thread in threading.enumerate()))
    _log.warning("%s: leaving at once; threads: %s", why, threads)
    unlinking = threading.Thread(target=_unlink_socket, args=(layout,), name="leaving", daemon=True)
    with contextlib.suppress(HoldfastError):  # no thread: the next start replaces the socket
        limits.start_thread(unlinking, "leaving")
        unlinking.join(_LEAVING_S)  # the disk may hang


def _unlink_socket(layout: Layout) -> None:
    with contextlib.suppress(OSError):
        layout.socket.unlink(missing_ok=True)


def _log_loop_error(saying: LogOnce, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log once that a listener lacks descriptors to accept: asyncio retries each second and logs a traceback each
    time."""
    error = context.get("exception")
    short = None if error is None else limits.find_limit_error(error, "accepting a connection")
    if short is None:
        loop.default_exception_handler(context)
    else:
        saying.log_error("listeners", str(short))


async def _run(config: Config, ending: SignalThread, standing: int) -> None:
    """Run on the root until `stop` is set; after the root was deleted start again with an empty one."""
    layout = Layout(config.root)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(partial(_log_loop_error, LogOnce(_log)))
    loop.set_default_executor(start_pool(_LOOKUPS, "lookup"))
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
    """The root, and the threads that access it."""

    layout: Layout
    root: Root
    blocking: Blocking


async def _work(
    config: Config, on: _Ground, ending: SignalThread, stop: asyncio.Event, standing: int
) -> tuple[str, int]:
    """Recover the root, create and connect the parts, and run them; return the TCP listener's address."""
    layout, root, blocking = on.layout, on.root, on.blocking
    sealing = await blocking.run(verity.choose, layout, config.fs_verity)
    recovered = await blocking.run(_recover, layout)
    board = StatusFiles(layout.public, config.node, root.check)
    holdings = Inventory(layout, recovered)
    watch = await blocking.run(DiskWatch, root)
    ledger = Ledger(config.quota, watch.space)
    ledger.count_all(OnDisk(recovered.blobs, recovered.ingests, recovered.quarantined))
    around = _surroundings(config)
    journal = DigestJournal(layout.digests, recovered.digests)
    node = NodeParts(layout, root, holdings, board, ledger, blocking, around, journal)
    daemon = DaemonService(node)
    patience = HttpSettings(header_timeout_s=config.stall_timeout_s, stall_window_s=config.stall_timeout_s)
    client = HttpClient(patience)
    bounds = WorkerSettings(config.connections, config.connections_per_origin, config.max_bandwidth, sealing)
    workers = Workers(layout, client, bounds, daemon.counters, journal)
    try:
        flights = Downloads(layout, workers, ledger)
        janitor = Publisher(node)
        await janitor.discard(recovered.damaged)
        janitor.report_published()
        listing_timeout_s = _LISTING_STALLS * config.stall_timeout_s
        fetching = VersionFetchParts(
            layout, flights, board, janitor, blocking, daemon.counters, journal, listing_timeout_s
        )
        transfers = VersionFetches(fetching, lambda uri: open_source(uri, client))
        parts = ReconcilerParts(
            board, holdings, ledger, flights, transfers, janitor, daemon.counters, around, time.monotonic
        )
        scheduler = Reconciler(parts, config.high_watermark, config.low_watermark)
        catalog = CatalogFile(config.catalog, scheduler.use_catalog, daemon.set_not_ready_reason)
        daemon.connect_parts(scheduler, workers, catalog)
        scheduler.resume(_adopt_statuses(layout, board, holdings, recovered.lost))
        scrub = Scrub(
            ScrubParts(
                layout=layout,
                inventory=holdings,
                sealing=sealing,
                busy=workers.busy,
                bad_blob=scheduler.lost_blob,
                bad_snapshot=scheduler.lost_snapshot,
                restore_snapshot=scheduler.put_together,
                count_hashed=daemon.counters.count_scrubbed_bytes,
                count_bad=partial(daemon.counters.verify_failed, "scrub"),
            ),
            config.scrub_rate,
        )
        recount = Recount(node)
        inspection = Inspection(node, janitor, lambda lost: scheduler.resume(dict.fromkeys(lost)), recount.soon)
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        watch.follow(ledger, partial(_set_from_thread, loop, gone))
        ending.set_handler(partial(loop.call_soon_threadsafe, stop.set))
        async with open_listeners(
            config.listen, (layout, blocking), make_read_app(daemon), make_control_app(daemon), standing
        ) as doors:
            freshness = PeriodicResolve(scheduler, transfers, config.resolve_interval_s or 0.0)
            tasks = _Tasks(daemon, node, scheduler, catalog, scrub, freshness, inspection, recount, doors.control)
            await _run_tasks(config, tasks, gone, stop)
            return doors.address
    finally:
        await asyncio.to_thread(workers.stop)
        client.close()
        await asyncio.to_thread(board.close)
        watch.close()


@dataclass(frozen=True, slots=True)
class _Tasks:
    """The parts that run as tasks."""

    daemon: DaemonService
    node: NodeParts
    scheduler: Reconciler
    catalog: CatalogFile
    scrub: Scrub
    freshness: PeriodicResolve
    inspection: Inspection
    recount: Recount
    socket: ControlListener


async def _run_tasks(config: Config, parts: _Tasks, gone: asyncio.Event, stop: asyncio.Event) -> None:
    """Run every task until `stop` is set by a signal or `gone` by the disk watch: the root was deleted."""
    daemon, node, scheduler, scrub = parts.daemon, parts.node, parts.scheduler, parts.scrub
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(scheduler.run(), name="scheduler"),
            group.create_task(parts.catalog.run(), name="catalog"),
            group.create_task(_write_heartbeats(node.status_files, scheduler), name="heartbeat"),
            group.create_task(_check_disk(scheduler, parts.inspection), name="disk"),
            group.create_task(parts.recount.run(), name="recount"),
            group.create_task(parts.socket.keep_open(), name="socket"),
            group.create_task(node.cluster.run(scheduler.wake), name="cluster"),
            group.create_task(_tell_cluster(node), name="telling"),
            group.create_task(collect_when_quiet(scheduler.is_fetching), name="garbage"),
        ]
        if config.scrub_rate > 0:
            tasks.append(group.create_task(scrub.run(), name="scrub"))
        if config.resolve_interval_s is not None:
            tasks.append(group.create_task(parts.freshness.run(), name="freshness"))
        while not stop.is_set() and not gone.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HEARTBEAT_S):
                    await stop.wait()
        if stop.is_set():
            _log.info("stopping: durable ranges are recorded; the next start resumes from them")
        else:
            _log.error("%s was deleted: beginning anew, with nothing", node.layout.root)
        daemon.set_not_ready_reason("stopping")
        for task in tasks:
            task.cancel()


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event of the loop from a thread; do nothing once the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


async def _write_heartbeats(board: StatusFiles, scheduler: Reconciler) -> None:
    """Write the heartbeat every 2 s; after the first write that succeeds again, end the backoffs."""
    well, saying = True, LogOnce(_log)
    while True:
        board.write_heartbeat()
        if (hanging := board.hanging) is None:
            saying.log_recovery(_DISK)
        else:
            saying.log_error(_DISK, f"it does not answer ({hanging.remedy})")
        await asyncio.sleep(_HEARTBEAT_S)
        if not well and board.trouble_writing is None:
            scheduler.try_again()
        well = board.trouble_writing is None


async def _tell_cluster(node: NodeParts) -> None:
    """Write Events and the node's summary at each status change: a fetch may be shorter than any polling period. Each
    change is written once."""
    summarised = -math.inf
    while True:
        node.status_files.news.clear()
        node.cluster.tell_pods(node.status_files.get)
        if time.monotonic() - summarised >= _TELL_S:
            summarised = time.monotonic()
            try:
                use = node.ledger.compute_use()
            except HoldfastError:  # reported by the part that works on the disk
                use = node.ledger.compute_use_without_disk()
            node.cluster.summarise(node.status_files.all(), use.used + use.dying, use.capacity)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TELL_S):
                await node.status_files.news.wait()


def _surroundings(config: Config) -> Cluster:
    cluster = find_cluster(os.environ) if config.kube == "auto" else None
    if cluster is None:
        return NoCluster()
    _log.info("cluster: %s, as node %s", cluster.server, config.node)
    return KubernetesCluster(cluster, config.node)


async def _check_disk(scheduler: Reconciler, inspection: Inspection) -> None:
    while True:
        await inspection.check()
        await scheduler.look_at_leases()
        scheduler.plan_all()
        for _ in range(_SPACE_A_LOOK):
            scheduler.try_what_fits()
            await asyncio.sleep(_SPACE_S)


def _adopt_statuses(
    layout: Layout, board: StatusFiles, holdings: Inventory, lost: Collection[ModelRef]
) -> dict[ModelRef, Digest | None]:
    """Publish the status of each held version, and remove stale status files. Return the versions to fetch, with their
    pins: unfinished at the last stop, or `lost` since."""
    before = recovery.read_statuses(layout)
    unfinished: dict[ModelRef, Digest | None] = {}
    for ref, old in before.items():
        board.adopt(ref, old)
        if ref in holdings.models:
            continue
        if old.state in _UNFINISHED or ref in lost:
            unfinished[ref] = _pin_of(old)
            board.reset(ref, State.QUEUED, old.source, unfinished[ref])
        else:
            board.drop(ref)
    unfinished |= {ref: None for ref in lost if ref not in before}
    for ref, digest in holdings.models.items():
        old_status = before.get(ref)
        holdings.adopt(ref, _old_source(old_status, digest))
        pinned = old_status is not None and old_status.pinned
        board.set_ready(ref, digest, holdings.size(ref), pinned, holdings.fetched[ref].source)
        board.set_verdict(ref, holdings.fetched[ref].verdict)
    board.sweep()
    return unfinished


def _old_source(status: ModelStatus | None, digest: Digest) -> str:
    """Return the source of `digest` that an older release wrote in a `ready` status; empty where unknown."""
    if status is None or status.state is not State.READY or status.digest != str(digest):
        return ""
    return status.source


def _pin_of(status: ModelStatus) -> Digest | None:
    try:
        return Digest.parse(status.digest) if status.pinned and status.digest else None
    except HoldfastError:
        return None


def _recover(layout: Layout) -> recovery.Recovered:
    try:
        return recovery.recover(layout)
    except OSError as error:
        raise limits.find_limit_error(error, f"reading {layout.root}") or durable.refuse_root(
            f"{error.filename or layout.root}: {error.strerror or error}", "check the node's disk and kernel log"
        ) from error
