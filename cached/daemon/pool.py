"""This node's part in a pool of nodes, from the options `--peers…` and the node's label of its zone.

Law: wires `cached/fetch/pool` and the port for peers, and closes them in their order. Without `--peers`, or without a
key file, there is nothing; while the key file has no key the port refuses everything and the node fetches as without
peers. The log says so once.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cached.contract.layout import Layout
from cached.fetch.pool.link import HttpPoolLink
from cached.fetch.pool.membership import MemberAddress, Membership
from cached.fetch.pool.node import PoolNode
from cached.fetch.pool.peer_states import PeerState
from cached.fetch.workers import PEER_HTTP
from cached.peers.members import format_address
from cached.peers.messages import is_zone
from cached.peers.serving.channel import ClearChannel
from cached.peers.serving.contents import Contents
from cached.peers.serving.key_file import KeyFile
from cached.peers.serving.server import PeerServer, ServerSettings, ServingMetrics
from cached.peers.serving.tls_files import TlsFiles, TlsPaths
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import ServerTrust

_log = logging.getLogger("holdfast")

ZONE_LABEL = "topology.kubernetes.io/zone"


class PoolMetrics(ServingMetrics, Protocol):
    """The metrics of a node of a pool."""

    def resolved(self) -> None:
        """Count a manifest that another node sent."""


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """`peers`: where the members are, None: off; `upload` in bytes a second, None: no limit; `zone` None:
    that of the node's label; `tls` None: in clear."""

    peers: tuple[MemberAddress, ...] | None
    listen: tuple[str, int]
    key_file: Path | None
    upload: int | None
    zone: str | None
    tls: TlsOptions | None = None


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """`name`: in the certificate of every node."""

    paths: TlsPaths
    name: str


class PoolTls:
    """How the nodes of a pool speak TLS. `http`: for a client that asks them."""

    def __init__(self, options: TlsOptions) -> None:
        """Raises `Permanent` (`bad_peer_tls`)."""
        self.files = TlsFiles(options.paths)
        self.files.read()
        self.http = replace(PEER_HTTP, trust=ServerTrust(self.files.read_client, options.name))


def read_pool_tls(options: PoolOptions) -> PoolTls | None:
    """Return how the pool speaks TLS, None for in clear, or without a pool. Raises `Permanent` (`bad_peer_tls`)."""
    return None if options.peers is None or options.tls is None else PoolTls(options.tls)


@contextlib.contextmanager
def open_pool(
    options: PoolOptions,
    layout: Layout,
    list_labels: Callable[[], Mapping[str, str] | None],
    add_metrics: Callable[[Callable[[PeerState], int]], PoolMetrics],
    tls: PoolTls | None = None,
) -> Iterator[PoolNode | None]:
    """Join the pool for a `with` block; None where there is none. `list_labels` returns the node's labels, None while
    they are not known. Raises `Permanent` (`cannot_listen`) or `Transient` (`no_thread`)."""
    if options.peers is None:
        yield None
        return
    if options.key_file is None:
        _log.warning("peers: off, as there is no --peer-key-file: all nodes of a pool need the same key")
        yield None
        return
    keys = KeyFile(options.key_file)
    keys.has_keys()  # the log says now if there are none
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(HttpClient(tls.http if tls else PEER_HTTP)))
        cancellation = Cancellation()
        membership = Membership(options.peers, options.listen[1])
        scheme = "https" if tls else "http"
        link = HttpPoolLink(client, membership, keys.read, options.listen[1], cancellation, scheme)

        def count_peers(state: PeerState) -> int:
            return link.states.count(state, membership.list_others()) if keys.has_keys() else 0

        metrics = add_metrics(count_peers)
        find_zone = _NodeZone(options.zone, list_labels).find
        node = PoolNode(layout, find_zone, membership, link, keys.has_keys, metrics.resolved)
        server = PeerServer(
            Contents(layout, node),
            node,
            keys.read,
            ServerSettings(rate=options.upload),
            metrics,
            open_channel=tls.files.open_channel if tls else ClearChannel,
        )
        bound = server.open(options.listen)
        stack.callback(node.close)
        stack.callback(cancellation.cancel)  # before: it ends what the node's threads wait for
        stack.callback(server.close)
        membership.start()
        stack.callback(membership.close)
        how = "TLS" if tls else "in clear"
        _log.info("peers: serving at %s, %s, members: %d", format_address(*bound), how, len(membership.list_all()))
        yield node


class _NodeZone:
    """This node's zone: the option's, else that of its label as it was last read. Thread-safe."""

    def __init__(self, given: str | None, list_labels: Callable[[], Mapping[str, str] | None]) -> None:
        self._given = given
        self._list_labels = list_labels
        self._lock = threading.Lock()
        self._told = ""

    def find(self) -> str:
        """Return the zone, empty where none is known."""
        if self._given is not None:
            return self._given
        zone = (self._list_labels() or {}).get(ZONE_LABEL, "")
        zone = zone if is_zone(zone) else ""
        with self._lock:
            if zone != self._told:
                _log.info("peers: this node's zone is %s, by its label %s", zone or "not known", ZONE_LABEL)
            self._told = zone
        return zone
