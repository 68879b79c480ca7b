"""Start what fetches and publishes on an opened node.

Law: parts are connected here, as in `wiring.py`, and decide nothing. An `AsyncExitStack` ends them, the last one first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from functools import partial

from cached.daemon.cold_starts import ColdStarts
from cached.daemon.config import Config
from cached.daemon.node_state import NodeState
from cached.daemon.opening import OpenedNode, Remains, adopt_statuses
from cached.daemon.pool import PoolTls, open_pool, read_pool_tls
from cached.daemon.reconciler import Reconciler
from cached.fetch.downloads import Downloads
from cached.fetch.peers import Peers
from cached.fetch.pool.node import PoolNode
from cached.fetch.pool.published_chains import PublishedChains
from cached.fetch.resolving.lister import OpenSource, SourceLister
from cached.fetch.trace import NoFetchTrace
from cached.fetch.version import VersionFetches
from cached.fetch.workers import PEER_HTTP, Workers, WorkerSettings
from cached.node.publisher import Publisher
from cached.sources.base import Source
from cached.sources.registry import open_source
from cached.transport.client import HttpClient
from cached.transport.connection.settings import HttpSettings
from cached.transport.connection.thread_call import call_in_thread

_LISTING_STALLS = 20  # stall timeouts for a listing of many pages: ten minutes at the default of 30 s


@dataclass(frozen=True, slots=True)
class Fetching:
    """What fetches and publishes versions: `state` is what is known of them, `reconciler` decides with it."""

    workers: Workers
    open_source: OpenSource
    lister: SourceLister
    fetches: VersionFetches
    publisher: Publisher
    state: NodeState
    reconciler: Reconciler


async def start_fetching(
    stack: contextlib.AsyncExitStack,
    node: OpenedNode,
    config: Config,
    remains: Remains,
    cold_starts: ColdStarts | None,
) -> Fetching:
    """Start what fetches, join the pool, and take over what an earlier daemon left; `stack` ends and leaves them."""
    tls = read_pool_tls(config.pool)
    client, workers = _start_workers(stack, node, config, tls)
    downloads = Downloads(node.layout, workers, node.ledger)
    publisher = _make_publisher(node)
    await publisher.discard(remains.damaged)
    publisher.report_published()
    pool = await _join_pool(stack, node, config, tls)
    open_ = partial(_open_source, client)
    lister = SourceLister(open_, node.metrics, _LISTING_STALLS * config.stall_timeout_s)
    fetches = VersionFetches(
        layout=node.layout,
        ledger=node.ledger,
        downloads=downloads,
        status_files=node.status_files,
        publisher=publisher,
        blocking=node.blocking,
        metrics=node.metrics,
        trace=cold_starts or NoFetchTrace(),
        lister=lister,
        peers=Peers(pool, PublishedChains(client), partial(node.metrics.verify_failed, "peer")),
    )
    state = NodeState(
        inventory=node.inventory,
        status_files=node.status_files,
        ledger=node.ledger,
        fetches=fetches,
        cluster=node.cluster,
        clock=time.monotonic,
    )
    reconciler = Reconciler(
        state=state,
        downloads=downloads,
        publisher=publisher,
        metrics=node.metrics,
        loop=asyncio.get_running_loop(),
        high_watermark=config.high_watermark,
        low_watermark=config.low_watermark,
    )
    reconciler.resume(adopt_statuses(remains.statuses, node.status_files, node.inventory, remains.lost))
    await node.status_files.flushed()  # none says `ready` any more of what is not here, before a client may ask
    return Fetching(workers, open_, lister, fetches, publisher, state, reconciler)


def _start_workers(
    stack: contextlib.AsyncExitStack, node: OpenedNode, config: Config, tls: PoolTls | None
) -> tuple[HttpClient, Workers]:
    """Return the HTTP client, and the threads that receive with it; `stack` ends both."""
    timeouts = HttpSettings(header_timeout_s=config.stall_timeout_s, stall_window_s=config.stall_timeout_s)
    client = stack.enter_context(contextlib.closing(HttpClient(timeouts, config.origin_proxy)))
    per_origin, peer_http = config.connections_per_origin, tls.http if tls else PEER_HTTP
    bounds = WorkerSettings(config.connections, per_origin, config.max_bandwidth, node.sealing, peer_http)
    workers = Workers(node.layout, client, bounds, node.metrics, node.journal, node.notes)
    stack.push_async_callback(asyncio.to_thread, workers.stop)
    return client, workers


async def _join_pool(
    stack: contextlib.AsyncExitStack, node: OpenedNode, config: Config, tls: PoolTls | None
) -> PoolNode | None:
    """Join the pool, if there is one; `stack` leaves it."""
    joining = open_pool(config.pool, node.layout, lambda: node.cluster.labels, node.metrics.add_peers, tls)
    pooled = contextlib.ExitStack()
    stack.push_async_callback(asyncio.to_thread, pooled.close)
    return await node.blocking.run(pooled.enter_context, joining)


def _make_publisher(node: OpenedNode) -> Publisher:
    return Publisher(
        layout=node.layout,
        root=node.root,
        inventory=node.inventory,
        status_files=node.status_files,
        ledger=node.ledger,
        blocking=node.blocking,
        cluster=node.cluster,
        journal=node.journal,
        notes=node.notes,
        ignoring_own=node.tree_watch.ignoring_own,
    )


async def _open_source(client: HttpClient, uri: str) -> Source:
    return await call_in_thread(lambda _cancellation: open_source(uri, client))
