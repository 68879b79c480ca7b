"""Connect the parts of the daemon and run them: the only module that knows every part.

Law: parts are connected here and nowhere else, and decide nothing here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cached.contract.layout import Layout
from cached.contract.program.process import SignalThread
from cached.daemon.api.control_api import ControlApi
from cached.daemon.api.explain import Explanations
from cached.daemon.api.listeners import open_listeners
from cached.daemon.api.read_api import make_read_api
from cached.daemon.catalog.catalog_file import CatalogFile
from cached.daemon.catalog.freshness import PeriodicResolve
from cached.daemon.cold_starts import ColdStarts
from cached.daemon.config import Config
from cached.daemon.fetching import Fetching, start_fetching
from cached.daemon.imports import Imports
from cached.daemon.node_state import NodeState
from cached.daemon.opening import OpenedNode, open_node, open_root
from cached.daemon.reconciler import Reconciler
from cached.daemon.reports import ClusterReports, write_heartbeats
from cached.daemon.service import DaemonService
from cached.fetch.resolving.comparison import SourceComparer
from cached.node.cluster import Cluster, NoCluster
from cached.node.gc_pauses import collect_when_quiet
from cached.node.inspection import Inspection
from cached.node.integrity.doubts import Doubts
from cached.node.integrity.recheck import Recheck
from cached.node.integrity.scrub import Scrub, ScrubPace, ScrubParts
from cached.node.recount import Marks, Recount

if TYPE_CHECKING:  # gRPC is loaded with --csi only
    from cached.csi.driver import Driver, MountedVolumes

_log = logging.getLogger("holdfast")

_FIRST_LOOK_S = 2.0  # until the first look at the root, where nothing is planned before


async def run_node(
    stack: contextlib.AsyncExitStack,
    config: Config,
    ending: SignalThread,
    stop: asyncio.Event,
    max_clients: int,
    cold_starts: ColdStarts | None,
) -> tuple[str, int]:
    """Run the daemon on its root until `stop` is set, which a signal of `ending` does, or the root is deleted; return
    the TCP listener's address. `stack` closes the parts."""
    loop = asyncio.get_running_loop()
    opened = await open_root(stack, config)
    volumes = None
    if config.csi is not None:
        volumes = await opened.blocking.run(_find_volumes, opened.layout, config, config.csi)
    cluster = _make_cluster(config) if volumes is None else volumes.join(_make_cluster(config))
    node, remains = await open_node(stack, config, opened, cluster, stop.is_set)
    fetching = await start_fetching(stack, node, config, remains, cold_starts)
    catalog = CatalogFile(config.catalog, fetching.reconciler.use_catalog)
    recheck = _make_recheck(node, fetching.reconciler)
    service = DaemonService(node, fetching, catalog, recheck)
    deleted = asyncio.Event()
    node.disk_watch.follow(node.ledger, partial(_set_from_thread, loop, deleted), fetching.state.is_fetching)
    ending.set_handler(partial(loop.call_soon_threadsafe, stop.set))
    reads = make_read_api(service, page_readers=max_clients // 2 if config.page == "on" else 0)
    explanations = Explanations(config.node, fetching, service.find_not_ready_reason)
    commands = ControlApi(service, Imports(node, fetching, catalog), explanations).make_handler()
    address, control = await stack.enter_async_context(
        open_listeners(config.listen, node.layout, node.root, node.blocking, reads, commands, max_clients)
    )
    reports = ClusterReports(cluster, node.status_files, node.ledger, cold_starts)
    tasks = {
        **_list_fetching_tasks(node, config, fetching),
        "catalog": catalog.run(),
        "heartbeat": write_heartbeats(node.status_files, fetching.reconciler.end_pauses),
        "socket": control.keep_open(),
        "cluster": cluster.run(partial(_follow_cluster, fetching.reconciler, reports)),
        "reports": reports.run(),
        **_list_upkeep_tasks(node, config, fetching, recheck, remains.marks),
    }
    leave: Callable[[], Awaitable[None]] | None = None
    if volumes is not None:
        planner = _VolumePlanner(fetching.state, fetching.reconciler, catalog)
        driver = _make_driver(volumes, node, config, planner, recheck, service)
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


def _follow_cluster(reconciler: Reconciler, reports: ClusterReports) -> None:
    """Plan, and tell the pods of this node what holds for them: the pods or the node's labels changed."""
    reports.trace()  # first: a trace begins before the fetch
    reconciler.wake()
    reports.report_soon()


def _list_fetching_tasks(node: OpenedNode, config: Config, fetching: Fetching) -> dict[str, Coroutine[Any, Any, None]]:
    tasks = {
        "reconciler": fetching.reconciler.run(),
        "retries": fetching.reconciler.run_retries(),
        "garbage": collect_when_quiet(fetching.state.is_fetching),
    }
    if config.resolve_interval_s is not None:
        find_published = fetching.publisher.find_published
        comparer = SourceComparer(node.layout, node.blocking, fetching.lister, find_published)
        resolve = PeriodicResolve(fetching.state, fetching.reconciler, comparer, config.resolve_interval_s)
        tasks["freshness"] = resolve.run()
    return tasks


def _list_upkeep_tasks(
    node: OpenedNode, config: Config, fetching: Fetching, recheck: Recheck, marks: Marks | None
) -> dict[str, Coroutine[Any, Any, None]]:
    """Return the tasks that keep what is here right: compared with the disk, hashed again, and indexed."""
    inspection = _make_inspection(node, fetching, marks)
    doubts = Doubts(
        layout=node.layout,
        inventory=node.inventory,
        blocking=node.blocking,
        recheck=recheck,
        check_names=inspection.check,
        bell=node.tree_watch,
    )
    tasks = {
        "inspection": _inspect(inspection, fetching.reconciler),
        "recount": inspection.run_recounts(),
        "recheck": recheck.run(),
        "doubts": doubts.run(),
        "index": node.start_index.run(fetching.state.is_fetching),
    }
    if config.scrub_rate > 0:
        scrub = _make_scrub(node, config, fetching, recheck)
        node.metrics.add_scrub(scrub.compute_oldest_age_s, config.scrub_period_s)
        tasks["scrub"] = scrub.run()
    return tasks


async def _inspect(inspection: Inspection, reconciler: Reconciler) -> None:
    """Look after the root, from the first plan on: both need the processor, and pods wait for the plan."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_LOOK_S):
            await reconciler.has_planned.wait()
    await inspection.run()


class _VolumePlanner:
    """What volumes need of the reconciler, and of the catalog's file."""

    def __init__(self, state: NodeState, reconciler: Reconciler, catalog: CatalogFile) -> None:
        self.read_catalog = catalog.wait_until_current
        self.take_wants = reconciler.take_wants
        self.wake = reconciler.wake
        self.find_forbidden = state.find_forbidden


def _make_inspection(node: OpenedNode, fetching: Fetching, marks: Marks | None) -> Inspection:
    """Return the comparison of inventory and disk; what it finds lost is fetched again."""
    return Inspection(
        layout=node.layout,
        root=node.root,
        tree=node.tree_watch,
        inventory=node.inventory,
        status_files=node.status_files,
        recount=Recount(node.layout, node.root, node.ledger, marks),
        blocking=node.blocking,
        publisher=fetching.publisher,
        refetch=lambda lost: fetching.reconciler.resume(dict.fromkeys(lost)),
    )


def _make_recheck(node: OpenedNode, reconciler: Reconciler) -> Recheck:
    return Recheck(
        layout=node.layout,
        inventory=node.inventory,
        status_files=node.status_files,
        versions=reconciler,
        count_bad=partial(node.metrics.verify_failed, "recheck"),
        count_outcome=node.metrics.count_recheck,
    )


def _make_scrub(node: OpenedNode, config: Config, fetching: Fetching, recheck: Recheck) -> Scrub:
    parts = ScrubParts(
        layout=node.layout,
        inventory=node.inventory,
        sealing=node.sealing,
        is_fetching=fetching.workers.busy,
        is_checking=recheck.is_busy,
        repairs=fetching.reconciler,
        count_hashed=node.metrics.count_scrubbed_bytes,
        count_bad=partial(node.metrics.verify_failed, "scrub"),
    )
    return Scrub(parts, ScrubPace(config.scrub_rate, config.scrub_period_s, config.node))


def _make_driver(
    volumes: MountedVolumes,
    node: OpenedNode,
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
