"""The port for other nodes over TLS, by real sockets: the same answers, to nodes that check who sends them."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.errors import HoldfastError, Permanent
from cached.fetch.workers import PEER_HTTP
from cached.peers.access import SignedRequest
from cached.peers.pieces import PIECE_BYTES
from cached.peers.serving.channel import TlsChannel
from cached.peers.serving.server import ServerSettings
from cached.peers.serving.tls_files import TlsFiles, TlsPaths
from cached.transport.client import HttpClient
from cached.transport.connection.cancel import Cancellation
from cached.transport.connection.settings import ServerTrust
from cached.transport.target import HttpTarget
from tests.support.certificates import Certificates, make_certificates
from tests.support.fetching import eventually
from tests.support.pooling import KEYS
from tests.unit.cached.peers.serving.conftest import Node

Start = Callable[..., Node]
NAME = "peers.example"
DATA = os.urandom(3 * 1024 * 1024 + 17)


def issue(folder: Path, name: str = NAME) -> Certificates:
    """A certificate of an authority of its own."""
    folder.mkdir()
    return make_certificates(folder, name)


def files_of(certificates: Certificates) -> TlsFiles:
    return TlsFiles(TlsPaths(certificates.certificate, certificates.key, certificates.authority))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """Those of the pool."""
    return issue(tmp_path / "ours")


@pytest.fixture
def tls(certificates: Certificates) -> TlsFiles:
    """The files of a node."""
    return files_of(certificates)


@pytest.fixture
def ask(tls: TlsFiles) -> Callable[..., bytes]:
    """Return a function that receives a range from a node as another node does; it opens a connection each time."""

    def receive(node: Node, sha256: str, length: int) -> bytes:
        path, wanted = f"/v1/blobs/sha256/{sha256}", f"bytes=0-{length - 1}"
        signed = KEYS.sign(SignedRequest("GET", path, wanted), time.time())
        url = f"https://{node.address[0]}:{node.address[1]}{path}"
        trust = ServerTrust(tls.read_client, NAME)
        with closing(HttpClient(replace(PEER_HTTP, trust=trust))) as client:
            target = HttpTarget(url, headers=(("Authorization", signed),))
            with client.get(target, 0, length, Cancellation()) as body:
                data = bytearray(length)
                assert body.readinto(memoryview(data)) == length
                return bytes(data)

    return receive


def test_a_range_is_sent_over_tls(start: Start, tls: TlsFiles, ask: Callable[..., bytes]) -> None:
    """A member gets the bytes of its range, one that knows neither certificate nor key gets none, and nothing of them
    crosses in clear."""
    node = start(open_channel=tls.open_channel)
    assert ask(node, node.add_blob(DATA), len(DATA)) == DATA
    eventually(lambda: node.metrics.sent_bytes == len(DATA))


@pytest.mark.parametrize("name", ["elsewhere.example", NAME])
def test_who_is_not_of_the_pool_is_not_asked(
    start: Start, tmp_path: Path, ask: Callable[..., bytes], name: str
) -> None:
    """A certificate with another name, or of another authority, ends the connection before a request is sent."""
    node = start(open_channel=files_of(issue(tmp_path / "theirs", name)).open_channel)
    with pytest.raises(HoldfastError) as caught:
        ask(node, node.add_blob(DATA), 10)
    assert caught.value.code == "tls_verification"
    assert node.metrics.sent_bytes == 0
    assert node.metrics.refusals == []


def test_another_name_of_the_same_authority_is_not_of_the_pool(
    start: Start, certificates: Certificates, ask: Callable[..., bytes]
) -> None:
    """The authority may sign other certificates: what counts is the pool's one name."""
    node = start(open_channel=files_of(certificates).open_channel)
    sha256 = node.add_blob(DATA)
    client = replace(PEER_HTTP, trust=ServerTrust(files_of(certificates).read_client, "other.example"))
    with closing(HttpClient(client)) as asking, pytest.raises(HoldfastError) as caught:
        asking.fetch(HttpTarget(f"https://127.0.0.1:{node.address[1]}/v1/blobs/sha256/{sha256}"), 10, Cancellation())
    assert caught.value.code == "tls_verification"


def test_who_speaks_in_clear_gets_nothing(start: Start, tls: TlsFiles, caplog: pytest.LogCaptureFixture) -> None:
    """A signed request in clear to a port that speaks TLS gets no byte of the blob, the log says why, once, and the
    port serves on."""
    node = start(ServerSettings(head_s=5.0), tls.open_channel)
    sha256 = node.add_blob(DATA)
    for _ in range(3):
        with socket.create_connection(node.address, timeout=20) as connection:
            connection.sendall(f"GET /v1/blobs/sha256/{sha256} HTTP/1.1\r\n\r\n".encode())
            answer = b""
            with suppress(ConnectionResetError):
                answer = b"".join(iter(lambda: connection.recv(4096), b""))
            assert b"HTTP" not in answer
    eventually(lambda: [each for each in caplog.records if "--peer-tls-cert" in each.getMessage()])
    assert len([each for each in caplog.records if "refused" in each.getMessage()]) == 1


def test_a_plain_answer_is_not_taken(start: Start, ask: Callable[..., bytes]) -> None:
    """A node that speaks TLS takes nothing from a port in clear, which answers 400."""
    node = start()
    with pytest.raises(HoldfastError) as caught:
        ask(node, node.add_blob(DATA), 10)
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    assert node.metrics.sent_bytes == 0


def test_certificates_are_read_again_when_they_change(
    start: Start, tmp_path: Path, certificates: Certificates, tls: TlsFiles, ask: Callable[..., bytes]
) -> None:
    """A renewed certificate of another authority is served, and asked for, without a restart; files that cannot be used
    leave the ones before in force."""
    node = start(open_channel=tls.open_channel)
    sha256 = node.add_blob(DATA)
    assert ask(node, sha256, 10) == DATA[:10]
    renewed = issue(tmp_path / "renewed")
    certificates.certificate.write_bytes(b"nothing")
    assert ask(node, sha256, 10) == DATA[:10]
    shutil.copy(renewed.certificate, certificates.certificate)  # the key does not match yet
    assert ask(node, sha256, 10) == DATA[:10]
    shutil.copy(renewed.key, certificates.key)
    with pytest.raises(HoldfastError):
        ask(node, sha256, 10)
    shutil.copy(renewed.authority, certificates.authority)
    assert ask(node, sha256, 10) == DATA[:10]


@pytest.mark.parametrize("broken", ["certificate", "key", "authority"])
def test_files_that_are_not_usable_are_an_error(certificates: Certificates, broken: str) -> None:
    """A missing file, or what is no PEM, is `bad_peer_tls`, which names the file and quotes nothing."""
    path = getattr(certificates, broken)
    path.write_bytes(b"a secret that is no PEM")
    for _ in range(2):
        with pytest.raises(Permanent, match=str(path)) as caught:
            files_of(certificates).read()
        assert caught.value.code == "bad_peer_tls"
        assert "secret" not in str(caught.value)
        path.unlink(missing_ok=True)


def test_a_handshake_that_does_not_come_is_ended(start: Start, tls: TlsFiles) -> None:
    """A connection without a handshake, or with half of one, is closed in time."""
    node = start(ServerSettings(head_s=0.2), tls.open_channel)
    for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
        with socket.create_connection(node.address, timeout=20) as connection:
            connection.sendall(begun)
            assert connection.recv(10) == b""


def test_a_peer_that_does_not_read_is_dropped(start: Start, tls: TlsFiles, ask: Callable[..., bytes]) -> None:
    """A reader that takes no bytes loses its upload over TLS too."""
    node = start(ServerSettings(uploads=1, queue=4, wait_s=15.0, stall_s=0.2), tls.open_channel)
    sha256 = node.add_blob(os.urandom(PIECE_BYTES))
    path, wanted = f"/v1/blobs/sha256/{sha256}", f"bytes=0-{PIECE_BYTES - 1}"
    signed = KEYS.sign(SignedRequest("GET", path, wanted), time.time())
    raw = socket.create_connection(node.address, timeout=20)
    with tls.read_client().wrap_socket(raw, server_hostname=NAME) as stalled:
        request = f"GET {path} HTTP/1.1\r\nAuthorization: {signed}\r\nRange: {wanted}\r\n\r\n"
        stalled.sendall(request.encode())
        assert stalled.recv(1) == b"H"
        assert len(ask(node, sha256, 10)) == 10


def test_a_certificate_that_has_ended_is_not_of_the_pool(
    start: Start, tmp_path: Path, certificates: Certificates
) -> None:
    """A node whose certificate was not renewed in time is asked for nothing by others, whose error says why."""
    (tmp_path / "ended").mkdir()
    ended = make_certificates(tmp_path / "ended", NAME, days=-1)
    node = start(open_channel=files_of(ended).open_channel)
    trust = ServerTrust(files_of(ended).read_client, NAME)
    with closing(HttpClient(replace(PEER_HTTP, trust=trust))) as client, pytest.raises(HoldfastError) as caught:
        client.fetch(HttpTarget(f"https://127.0.0.1:{node.address[1]}/v1/any"), 10, Cancellation())
    assert caught.value.code == "tls_verification"
    assert "expired" in caught.value.message
    assert node.metrics.refusals == []


def test_a_connection_that_is_reset_before_it_is_accepted_ends_alone(
    start: Start, tls: TlsFiles, ask: Callable[..., bytes]
) -> None:
    """A peer that sends bytes and resets its connection while it waits to be accepted does not end the port: the next
    one is served."""
    begun, go_on = threading.Event(), threading.Event()

    def open_channel(accepted: socket.socket, stall_s: float) -> TlsChannel:
        begun.set()
        assert go_on.wait(60)
        return tls.open_channel(accepted, stall_s)

    node = start(open_channel=open_channel)
    with socket.create_connection(node.address, timeout=20):
        assert begun.wait(60)
        for _ in range(3):
            with socket.create_connection(node.address, timeout=20) as reset:
                reset.sendall(b"\x16\x03\x01")
                reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        go_on.set()
        assert ask(node, node.add_blob(DATA), 10) == DATA[:10]
