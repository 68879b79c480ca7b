"""A node's port for peers, on a root with one blob."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cached.contract.layout import Layout
from cached.peers.access import PoolKeys, SignedRequest, digest_content
from cached.peers.serving.channel import ChannelMaker, ClearChannel
from cached.peers.serving.contents import Contents, NoPartials
from cached.peers.serving.server import PeerServer, ServerSettings
from tests.support.pooling import KEYS, Counted, Tracking


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Node:
    """A running server, its root and its metrics."""

    layout: Layout
    address: tuple[str, int]
    metrics: Counted

    def add_blob(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.layout.blob(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return sha256

    def get(self, path: str, wanted: str | None = None, keys: PoolKeys = KEYS, now: float | None = None) -> Answer:
        """Return the whole answer to a request of a node with these keys at `now`."""
        with self.ask(path, wanted, keys, now) as response:
            return Answer(response.status, dict(response.getheaders()), response.read())

    def announce(
        self, body: bytes, port: int = 9402, keys: PoolKeys = KEYS, signed_body: bytes | None = None
    ) -> Answer:
        """Announce as a node of these keys would; `signed_body`: what is signed in place of what is sent."""
        path = f"/v1/announces/{port}"
        digest = digest_content(body if signed_body is None else signed_body)
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=120)) as connection:
            signed = keys.sign(SignedRequest("POST", path, "", digest), time.time())
            connection.request("POST", path, body, {"Authorization": signed, "Content-Digest": digest})
            with contextlib.closing(connection.getresponse()) as response:
                return Answer(response.status, dict(response.getheaders()), response.read())

    @contextlib.contextmanager
    def ask(
        self, path: str, wanted: str | None = None, keys: PoolKeys = KEYS, now: float | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Ask the same; the body is read by the caller, or not at all."""
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=120)) as connection:
            signed = keys.sign(SignedRequest("GET", path, wanted or ""), time.time() if now is None else now)
            headers = {"Authorization": signed} | ({"Range": wanted} if wanted else {})
            connection.request("GET", path, headers=headers)
            with contextlib.closing(connection.getresponse()) as response:
                yield response


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Return a function that starts a node with these settings."""
    with contextlib.ExitStack() as stack:
        count = 0

        def start_node(settings: ServerSettings | None = None, open_channel: ChannelMaker = ClearChannel) -> Node:
            nonlocal count
            count += 1
            layout = Layout(tmp_path / f"root{count}")
            os.makedirs(layout.blobs)
            metrics = Counted()
            server = PeerServer(
                Contents(layout, NoPartials()),
                Tracking(),
                lambda: KEYS,
                settings or ServerSettings(),
                metrics,
                open_channel=open_channel,
            )
            address = server.open(("127.0.0.1", 0))
            stack.callback(server.close)
            return Node(layout, address, metrics)

        yield start_node
