"""A node of a pool in this process: its port for others, its trackers, its swarms and its byte engine.

Law: real threads, files and sockets, wired as `cached/daemon/pool.py` does; only the list of members is the test's.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from cached.contract.digest import Digest
from cached.daemon.pool import PoolTls
from cached.fetch.pool.link import HttpPoolLink
from cached.fetch.pool.membership import MemberAddress, Membership
from cached.fetch.pool.node import PoolNode
from cached.fetch.workers import PEER_HTTP
from cached.peers.access import PoolKeys
from cached.peers.members import format_address
from cached.peers.messages import Announce, Reply
from cached.peers.serving.channel import ClearChannel
from cached.peers.serving.contents import Contents
from cached.peers.serving.server import PeerServer, ServerSettings
from cached.peers.trackers import Trackers
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.fetching import DEADLINE_S, check_committed, http, open_engine, spec_of

HOST = "127.0.0.1"
KEYS = PoolKeys([b"0123456789abcdef" * 2])


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens at, all different."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class Tracking:
    """Answers announces with one node's trackers, and has no version to seed."""

    def __init__(self) -> None:
        self._trackers = Trackers(random.Random(1))
        self._lock = threading.Lock()

    def announce(self, address: str, message: Announce, now: float) -> Reply:
        with self._lock:
            return self._trackers.announce(address, message, now)

    def end_survey(self, version: str) -> None:
        """Let no node have had the version before."""
        with self._lock:
            self._trackers.end_survey(version)

    def seed(self, message: Announce) -> Announce | None:
        return None

    def find_holders(self, digest: Digest) -> tuple[str, ...]:
        return ()


class Counted:
    """What a port sent and refused."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.refusals: list[int] = []

    def sent(self, size: int) -> None:
        self.sent_bytes += size

    def refused(self, status: int) -> None:
        self.refusals.append(status)


class PoolMember:
    """One node; `members` are the ports of all nodes that it knows, its own among them."""

    def __init__(
        self,
        stack: ExitStack,
        root: Path,
        port: int,
        members: Sequence[int],
        keys: PoolKeys,
        tls: PoolTls | None = None,
    ) -> None:
        self.port = port
        self.served = Counted()
        self.cancellation = Cancellation()
        self.membership = Membership([MemberAddress(HOST, each) for each in members], port)
        peer_http = tls.http if tls else PEER_HTTP
        client = stack.enter_context(closing(HttpClient(peer_http)))
        read_keys: Callable[[], PoolKeys] = lambda: keys  # noqa: E731
        self.link = HttpPoolLink(
            client, self.membership, read_keys, port, self.cancellation, "https" if tls else "http"
        )
        self.engine = stack.enter_context(open_engine(root, 4, peer_http=peer_http))
        self.node = PoolNode(self.engine.layout, str, self.membership, self.link, lambda: True, lambda: None)
        contents = Contents(self.engine.layout, self.node)
        open_channel = tls.files.open_channel if tls else ClearChannel
        server = PeerServer(contents, self.node, read_keys, ServerSettings(), self.served, open_channel=open_channel)
        server.open((HOST, port))
        stack.callback(self.node.close)
        stack.callback(self.cancellation.cancel)
        stack.callback(server.close)
        self.membership.start()
        stack.callback(self.membership.close)

    @property
    def address(self) -> str:
        return format_address(HOST, self.port)

    def begin(self, data: bytes, url: str) -> Callable[[], None]:
        """Begin to fetch a version of one blob; the result waits for it and compares every byte."""
        spec = spec_of(data)
        assert spec.sha256 is not None
        pool = self.node.join({spec.sha256: len(data)}, ())
        assert pool is not None
        download = self.engine.launch(spec, http(url), make_supply=pool.make_supply_of(spec.sha256))

        def finish() -> None:
            try:
                check_committed(self.engine.layout, data, download.result.result(DEADLINE_S))
                pool.end_supply(str(spec.sha256), is_committed=True)
            finally:
                pool.leave()

        return finish


class Pools:
    """Nodes on one network, of one pool or of several; each knows all addresses."""

    def __init__(self, stack: ExitStack, folder: Path, count: int, strangers: Sequence[int] = ()) -> None:
        """`strangers`: ports of members that are none of these nodes."""
        self._stack = stack
        self._folder = folder
        self.ports = [*free_ports(count), *strangers]
        self._made = 0

    def add(self, keys: PoolKeys = KEYS, tls: PoolTls | None = None) -> PoolMember:
        """Start the next node."""
        number, self._made = self._made, self._made + 1
        return PoolMember(self._stack, self._folder / f"node{number}", self.ports[number], self.ports, keys, tls)


@contextmanager
def open_pools(folder: Path, count: int, strangers: Sequence[int] = ()) -> Iterator[Pools]:
    """Nodes for a `with` block."""
    with ExitStack() as stack:
        yield Pools(stack, folder, count, strangers)
