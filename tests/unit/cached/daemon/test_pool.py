"""The options `--peers…` and `--origin-proxy…`, and what a daemon does with them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.daemon.config import parse_config
from cached.daemon.metrics import DaemonMetrics
from cached.daemon.pool import ZONE_LABEL, PoolOptions, TlsOptions, open_pool, read_pool_tls
from cached.fetch.pool.membership import MemberAddress
from cached.fetch.pool.peer_states import PeerState
from cached.kube.kubernetes import KubernetesCluster
from cached.peers.access import PoolKeys, SignedRequest
from cached.peers.members import trackers_of
from cached.peers.messages import Announce, Reply
from cached.peers.pieces import PieceMap
from cached.peers.serving.contents import Contents, NoPartials
from cached.peers.serving.key_file import KeyFile
from cached.peers.serving.server import PeerServer, ServerSettings
from cached.peers.serving.tls_files import TlsPaths
from cached.peers.trackers import Trackers
from cached.transport.origin_proxy import OriginProxySettings
from cached.transport.urls import Origin
from tests.support.fake_api import FakeApi
from tests.support.fetching import eventually
from tests.support.ports import free_port

BLOB, KEY = "a" * 64, "k" * 40


def options_of(*more: str) -> PoolOptions:
    return parse_config(["--catalog", "/c.yaml", *more]).pool


def no_labels() -> None:
    """The labels of a node that is in no cluster."""


def ask(port: int) -> int:
    """The status of a signed request for a blob that no node has."""
    path = f"/v1/blobs/sha256/{BLOB}"
    signed = PoolKeys([KEY.encode()]).sign(SignedRequest("GET", path, "bytes=0-0"), time.time())
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path, headers={"Authorization": signed, "Range": "bytes=0-0"})
        return connection.getresponse().status


def test_peers_are_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option there is no pool; a variable of the environment is the option too."""
    assert options_of().peers is None
    assert options_of("--peers", "off").peers is None
    monkeypatch.setenv("HOLDFAST_PEERS", "dns:peers:9402")
    monkeypatch.setenv("HOLDFAST_PEER_UPLOAD", "1MiB/s")
    assert options_of().peers == (MemberAddress("peers", 9402),)
    assert options_of().upload == 1 << 20


@pytest.mark.parametrize(
    "wrong",
    [
        ("--peers", "on"),
        ("--peers", "dns:peers"),
        ("--peer-listen", "127.0.0.1:0"),
        ("--peer-upload", "0"),
        ("--peer-zone", "a b"),
        ("--peer-zone", "a" * 64),
        ("--origin-proxy", "http://127.0.0.1:4001"),
        ("--origin-proxy", "dragonfly=http://127.0.0.1:4001", "--peers", "127.0.0.1:9402"),
        ("--origin-proxy-credentials", "on"),
    ],
)
def test_a_wrong_option_is_a_usage_error(wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """A bad value ends with 2 before anything starts, and says what is expected."""
    with pytest.raises(SystemExit, match="2"):
        options_of(*wrong)
    assert "expected" in capsys.readouterr().err


def test_a_node_of_a_pool_has_more_connections() -> None:
    """By default a node asks more places at once where other nodes are among them; what is given counts."""
    base, pool = ["--catalog", "/c.yaml"], ["--peers", "dns:peers:9402"]
    assert [parse_config([*base, *more]).connections for more in ([], ["--peers", "off"], pool)] == [8, 8, 12]
    given = parse_config([*base, *pool, "--connections", "3"])
    assert (given.connections, given.connections_per_origin) == (3, 3)


def test_an_origin_proxy_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the option origins are asked directly; with it credentials stay here unless they are let go."""
    base = ["--catalog", "/c.yaml"]
    assert parse_config(base).origin_proxy is None
    assert parse_config([*base, "--origin-proxy", "off"]).origin_proxy is None
    monkeypatch.setenv("HOLDFAST_ORIGIN_PROXY", "dragonfly=http://10.0.0.1:4001")
    address = Origin("http", "10.0.0.1", 4001)
    assert parse_config(base).origin_proxy == OriginProxySettings(address, with_credentials=False)
    with_credentials = parse_config([*base, "--origin-proxy-credentials", "on"]).origin_proxy
    assert with_credentials == OriginProxySettings(address, with_credentials=True)


TLS = ("--peer-tls-cert", "/c", "--peer-tls-key", "/k", "--peer-tls-ca", "/a")


def test_the_name_in_the_certificates_is_that_of_the_pool() -> None:
    """Over TLS all nodes have one name: the option's, else the name that all members are looked up by."""
    assert options_of("--peers", "dns:peers:9402").tls is None
    by_dns, given = (
        options_of("--peers", "dns:peers:9402", *TLS).tls,
        options_of("--peers", "10.0.0.1:1,10.0.0.2:1", *TLS, "--peer-tls-name", "pool").tls,
    )
    assert by_dns == TlsOptions(TlsPaths(Path("/c"), Path("/k"), Path("/a")), "peers")
    assert given is not None
    assert given.name == "pool"


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (TLS[:2], "--peer-tls-key, --peer-tls-ca"),
        (TLS[2:], "--peer-tls-cert"),
        (("--peer-tls-name", "pool"), "--peer-tls-cert"),
        (("--peers", "10.0.0.1:1,10.0.0.2:1", *TLS), "--peer-tls-name"),
    ],
)
def test_half_of_tls_is_a_usage_error(
    wrong: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """TLS needs a certificate, its key, the authorities and a name: without one of them nothing starts, in clear least
    of all."""
    with pytest.raises(SystemExit, match="2"):
        options_of(*wrong)
    assert expected in capsys.readouterr().err


def test_certificates_that_cannot_be_read_end_the_start() -> None:
    """A daemon does not speak in clear because its certificate is not there."""
    with pytest.raises(Permanent, match="/c") as caught:
        read_pool_tls(options_of("--peers", "dns:peers:9402", *TLS))
    assert caught.value.code == "bad_peer_tls"
    assert read_pool_tls(options_of("--peers", "off", *TLS)) is None


def test_without_a_key_there_are_no_peers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A daemon without a key file opens no port, and its log says once why."""
    port = free_port()
    options = options_of("--peers", "127.0.0.1:1", "--peer-listen", f"127.0.0.1:{port}")
    opening = open_pool(options, Layout(tmp_path), no_labels, DaemonMetrics().add_peers)
    with caplog.at_level(logging.WARNING), opening as pool:
        assert pool is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert len([record for record in caplog.records if "--peer-key-file" in record.getMessage()]) == 1


@pytest.mark.parametrize("text", [None, "", "short"])
def test_the_key_may_come_later(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None) -> None:
    """While the key file is missing, empty or bad there are no peers, which the log says once: every request is refused
    and no version joins a swarm. From the moment that there is a key, the node is in the pool."""
    path, port = tmp_path / "key", free_port()
    if text is not None:
        path.write_text(text)
    options = options_of(
        *("--peers", "198.51.100.1:9402", "--peer-listen", f"127.0.0.1:{port}", "--peer-key-file", str(path))
    )
    metrics = DaemonMetrics()
    with open_pool(options, Layout(tmp_path), no_labels, metrics.add_peers) as pool:
        assert pool is not None
        assert pool.join({BLOB: 5}, ()) is None
        assert ask(port) == 401
        assert b'holdfast_peers{state="idle"} 0.0' in metrics.render()
        path.write_text(KEY)
        assert ask(port) == 404
        assert b'holdfast_peers{state="idle"} 1.0' in metrics.render()
        joined = pool.join({BLOB: 5}, ())
        assert joined is not None
        joined.leave()
    assert len([record for record in caplog.records if "until there is a key" in record.getMessage()]) == 1


class Recorder:
    """A member that tracks versions and has nothing: what it was told by whom, in order."""

    def __init__(self) -> None:
        self.zones: list[str] = []
        self._trackers = Trackers(random.Random(1))

    def announce(self, address: str, message: Announce, now: float) -> Reply:
        self.zones.append(message.zone)
        return self._trackers.announce(address, message, now)

    def seed(self, message: Announce) -> Announce | None:
        return None

    def find_holders(self, digest: Digest) -> tuple[str, ...]:
        return ()


class Uncounted:
    """Metrics of a server that nothing reads."""

    def sent(self, size: int) -> None:
        pass

    def refused(self, status: int) -> None:
        pass


@contextmanager
def recorder_beside(tmp_path: Path, *more: str) -> Iterator[tuple[PoolOptions, Recorder, str]]:
    """The options of a node whose pool has one more member, that member, and a blob that it tracks."""
    recorder = Recorder()
    (tmp_path / "key").write_text(KEY)
    server = PeerServer(
        Contents(Layout(tmp_path / "other"), NoPartials()),
        recorder,
        KeyFile(tmp_path / "key").read,
        ServerSettings(),
        Uncounted(),
    )
    host, other = server.open(("127.0.0.1", 0))
    port = free_port()
    members = [f"{host}:{port}", f"{host}:{other}"]
    blobs = (f"{number:064x}" for number in itertools.count())
    blob = next(blob for blob in blobs if trackers_of(PieceMap([(blob, 5)]).key, members)[0] == members[1])
    peers = ("--peers", ",".join(members), "--peer-listen", members[0], "--peer-key-file", f"{tmp_path}/key")
    try:
        yield options_of(*peers, *more), recorder, blob
    finally:
        server.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_zone_is_that_of_the_nodes_label(tmp_path: Path) -> None:
    """A node tells its trackers the zone that the API says of it, and another one once its label has changed."""
    with FakeApi() as api, recorder_beside(tmp_path) as (options, recorder, blob):
        api.create("/api/v1/nodes", {"metadata": {"name": "node1", "labels": {ZONE_LABEL: "eu-1a"}}})
        cluster = KubernetesCluster(api.cluster(), "node1")
        running = asyncio.create_task(cluster.run(lambda: None))
        opened = open_pool(options, Layout(tmp_path), lambda: cluster.labels, DaemonMetrics().add_peers)
        pool = await asyncio.to_thread(opened.__enter__)
        try:
            assert pool is not None
            assert pool.join({blob: 5}, ()) is not None
            await until(lambda: "eu-1a" in recorder.zones)
            api.patch("/api/v1/nodes/node1", {"metadata": {"labels": {ZONE_LABEL: "eu-1b"}}})
            cluster.published(frozenset({Digest("a" * 64)}))  # a write reads the labels; else it takes five minutes
            await until(lambda: recorder.zones[-1] == "eu-1b")
        finally:
            await asyncio.to_thread(opened.__exit__, None, None, None)
            running.cancel()


@pytest.mark.parametrize("given", ["rack-7", ""])
def test_the_option_goes_before_the_label(tmp_path: Path, given: str) -> None:
    """With `--peer-zone` the label says nothing; an empty one is no zone."""
    with recorder_beside(tmp_path, "--peer-zone", given) as (options, recorder, blob):
        with open_pool(options, Layout(tmp_path), lambda: {ZONE_LABEL: "eu-1a"}, DaemonMetrics().add_peers) as pool:
            assert pool is not None
            assert pool.join({blob: 5}, ()) is not None
            eventually(lambda: len(recorder.zones) > 0)
        assert set(recorder.zones) == {given}


@pytest.mark.parametrize("labels", [None, {}, {ZONE_LABEL: "no zone"}])
def test_without_a_label_there_is_no_zone(tmp_path: Path, labels: dict[str, str] | None) -> None:
    """Labels that are not known yet, that name no zone, or one that cannot be, are no zone."""
    with recorder_beside(tmp_path) as (options, recorder, blob):
        with open_pool(options, Layout(tmp_path), lambda: labels, DaemonMetrics().add_peers) as pool:
            assert pool is not None
            assert pool.join({blob: 5}, ()) is not None
            eventually(lambda: len(recorder.zones) > 0)
        assert set(recorder.zones) == {""}


def test_a_lone_node_fetches_as_without_peers(tmp_path: Path) -> None:
    """A node that knows no other member joins no swarm; the metrics say of no other one."""
    (tmp_path / "key").write_text("k" * 40)
    port = free_port()
    options = options_of(
        *("--peers", f"127.0.0.1:{port}", "--peer-listen", f"127.0.0.1:{port}", "--peer-key-file", f"{tmp_path}/key")
    )
    metrics = DaemonMetrics()
    with open_pool(options, Layout(tmp_path), no_labels, metrics.add_peers) as pool:
        assert pool is not None
        assert pool.join({"a" * 64: 5}, ()) is None
        rendered = metrics.render()
        assert all(f'holdfast_peers{{state="{state}"}} 0.0'.encode() in rendered for state in PeerState)
    assert b"holdfast_peers" not in DaemonMetrics().render()
