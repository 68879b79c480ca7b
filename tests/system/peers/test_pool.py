"""Whole daemons that fetch one version together: the origin sends it about once, whatever a neighbour does."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path

import pytest

from cached.contract.manifest import CHAINS_NAME, MANIFEST_NAME, FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.fetch.pool.link import HttpPoolLink
from cached.fetch.pool.membership import Membership
from cached.fetch.workers import PEER_HTTP
from cached.peers.access import PoolKeys
from cached.peers.chain_file import encode_chains
from cached.peers.chaining import ChainHasher
from cached.peers.pieces import PieceMap
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from tests.support.daemon import DaemonProcess, daemon_process, prefetched
from tests.support.origin import HostileOrigin
from tests.support.origin_faults import Stall
from tests.support.ports import free_ports

MIB = 1024 * 1024
REF = ModelRef("m", "v1")
PIECES = 5
SMALL = {"config.json": b"{}"}
KEY, OTHER_KEY = "0" * 64, "1" * 64


@cache
def weights() -> dict[str, bytes]:
    """The large files of the version, made when the first test asks for them."""
    return {
        "a.safetensors": random.Random(1).randbytes(70 * MIB),
        "b.safetensors": random.Random(2).randbytes(40 * MIB),
    }


@pytest.fixture
def origin() -> Iterator[HostileOrigin]:
    """The origin of the version, with its manifest."""
    with HostileOrigin(host="127.0.0.1") as served:
        entries = []
        for name, data in (weights() | SMALL).items():
            sha256 = hashlib.sha256(data).hexdigest()
            served.put(f"/m/{name}", data, etag=f'"{sha256[:16]}"')
            entries.append(FileEntry(name, sha256, len(data)))
        served.put(f"/m/{MANIFEST_NAME}", Manifest.build(entries).canonical())
        yield served


class Neighbourhood:
    """Daemons of one pool, each with its root; `ports` are where they serve each other."""

    def __init__(self, stack: ExitStack, folder: Path, origin: HostileOrigin, count: int) -> None:
        self._stack = stack
        self._folder = folder
        self._origin = origin
        self.ports = free_ports(count)

    def make(self, number: int, key: str = KEY) -> DaemonProcess:
        """Make a daemon that wants the version."""
        folder = self._folder / f"node{number}"
        folder.mkdir()
        (folder / "key").write_text(key)
        peers = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        options = ("--peers", peers, "--peer-listen", f"127.0.0.1:{self.ports[number]}")
        daemon = self._stack.enter_context(daemon_process(folder, *options, "--peer-key-file", str(folder / "key")))
        daemon.write_catalog({"m": prefetched(self._origin.url("/m/"), "v1")})
        return daemon


def weights_of(origin: HostileOrigin) -> Counter[tuple[str, str]]:
    """How often each range of the weights was asked of the origin."""
    return Counter(
        (seen.path, seen.headers.get("range", ""))
        for seen in origin.requests
        if seen.method == "GET" and seen.path.endswith(".safetensors")
    )


def check(daemon: DaemonProcess) -> None:
    """Wait until the version is there, and compare every byte."""
    daemon.wait_ready(REF)
    found = daemon.files(REF)
    assert {name: found[name] for name in weights() | SMALL} == weights() | SMALL


def test_two_nodes_fetch_one_copy(tmp_path: Path, origin: HostileOrigin) -> None:
    """Two nodes that start together have the version, of which the origin sends about one copy, and no two; a third one
    that comes later has some of it from them. A node that a busy machine keeps from answering in time counts as dead,
    so that a piece may be asked for again."""
    with ExitStack() as stack:
        pool = Neighbourhood(stack, tmp_path, origin, 3)
        first, second = pool.make(0), pool.make(1)
        first.start()
        second.start()
        check(first)
        check(second)
        assert PIECES <= weights_of(origin).total() < 2 * PIECES
        sent = first.metric("holdfast_peer_sent_bytes_total") + second.metric("holdfast_peer_sent_bytes_total")
        received = [each.metric("holdfast_fetch_bytes_total", source="peer") for each in (first, second)]
        assert 0 < sum(received) <= sent
        before = weights_of(origin).total()
        third = pool.make(2)
        third.start()
        check(third)
        assert weights_of(origin).total() < before + PIECES
        assert third.metric("holdfast_fetch_bytes_total", source="peer") > 0


CHAINS = f"/m/{CHAINS_NAME}"


def states_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The chaining values of files, by sha256."""
    found = {}
    for data in files.values():
        hasher = ChainHasher()
        hasher.update(data)
        found[hasher.hexdigest()] = hasher.states()
    return found


def chains_of(states: Mapping[str, bytes]) -> bytes:
    """The file that `publish` writes of them."""
    data = encode_chains(states)
    assert data is not None
    return data


def read_chain(port: int) -> bytes | None:
    """What the daemon that serves at this port tells another node of the version's chaining values."""
    pieces = PieceMap((hashlib.sha256(data).hexdigest(), len(data)) for data in weights().values())
    with closing(HttpClient(PEER_HTTP)) as client:
        link = HttpPoolLink(client, Membership([], port), lambda: PoolKeys([KEY.encode()]), port, Cancellation())
        return link.read_chain(f"127.0.0.1:{port}", pieces.key)


def test_published_chaining_values_are_known_from_the_start(tmp_path: Path, origin: HostileOrigin) -> None:
    """A node of a pool asks the source once for what `publish` wrote, and knows the chain of a version of which it has
    nothing yet; both nodes have every byte then, and told each other no wrong one."""
    states = states_of(weights())
    origin.put(CHAINS, chains_of(states))
    with ExitStack() as stack:
        pool = Neighbourhood(stack, tmp_path, origin, 2)
        first, second = pool.make(0), pool.make(1)
        for name in weights():
            origin.always(f"/m/{name}", Stall(0))
        first.start()
        first.wait(lambda: read_chain(pool.ports[0]) is not None, "the published chain")
        assert read_chain(pool.ports[0]) == b"".join(states[sha256] for sha256 in sorted(states))
        assert [seen.path for seen in origin.requests].count(CHAINS) == 1
        for name in weights():
            origin.heal(f"/m/{name}")
        origin.drop_connections()
        second.start()
        for node in (first, second):
            check(node)
            assert node.metric("holdfast_verify_failures_total") == 0


@pytest.mark.parametrize(
    ("chains", "said"),
    [
        (lambda: chains_of({sha256: bytes(len(each)) for sha256, each in states_of(weights()).items()}), "contradicts"),
        (lambda: chains_of(states_of(weights()))[:-40], "of no use"),
        (lambda: chains_of({"0" * 64: bytes(32)}), ""),
    ],
    ids=["wrong", "cut short", "another version's"],
)
def test_useless_chaining_values_cost_no_byte(
    tmp_path: Path, origin: HostileOrigin, chains: Callable[[], bytes], said: str
) -> None:
    """Whatever lies where `publish` writes chaining values, all nodes have every byte, the origin is not blamed, and
    the log has the reason where the file itself is of no use, or a piece contradicts it."""
    origin.put(CHAINS, chains())
    with ExitStack() as stack:
        pool = Neighbourhood(stack, tmp_path, origin, 2)
        nodes = [pool.make(0), pool.make(1)]
        for node in nodes:
            node.start()
        for node in nodes:
            check(node)
            assert node.metric("holdfast_fetch_errors_total") == 0
            assert ("of no use" in node.log()) is (said == "of no use")
        assert weights_of(origin).total() <= 2 * PIECES
        is_shared = any(node.metric("holdfast_fetch_bytes_total", source="peer") > 0 for node in nodes)
        contradicted = any("contradicts its published chaining values" in node.log() for node in nodes)
        assert contradicted is (is_shared and said == "contradicts")


def test_another_pool_is_none(tmp_path: Path, origin: HostileOrigin) -> None:
    """A node with another key gets nothing of its neighbour, and fetches all from the origin, as without peers."""
    with ExitStack() as stack:
        pool = Neighbourhood(stack, tmp_path, origin, 2)
        first = pool.make(0)
        first.start()
        check(first)
        stranger = pool.make(1, OTHER_KEY)
        stranger.start()
        check(stranger)
        assert first.metric("holdfast_peer_sent_bytes_total") == 0
        assert stranger.metric("holdfast_fetch_bytes_total", source="peer") == 0
        assert stranger.metric("holdfast_fetch_errors_total") == 0


def test_a_rotten_neighbour_spoils_nothing(tmp_path: Path, origin: HostileOrigin) -> None:
    """A node whose only neighbour has wrong bytes under the right name refuses them, fetches the origin's, and does not
    blame the source."""
    with ExitStack() as stack:
        pool = Neighbourhood(stack, tmp_path, origin, 4)
        first = pool.make(0)
        first.start("--scrub-rate", "0")
        check(first)
        rotten = first.layout.blob(hashlib.sha256(weights()["b.safetensors"]).hexdigest())
        rotten.chmod(0o644)
        with rotten.open("r+b") as file:
            file.seek(33 * MIB)
            file.write(bytes(8))
        for number in (1, 2, 3):  # on a busy machine the neighbour may say too late what it has: then it is not asked
            node = pool.make(number)
            node.start()
            check(node)
            assert node.metric("holdfast_fetch_errors_total") == 0
            if node.metric("holdfast_verify_failures_total", where="peer") > 0:
                return
            node.kill()
        pytest.fail("the rotten neighbour was not asked")


@pytest.mark.slow
def test_a_stopped_neighbour_is_left(tmp_path: Path, origin: HostileOrigin) -> None:
    """A node whose only neighbour accepts connections and never answers has the version from the origin."""
    with ExitStack() as stack:
        pool = Neighbourhood(stack, tmp_path, origin, 2)
        first = pool.make(0)
        first.start()
        check(first)
        os.kill(first.pid, signal.SIGSTOP)
        second = pool.make(1)
        second.start()
        check(second)
        assert second.metric("holdfast_fetch_errors_total") == 0


def test_a_killed_neighbour_is_no_hindrance(tmp_path: Path, origin: HostileOrigin) -> None:
    """A node whose only neighbour is killed in the middle has the version nevertheless, every byte right."""
    with ExitStack() as stack:
        pool = Neighbourhood(stack, tmp_path, origin, 2)
        first, second = pool.make(0), pool.make(1)
        first.start()
        second.start()
        second.wait(lambda: second.metric("holdfast_fetch_bytes_total") > 0, "some bytes")
        first.kill()
        check(second)
