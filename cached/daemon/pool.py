"""This node's part in a pool of nodes, from the options `--peers…`.

Law: wires `cached/fetch/pool` and the port for peers, and closes them in their order. Without `--peers`, or without a
key, there is nothing, and the log says so.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cached.contract.layout import Layout
from cached.fetch.pool.link import HttpPoolLink
from cached.fetch.pool.membership import Membership, Place
from cached.fetch.pool.node import PoolNode
from cached.fetch.workers import PEER_HTTP
from cached.peers.members import format_address
from cached.peers.serving.contents import Contents
from cached.peers.serving.key_file import KeyFile
from cached.peers.serving.server import PeerServer, ServerSettings, ServingMetrics
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation

_log = logging.getLogger("holdfast")


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """`peers`: where the members are, None: off; `upload` in bytes a second, None: no limit."""

    peers: tuple[Place, ...] | None
    listen: tuple[str, int]
    key_file: Path | None
    upload: int | None
    zone: str


@contextlib.contextmanager
def open_pool(
    options: PoolOptions, layout: Layout, add_metrics: Callable[[Callable[[], int]], ServingMetrics]
) -> Iterator[PoolNode | None]:
    """Join the pool for a `with` block; None where there is none. Raises `Permanent` (`cannot_listen`, `no_pool_key`),
    or `Transient` (`no_thread`)."""
    if options.peers is None:
        yield None
        return
    if options.key_file is None:
        _log.warning("peers: off, as there is no --peer-key-file: all nodes of a pool need the same key")
        yield None
        return
    keys = KeyFile(options.key_file)
    keys.read()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(HttpClient(PEER_HTTP)))
        cancellation = Cancellation()
        membership = Membership(options.peers, options.listen[1])
        link = HttpPoolLink(client, membership, keys.read, options.listen[1], cancellation)
        node = PoolNode(layout, options.zone, membership, link)
        metrics = add_metrics(lambda: len(membership.list_others()))
        server = PeerServer(Contents(layout, node), node, keys.read, ServerSettings(rate=options.upload), metrics)
        bound = server.open(options.listen)
        stack.callback(node.close)
        stack.callback(cancellation.cancel)  # before: it ends what the node's threads wait for
        stack.callback(server.close)
        membership.start()
        stack.callback(membership.close)
        _log.info("peers: serving at %s, members: %d", format_address(*bound), len(membership.list_all()))
        yield node
