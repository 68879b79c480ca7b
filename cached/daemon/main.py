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
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cached.contract.digest import Digest
from cached.contract.errors import HoldfastError, Permanent
from cached.contract.layout import Layout
from cached.contract.program import events, limits
from cached.contract.program.logs import log_to_stderr
from cached.contract.program.options import EXIT_DONE, EXIT_FAILED
from cached.contract.program.process import SignalThread
from cached.contract.program.thread_pool import start_pool
from cached.contract.program.tracing import Tracer, open_tracer
from cached.contract.reference import ModelRef
from cached.contract.status import ModelStatus, State
from cached.core.space import Ledger
from cached.daemon.api.control_api import ControlApi
from cached.daemon.api.explain import Explanations
from cached.daemon.api.listeners import open_listeners
from cached.daemon.api.read_api import make_read_api
from cached.daemon.catalog.catalog_file import CatalogFile
from cached.daemon.catalog.freshness import PeriodicResolve
from cached.daemon.cold_starts import ColdStarts
from cached.daemon.config import Config, parse_config
from cached.daemon.http.server import MOST_CONNECTIONS
from cached.daemon.imports import Imports
from cached.daemon.metrics import DaemonMetrics
from cached.daemon.pool import PoolTls, open_pool, read_pool_tls
from cached.daemon.reconciler import Reconciler
from cached.daemon.service import DaemonService
from cached.fetch.downloads import Downloads
from cached.fetch.pool.node import PoolNode
from cached.fetch.pool.published_chains import PublishedChains
from cached.fetch.resolving.comparison import SourceComparer
from cached.fetch.resolving.lister import SourceLister
from cached.fetch.trace import NoFetchTrace
from cached.fetch.version import VersionFetches
from cached.fetch.workers import PEER_HTTP, Workers, WorkerSettings
from cached.node.cluster import Cluster, NoCluster
from cached.node.disk_watch import DiskWatch
from cached.node.gc_pauses import collect_when_quiet
from cached.node.inspection import Inspection
from cached.node.integrity.doubts import Doubts
from cached.node.integrity.recheck import Recheck
from cached.node.integrity.scrub import Scrub, ScrubPace, ScrubParts
from cached.node.inventory import Inventory
from cached.node.log_once import LogOnce
from cached.node.publisher import Publisher
from cached.node.recount import Marks, Recount, read_marks
from cached.node.start_index import StartIndex
from cached.node.status_files import AdoptedVersion, StatusFiles
from cached.node.threads import Blocking
from cached.node.tree_watch import TreeWatch
from cached.sources.registry import open_source
from cached.store import recovery
from cached.store.digest_journal import DigestJournal
from cached.store.disk import durable, verity
from cached.store.disk.root import Root, list_remarks
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings

if TYPE_CHECKING:  # gRPC is loaded with --csi only
    from cached.csi.driver import Driver, MountedVolumes

_log = logging.getLogger("holdfast")

_PATIENCE_S = 15.0  # for a shutdown: half of the kubelet's usual grace period
_LEAVING_S = 0.5  # to unlink the socket at a forced exit
_HEARTBEAT_S = 2.0  # the design asks for 5 at most
_REPORT_S = 1.0
_REPORT_QUIET_S = 60.0  # the summary's space, which other programs change
_RETRY_S = 4.0  # of the fetches blocked on space
_RETRIES_A_PLAN = 3
_DELETING_S = 1.0  # an `rm -r` of the root may still be running
_LEAST_FILES = 128  # open at once, besides two a connection: partial blobs, idle connections, the daemon's own
_PEER_FILES = 1408  # connections of other nodes, the blobs that they get, and connections to them
_LEAST_CLIENTS = 16  # clients of each listener, whatever the limit
_DISK = "the root's disk"
_LOOKUPS = 8  # threads for DNS lookups and for local sources
_SWITCH_S = 0.0005  # at Python's 5 ms a hashing thread waits for the interpreter longer than it hashes
_LISTING_STALLS = 20  # stall timeouts for a listing of many pages: ten minutes at the default of 30 s
_UNFINISHED = frozenset({State.QUEUED, State.RESOLVING, State.FETCHING, State.VERIFYING, State.PUBLISHING})


def main(argv: Sequence[str]) -> int:
    """Run `holdfast daemon`; return the exit code."""
    log = events.open_events("daemon", argv)
    config = parse_config(argv)
    if log is not None:
        log.add_constant(node=config.node)
    # Of libraries only warnings: at lower levels botocore logs the responses to its requests for credentials.
    log_to_stderr(config.log_level, ours=("cached", _log.name), events=log)
    sys.setswitchinterval(_SWITCH_S)
    os.umask(0o022)  # folders get their final mode from mkdir itself, also before a crash
    ending = SignalThread(_PATIENCE_S, partial(_force_exit, Layout(config.root)))
    tracer: Tracer | None = None
    try:
        limits.start_thread(ending, "the daemon")
        _require_proc()
        max_clients = _compute_max_clients(limits.raise_open_files(_count_files(config)))
        tracer = open_tracer("daemon", config.tracing, {"k8s.node.name": config.node})
        asyncio.run(_run(config, ending, max_clients, tracer))
    except (HoldfastError, OSError, RuntimeError) as error:
        reason = error if isinstance(error, HoldfastError) else limits.find_limit_error(error, "the daemon")
        if reason is None:
            raise
        if ending.signalled:
            return EXIT_DONE  # no thread for asyncio's own pool shutdown, after all of ours ended
        events.report_end("holdfast daemon", reason)
        return EXIT_FAILED
    finally:
        if tracer is not None:
            tracer.close()
    return EXIT_DONE


def _require_proc() -> None:
    """Raise `Permanent` (`no_proc`) without /proc: the socket and the scrub use its short names of open folders."""
    if not os.path.exists("/proc/self/fd"):
        raise Permanent("no_proc", "/proc is not mounted here", "mount proc at /proc in the daemon's container")


def _count_files(config: Config) -> int:
    """Return the open files that are needed at once, listeners' clients apart."""
    return _LEAST_FILES + 2 * config.connections + (_PEER_FILES if config.pool.peers is not None else 0)


def _compute_max_clients(files: int) -> int:
    """Return the connection limit of each listener for a limit of open files; downloads come first."""
    most = min(MOST_CONNECTIONS, max(_LEAST_CLIENTS, (files - _LEAST_FILES) // 4))
    if most < MOST_CONNECTIONS:
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


def _log_loop_error(log_once: LogOnce, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log once that a listener lacks descriptors to accept: asyncio retries each second and logs a traceback each
    time."""
    error = context.get("exception")
    short = None if error is None else limits.find_limit_error(error, "accepting a connection")
    if short is None:
        loop.default_exception_handler(context)
    else:
        log_once.log_error("listeners", str(short))


async def _run(config: Config, ending: SignalThread, max_clients: int, tracer: Tracer | None) -> None:
    """Run on the root until a signal sets `stop`; after the root was deleted start again with an empty one."""
    layout = Layout(config.root)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(partial(_log_loop_error, LogOnce(_log)))
    loop.set_default_executor(start_pool(_LOOKUPS, "lookup"))
    cold_starts = None if tracer is None else ColdStarts(tracer, time.monotonic)
    while True:
        recovery.prepare(layout)
        async with contextlib.AsyncExitStack() as stack:
            address = await _work(stack, config, ending, stop, max_clients, cold_starts)
        if stop.is_set():
            return
        config = replace(config, listen=address)
        await asyncio.sleep(_DELETING_S)


@dataclass(frozen=True, slots=True)
class _OpenedNode:
    """This node, as the parts of its daemon share it: the opened root, what it holds, what is told of that."""

    layout: Layout
    root: Root
    blocking: Blocking
    sealing: verity.Sealing
    volumes: MountedVolumes | None
    inventory: Inventory
    start_index: StartIndex
    watch: DiskWatch
    status_files: StatusFiles
    tree: TreeWatch
    ledger: Ledger
    cluster: Cluster
    journal: DigestJournal
    metrics: DaemonMetrics


@dataclass(frozen=True, slots=True)
class _Remains:
    """What an earlier daemon left to do: snapshots to discard, versions to fetch again, statuses to adopt. `marks`: of
    the blobs' folders as they were counted; None: they were not."""

    damaged: Collection[Digest]
    lost: Collection[ModelRef]
    statuses: Mapping[ModelRef, recovery.FoundStatus]
    marks: Marks | None


async def _open_node(
    stack: contextlib.AsyncExitStack, config: Config, stop: asyncio.Event
) -> tuple[_OpenedNode, _Remains]:
    """Lock and recover the root; `stack` closes it."""
    layout = Layout(config.root)
    root, blocking = stack.enter_context(contextlib.closing(Root(layout))), Blocking(4)
    stack.push_async_callback(asyncio.to_thread, blocking.close)
    for remark in list_remarks(layout):
        _log.warning("%s", remark)
    sealing = await blocking.run(verity.choose, layout, config.fs_verity)
    volumes = None if config.csi is None else await blocking.run(_find_volumes, layout, config, config.csi)
    marks = await blocking.run(_read_marks, layout)
    recovered = await blocking.run(_recover, layout)
    inventory = Inventory(layout, recovered)
    start_index = StartIndex(layout, root, inventory, blocking, stop.is_set, is_believed=not recovered.are_blobs_read)
    stack.push_async_exit(start_index.leave)  # after the ends of all that writes, which come later here
    watch = stack.enter_context(contextlib.closing(await blocking.run(DiskWatch, root)))
    status_files = StatusFiles(layout.public, config.node, root.check)
    stack.push_async_callback(asyncio.to_thread, status_files.close)
    tree = stack.enter_context(contextlib.closing(TreeWatch(layout, asyncio.get_running_loop())))
    ledger = Ledger(config.quota, watch.space)
    ledger.count_all(recovered.on_disk)
    cluster = _make_cluster(config) if volumes is None else volumes.join(_make_cluster(config))
    journal = DigestJournal(layout.digests, recovered.digests)
    statuses = await blocking.run(recovery.read_statuses, layout, recovered)
    remains = _Remains(recovered.damaged, recovered.lost, statuses, marks if recovered.are_blobs_read else None)
    node = _OpenedNode(
        layout=layout,
        root=root,
        blocking=blocking,
        sealing=sealing,
        volumes=volumes,
        inventory=inventory,
        start_index=start_index,
        watch=watch,
        status_files=status_files,
        tree=tree,
        ledger=ledger,
        cluster=cluster,
        journal=journal,
        metrics=DaemonMetrics(),
    )
    return node, remains  # the other tables of the recovery, as large as those that were made of them, end here


async def _work(
    stack: contextlib.AsyncExitStack,
    config: Config,
    ending: SignalThread,
    stop: asyncio.Event,
    max_clients: int,
    cold_starts: ColdStarts | None,
) -> tuple[str, int]:
    """Recover the root, create the parts, and run them; return the TCP listener's address. `stack` closes the parts."""
    loop = asyncio.get_running_loop()
    node, remains = await _open_node(stack, config, stop)
    status_files, cluster = node.status_files, node.cluster
    tls = read_pool_tls(config.pool)
    client, workers = _start_workers(stack, node, config, tls)
    downloads = Downloads(node.layout, workers, node.ledger)
    publisher = _make_publisher(node)
    await publisher.discard(remains.damaged)
    publisher.report_published()
    joining = open_pool(config.pool, node.layout, lambda: cluster.labels, node.metrics.add_peers, tls)
    pool = await _join_pool(stack, node, joining)
    list_timeout_s = _LISTING_STALLS * config.stall_timeout_s
    lister = SourceLister(lambda uri: open_source(uri, client), node.metrics, list_timeout_s)
    fetches = _make_fetches(node, client, lister, downloads, publisher, cold_starts, pool)
    reconciler = _make_reconciler(node, config, downloads, fetches, publisher)
    reconciler.resume(_adopt_statuses(remains.statuses, status_files, node.inventory, remains.lost))
    await status_files.flushed()  # none says `ready` any more of what is not here, before a client may ask
    catalog = CatalogFile(config.catalog, reconciler.use_catalog)
    recheck = _make_recheck(node, reconciler)
    service = _make_service(node, reconciler, fetches, workers, catalog, recheck)
    imports = _make_imports(node, publisher, reconciler, workers, catalog)
    inspection = _make_inspection(node, publisher, reconciler, remains.marks)
    doubts = _make_doubts(node, recheck, inspection)
    deleted = asyncio.Event()
    node.watch.follow(node.ledger, partial(_set_from_thread, loop, deleted), reconciler.is_fetching)
    ending.set_handler(partial(loop.call_soon_threadsafe, stop.set))
    reads = make_read_api(service, page_readers=max_clients // 2 if config.page == "on" else 0)
    explanations = _make_explanations(node, config, reconciler, service, client)
    commands = ControlApi(service, imports, explanations).make_handler()
    address, control = await stack.enter_async_context(
        open_listeners(config.listen, node.layout, node.blocking, reads, commands, max_clients)
    )
    tasks = {
        "reconciler": reconciler.run(),
        "catalog": catalog.run(),
        "heartbeat": _write_heartbeats(status_files, reconciler),
        "unfinished": _plan_unfinished(reconciler),
        "inspection": inspection.run(),
        "recheck": recheck.run(),
        "doubts": doubts.run(),
        "recount": inspection.run_recounts(),
        "socket": control.keep_open(),
        "cluster": cluster.run(partial(_follow_cluster, reconciler, status_files, cluster, cold_starts)),
        "reports": _report_to_cluster(cluster, status_files, node.ledger, cold_starts),
        "index": node.start_index.run(reconciler.is_fetching),
        "garbage": collect_when_quiet(reconciler.is_fetching),
    }
    if config.scrub_rate > 0:
        scrub = _make_scrub(node, config, workers, recheck, reconciler)
        node.metrics.add_scrub(scrub.compute_oldest_age_s, config.scrub_period_s)
        tasks["scrub"] = scrub.run()
    if config.resolve_interval_s is not None:
        comparer = SourceComparer(node.layout, node.blocking, lister, publisher.find_published)
        tasks["freshness"] = PeriodicResolve(reconciler, comparer, config.resolve_interval_s).run()
    leave: Callable[[], Awaitable[None]] | None = None
    if node.volumes is not None:
        planner = _VolumePlanner(reconciler, catalog)
        driver = _make_driver(node.volumes, node, config, planner, recheck, service)
        tasks["csi"] = driver.run(await stack.enter_async_context(driver.open_sockets()))
        leave = driver.leave
    await _run_tasks(tasks, service, node.layout, deleted=deleted, stop=stop, leave=leave)
    return address


async def _run_tasks(
    coroutines: Mapping[str, Coroutine[Any, Any, None]],
    service: DaemonService,
    layout: Layout,
    *,
    deleted: asyncio.Event,
    stop: asyncio.Event,
    leave: Callable[[], Awaitable[None]] | None,
) -> None:
    """Run every task until a signal sets `stop`, or the disk watch sets `deleted`; before they end await `leave`."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each, name=name) for name, each in coroutines.items()]
        ends = [asyncio.create_task(each.wait()) for each in (stop, deleted)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if stop.is_set():
            _log.info("stopping: durable ranges are recorded; the next start resumes from them")
        else:
            _log.error("%s was deleted: beginning anew, with nothing", layout.root)
        service.mark_stopping()
        if leave is not None:
            await leave()
        for task in tasks:
            task.cancel()


def _set_from_thread(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """Set an event of the loop from a thread; do nothing once the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(event.set)


async def _write_heartbeats(status_files: StatusFiles, reconciler: Reconciler) -> None:
    """Write the heartbeat every 2 s; after the first write that succeeds again, end the pauses of all fetches."""
    had_trouble, log_once = False, LogOnce(_log)
    while True:
        status_files.write_heartbeat()
        if (hanging := status_files.hanging) is None:
            log_once.log_recovery(_DISK)
        else:
            log_once.log_error(_DISK, f"it does not answer ({hanging.remedy})")
        await asyncio.sleep(_HEARTBEAT_S)
        has_trouble = status_files.trouble_writing is not None
        if had_trouble and not has_trouble:
            reconciler.end_pauses()
        had_trouble = has_trouble


def _follow_cluster(
    reconciler: Reconciler, status_files: StatusFiles, cluster: Cluster, cold_starts: ColdStarts | None
) -> None:
    """Plan, and tell the pods of this node what holds for them: the pods or the node's labels changed."""
    _trace(cluster, status_files, cold_starts)  # first: a trace begins before the fetch
    reconciler.wake()
    status_files.news.set()


def _trace(cluster: Cluster, status_files: StatusFiles, cold_starts: ColdStarts | None) -> None:
    if cold_starts is not None and cluster.synced:
        cold_starts.look(cluster.pods(), status_files.get, cluster.list_unmounted())


async def _report_to_cluster(
    cluster: Cluster, status_files: StatusFiles, ledger: Ledger, cold_starts: ColdStarts | None
) -> None:
    """Write Events and the node's summary at each change of a status or of the pods: a fetch may be shorter than any
    polling period. Each change is written once."""
    summarised = -math.inf
    while True:
        status_files.news.clear()
        cluster.tell_pods(status_files.get)
        _trace(cluster, status_files, cold_starts)
        is_due = time.monotonic() - summarised >= _REPORT_S
        if is_due:
            summarised = time.monotonic()
            try:
                use = ledger.compute_use()
            except HoldfastError:  # reported by the part that works on the disk
                use = ledger.compute_use_without_disk()
            cluster.summarise(status_files.all(), use.used + use.dying, use.capacity)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPORT_QUIET_S if is_due else _REPORT_S):
                await status_files.news.wait()


class _VolumePlanner:
    """What volumes need of the reconciler, and of the catalog's file."""

    def __init__(self, reconciler: Reconciler, catalog: CatalogFile) -> None:
        self.read_catalog = catalog.wait_until_current
        self.take_wants = reconciler.take_wants
        self.wake = reconciler.wake
        self.find_forbidden = reconciler.find_forbidden


def _start_workers(
    stack: contextlib.AsyncExitStack, node: _OpenedNode, config: Config, tls: PoolTls | None
) -> tuple[HttpClient, Workers]:
    """Return the HTTP client, and the threads that receive with it; `stack` ends both."""
    timeouts = HttpSettings(header_timeout_s=config.stall_timeout_s, stall_window_s=config.stall_timeout_s)
    client = stack.enter_context(contextlib.closing(HttpClient(timeouts, config.origin_proxy)))
    per_origin, peer_http = config.connections_per_origin, tls.http if tls else PEER_HTTP
    bounds = WorkerSettings(config.connections, per_origin, config.max_bandwidth, node.sealing, peer_http)
    workers = Workers(node.layout, client, bounds, node.metrics, node.journal)
    stack.push_async_callback(asyncio.to_thread, workers.stop)
    return client, workers


async def _join_pool(
    stack: contextlib.AsyncExitStack, node: _OpenedNode, joining: contextlib.AbstractContextManager[PoolNode | None]
) -> PoolNode | None:
    """Join the pool, if there is one; `stack` leaves it."""
    pooled = contextlib.ExitStack()
    stack.push_async_callback(asyncio.to_thread, pooled.close)
    return await node.blocking.run(pooled.enter_context, joining)


def _make_fetches(
    node: _OpenedNode,
    client: HttpClient,
    lister: SourceLister,
    downloads: Downloads,
    publisher: Publisher,
    cold_starts: ColdStarts | None,
    pool: PoolNode | None,
) -> VersionFetches:
    """Return the version fetches, in the pool where there is one."""
    return VersionFetches(
        layout=node.layout,
        ledger=node.ledger,
        downloads=downloads,
        status_files=node.status_files,
        publisher=publisher,
        blocking=node.blocking,
        observer=node.metrics,
        trace=cold_starts or NoFetchTrace(),
        lister=lister,
        pool=pool,
        published=PublishedChains(client),
    )


def _make_publisher(node: _OpenedNode) -> Publisher:
    return Publisher(
        layout=node.layout,
        root=node.root,
        inventory=node.inventory,
        status_files=node.status_files,
        ledger=node.ledger,
        blocking=node.blocking,
        cluster=node.cluster,
        journal=node.journal,
        ignoring_own=node.tree.ignoring_own,
    )


def _make_reconciler(
    node: _OpenedNode, config: Config, downloads: Downloads, fetches: VersionFetches, publisher: Publisher
) -> Reconciler:
    return Reconciler(
        status_files=node.status_files,
        inventory=node.inventory,
        ledger=node.ledger,
        downloads=downloads,
        fetches=fetches,
        publisher=publisher,
        metrics=node.metrics,
        cluster=node.cluster,
        loop=asyncio.get_running_loop(),
        clock=time.monotonic,
        high_watermark=config.high_watermark,
        low_watermark=config.low_watermark,
    )


def _make_service(
    node: _OpenedNode,
    reconciler: Reconciler,
    fetches: VersionFetches,
    workers: Workers,
    catalog: CatalogFile,
    recheck: Recheck,
) -> DaemonService:
    return DaemonService(
        layout=node.layout,
        inventory=node.inventory,
        status_files=node.status_files,
        ledger=node.ledger,
        blocking=node.blocking,
        cluster=node.cluster,
        metrics=node.metrics,
        reconciler=reconciler,
        fetches=fetches,
        workers=workers,
        catalog=catalog,
        recheck=recheck,
    )


def _make_imports(
    node: _OpenedNode, publisher: Publisher, reconciler: Reconciler, workers: Workers, catalog: CatalogFile
) -> Imports:
    return Imports(
        layout=node.layout,
        inventory=node.inventory,
        ledger=node.ledger,
        publisher=publisher,
        status_files=node.status_files,
        blocking=node.blocking,
        metrics=node.metrics,
        reconciler=reconciler,
        resources=workers,
        catalog=catalog,
    )


def _make_inspection(
    node: _OpenedNode, publisher: Publisher, reconciler: Reconciler, marks: Marks | None
) -> Inspection:
    """Return the comparison of inventory and disk; what it finds lost is fetched again."""
    return Inspection(
        layout=node.layout,
        root=node.root,
        tree=node.tree,
        inventory=node.inventory,
        status_files=node.status_files,
        recount=Recount(node.layout, node.root, node.ledger, marks),
        blocking=node.blocking,
        publisher=publisher,
        refetch=lambda lost: reconciler.resume(dict.fromkeys(lost)),
    )


def _make_recheck(node: _OpenedNode, reconciler: Reconciler) -> Recheck:
    return Recheck(
        layout=node.layout,
        inventory=node.inventory,
        status_files=node.status_files,
        versions=reconciler,
        count_bad=partial(node.metrics.verify_failed, "recheck"),
        count_outcome=node.metrics.count_recheck,
    )


def _make_doubts(node: _OpenedNode, recheck: Recheck, inspection: Inspection) -> Doubts:
    return Doubts(
        layout=node.layout,
        inventory=node.inventory,
        blocking=node.blocking,
        recheck=recheck,
        check_names=inspection.check,
        bell=node.tree,
    )


def _make_scrub(node: _OpenedNode, config: Config, workers: Workers, recheck: Recheck, reconciler: Reconciler) -> Scrub:
    parts = ScrubParts(
        layout=node.layout,
        inventory=node.inventory,
        sealing=node.sealing,
        is_fetching=workers.busy,
        is_checking=recheck.is_busy,
        repairs=reconciler,
        count_hashed=node.metrics.count_scrubbed_bytes,
        count_bad=partial(node.metrics.verify_failed, "scrub"),
    )
    return Scrub(parts, ScrubPace(config.scrub_rate, config.scrub_period_s, config.node))


def _make_explanations(
    node: _OpenedNode, config: Config, reconciler: Reconciler, service: DaemonService, client: HttpClient
) -> Explanations:
    return Explanations(
        node=config.node,
        inventory=node.inventory,
        status_files=node.status_files,
        cluster=node.cluster,
        reconciler=reconciler,
        find_not_ready_reason=service.find_not_ready_reason,
        open_source=lambda uri: open_source(uri, client),
    )


def _make_driver(
    volumes: MountedVolumes,
    node: _OpenedNode,
    config: Config,
    planner: _VolumePlanner,
    recheck: Recheck,
    service: DaemonService,
) -> Driver:
    return volumes.make_driver(
        node=config.node,
        inventory=node.inventory,
        status_files=node.status_files,
        cluster=node.cluster,
        planner=planner,
        recheck=recheck.recheck,
        registry=node.metrics.registry,
        find_trouble=service.find_not_ready_reason,
    )


def _find_volumes(layout: Layout, config: Config, socket: Path) -> MountedVolumes:
    """Return the volumes that an earlier daemon mounted, leased again: nothing may be evicted or removed before."""
    from cached.csi.driver import MountedVolumes, Places, choose_registration

    registration = config.csi_registration or choose_registration(config.kubelet_dir)
    return MountedVolumes(layout, Places(socket, registration, config.kubelet_dir))


def _make_cluster(config: Config) -> Cluster:
    if config.kube != "auto":
        return NoCluster()
    from cached.kube.kubeconfig import find_cluster

    found = find_cluster(os.environ)
    if found is None:
        return NoCluster()
    from cached.kube.kubernetes import KubernetesCluster

    _log.info("cluster: %s, as node %s", found.server, config.node)
    return KubernetesCluster(found, config.node)


async def _plan_unfinished(reconciler: Reconciler) -> None:
    while True:
        for _ in range(_RETRIES_A_PLAN):
            await asyncio.sleep(_RETRY_S)
            reconciler.retry_fitting()
        await reconciler.plan_unfinished()


def _adopt_statuses(
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
