"""What a node serves to its pool, by real sockets: right bytes to members, nothing to others, within bounds."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cached.contract.digest import Digest
from cached.contract.errors import Permanent
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.peers.access import WINDOW_S, PoolKeys, SignedRequest
from cached.peers.messages import Announce, decode_holders, decode_reply, encode_announce
from cached.peers.pieces import PIECE_BYTES
from cached.peers.serving.contents import Contents, NoPartials
from cached.peers.serving.server import PeerServer, ServerSettings
from tests.support.fetching import eventually
from tests.support.pooling import KEYS, Counted, Tracking
from tests.unit.cached.peers.serving.conftest import Node

Start = Callable[..., Node]
DATA = os.urandom(3 * 1024 * 1024 + 17)
WELL_FORMED = Announce("d" * 64, 9, "", 0, 0)
OTHER_POOL = PoolKeys([b"another pool's key, of 32 bytes.."])


def blob_path(sha256: str) -> str:
    return f"/v1/blobs/sha256/{sha256}"


def signed_headers(path: str, wanted: str) -> dict[str, str]:
    return {"Authorization": KEYS.sign(SignedRequest("GET", path, wanted), time.time()), "Range": wanted}


def head(path: str, wanted: str, *more: str) -> bytes:
    signed = KEYS.sign(SignedRequest("GET", path, wanted), time.time())
    lines = [f"GET {path} HTTP/1.1", "Host: x", f"Authorization: {signed}", f"Range: {wanted}", *more, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, len(DATA) - 1), (4095, 1024 * 1024), (5, 10**15 - 1)])
def test_a_range_of_a_committed_blob_is_sent(start: Start, first: int, last: int) -> None:
    """A member gets exactly the bytes of its range, at most to the blob's end, with the blob's size."""
    node = start()
    last = min(last, first + PIECE_BYTES - 1)
    response = node.get(blob_path(node.add_blob(DATA)), f"bytes={first}-{last}")
    expected = DATA[first : last + 1]
    assert response.status == 206
    assert response.headers["Content-Range"] == f"bytes {first}-{first + len(expected) - 1}/{len(DATA)}"
    assert response.body == expected
    eventually(lambda: node.metrics.sent_bytes == len(expected))  # it is counted after the last byte


def test_a_range_comes_with_the_pieces_of_the_version_that_is_named(tmp_path: Path) -> None:
    """With a range the asker is told what this node has of the version that the signed path names; without a name, or
    of a version that is not fetched here, it is told nothing."""

    class OfOneVersion(NoPartials):
        def list_have(self, version: str) -> bytes | None:
            return b"\x05" if version == "e" * 64 else None

    layout = Layout(tmp_path)
    server = PeerServer(Contents(layout, OfOneVersion()), Tracking(), lambda: KEYS, ServerSettings(), Counted())
    node = Node(layout, server.open(("127.0.0.1", 0)), Counted())
    try:
        path = blob_path(node.add_blob(b"abc"))
        for query, told in (("?pieces=" + "e" * 64, "BQ=="), ("?pieces=" + "f" * 64, None), ("", None)):
            answer = node.get(path + query, "bytes=0-2")
            assert (answer.status, answer.body, answer.headers.get("Holdfast-Pieces")) == (206, b"abc", told)
        assert node.get(f"{path}?pieces=x", "bytes=0-2").status == 404
    finally:
        server.close()


def test_one_connection_serves_many_ranges(start: Start) -> None:
    """A connection is kept for the next range."""
    node = start()
    path = blob_path(node.add_blob(DATA))
    with socket.create_connection(node.address) as connection, connection.makefile("rb") as stream:
        for at in (0, 100, 7):
            connection.sendall(head(path, f"bytes={at}-{at + 9}"))
            assert stream.readline() == b"HTTP/1.1 206 Partial Content\r\n"
            while stream.readline() != b"\r\n":
                pass
            assert stream.read(10) == DATA[at : at + 10]


def test_only_committed_blobs_are_there(start: Start, tmp_path: Path) -> None:
    """A partial blob, a quarantined one, a symlink in a blob's place, and what was never here are 404 alike."""
    node = start()
    digest = hashlib.sha256(DATA).hexdigest()
    for folder in (node.layout.ingest / digest, node.layout.quarantine):
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(DATA)
    (node.layout.quarantine / digest).write_bytes(DATA)
    assert node.get(blob_path(digest), "bytes=0-9").status == 404
    link = node.layout.blob(digest)
    link.parent.mkdir()
    (tmp_path / "secret").write_bytes(DATA)
    link.symlink_to(tmp_path / "secret")
    assert node.get(blob_path(digest), "bytes=0-9").status == 404


def test_a_range_beyond_the_end_is_not_there(start: Start) -> None:
    """A range that begins at or after the blob's end is 404: a peer that asks for it has another blob in mind."""
    node = start()
    assert node.get(blob_path(node.add_blob(DATA)), f"bytes={len(DATA)}-{len(DATA)}").status == 404


@pytest.mark.parametrize(("keys", "age"), [(OTHER_POOL, 0.0), (KEYS, WINDOW_S + 5.0), (KEYS, -WINDOW_S - 5.0)])
def test_another_pool_or_time_gets_nothing(start: Start, keys: PoolKeys, age: float) -> None:
    """Another key, and a request older or younger than the window, are 401 for a blob that is here and for one that
    is not."""
    node = start()
    for sha256 in (node.add_blob(DATA), "0" * 64):
        response = node.get(blob_path(sha256), "bytes=0-9", keys, time.time() - age)
        assert response.status == 401
        assert DATA[:10] not in response.body
    assert node.metrics.sent_bytes == 0


def test_a_signature_for_one_range_reads_no_other(start: Start) -> None:
    """A captured signature asks for its own range of its own blob only."""
    node = start()
    path = blob_path(node.add_blob(DATA))
    changed = head(path, "bytes=0-9").replace(b"bytes=0-9", b"bytes=0-99")
    with socket.create_connection(node.address) as connection:
        connection.sendall(changed)
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET /v1/blobs HTTP/1.0\r\n\r\n",
        b"PUT /v1/blobs HTTP/1.1\r\n\r\n",
        b"GET  /v1/blobs HTTP/1.1\r\n\r\n",
        b"GET /v1/blobs HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
        b"GET /v1/blobs HTTP/1.1\r\nA : b\r\n\r\n",
        b"GET /v1/blobs HTTP/1.1\r\nA: b\r\na: c\r\n\r\n",
        b"GET /v1/blobs HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
        b"GET /v1/blobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 2000,
    ],
)
def test_a_strange_request_is_refused_and_closed(start: Start, data: bytes) -> None:
    """What is not exactly one of our requests gets 400 and the end of its connection; the next client is served."""
    node = start()
    with socket.create_connection(node.address, timeout=120) as connection:
        connection.sendall(data)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert node.get(blob_path(node.add_blob(DATA)), "bytes=0-0").status == 206


def test_a_damaged_request_gets_its_own_bytes_or_none(start: Start) -> None:
    """A signed request with a few bytes changed anywhere gets what was signed, an error or the end of its connection;
    the port serves on."""
    node, rng = start(ServerSettings(head_s=0.05, idle_s=0.05)), random.Random(7)
    path = blob_path(node.add_blob(DATA))
    for _ in range(300):
        damaged = bytearray(head(path, "bytes=5-14"))
        for _ in range(rng.randint(1, 4)):
            at, how = rng.randrange(len(damaged)), rng.random()
            damaged[at : at + (how < 0.7)] = b"" if how < 0.2 else rng.choice(b" \r\n:,=-0/AZ\x00\xff").to_bytes()
        with socket.create_connection(node.address, timeout=20) as connection:
            connection.sendall(damaged)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # it was refused before all of it was read
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
                if answer.startswith(b"HTTP/1.1 206 "):
                    assert answer.endswith(b"\r\n\r\n" + DATA[5:15])
                else:
                    assert answer.startswith((b"", b"HTTP/1.1 4")[bool(answer)])
    assert node.get(path, "bytes=0-0").status == 206


@pytest.mark.parametrize("wanted", ["bytes=5-4", f"bytes=0-{PIECE_BYTES}", "bytes=-5", "bytes=0-", "bytes=0-1,3-4", ""])
def test_a_strange_range_is_refused(start: Start, wanted: str) -> None:
    """No range, several, an open or empty one, or one beyond a piece is 400: a node never sends more than a piece."""
    node = start()
    assert node.get(blob_path(node.add_blob(DATA)), wanted).status == 400


@pytest.mark.parametrize("path", ["/", "/v1/blobs/sha256/", "/v1/blobs/sha256/../../x", "/metrics", "/v1/status"])
def test_nothing_else_is_there(start: Start, path: str) -> None:
    """The port has blobs and manifests and nothing else of the daemon."""
    assert start().get(path).status == 404


def test_who_has_a_snapshot_is_told(start: Start) -> None:
    """A node says whether a snapshot is here, and which members it found to have one; of a digest that is none, and to
    another pool, nothing."""
    node = start()
    path = f"/v1/snapshots/sha256/{'a' * 64}"
    assert node.get(path).status == 404
    place = node.layout.public.snapshot(Digest("a" * 64)).manifest
    place.parent.mkdir(parents=True)
    place.write_bytes(b"x")
    assert (node.get(path).status, node.get(path).body) == (200, b"")
    assert node.get(path, keys=OTHER_POOL).status == 401
    holders = f"/v1/holders/sha256/{'a' * 64}"
    assert decode_holders(node.get(holders).body) == ()
    assert node.get(holders, keys=OTHER_POOL).status == 401
    assert [node.get(each[:-1]).status for each in (path, holders)] == [404, 404]


@pytest.mark.parametrize("what", ["chain", "digests", "pieces"])
def test_a_version_that_is_not_here_has_nothing(start: Start, what: str) -> None:
    """Of a version that a node neither has nor fetches it tells nothing, and to another pool nothing at all."""
    path = f"/v1/versions/{'a' * 64}/{what}"
    assert start().get(path).status == 404
    assert start().get(path, keys=OTHER_POOL).status == 401


def test_a_manifest_is_sent_only_if_it_is_its_digest(start: Start) -> None:
    """A snapshot's manifest is served by its digest; one that was changed on the disk is not."""
    node = start()
    manifest = Manifest.build([FileEntry("a", "0" * 64, 3)])
    place = node.layout.public.snapshot(manifest.digest).manifest
    path = f"/v1/manifests/sha256/{manifest.digest.hex}"
    assert node.get(path).status == 404
    place.parent.mkdir(parents=True)
    place.write_bytes(manifest.canonical())
    response = node.get(path)
    assert response.status == 200
    assert Digest.of(response.body) == manifest.digest
    place.write_bytes(manifest.canonical() + b" ")
    assert node.get(path).status == 404


def test_uploads_are_bounded_and_the_next_one_waits(start: Start) -> None:
    """Beyond the uploads at once a request waits; when its turn does not come, or the queue is full, it is 503 with
    the node's load."""
    node = start(ServerSettings(uploads=1, queue=1, wait_s=0.3, stall_s=100.0))
    big = os.urandom(PIECE_BYTES)
    path = blob_path(node.add_blob(big))
    # More than the sockets hold: it is served until it is read.
    with node.ask(path, f"bytes=0-{PIECE_BYTES - 1}") as slow, ThreadPoolExecutor(1) as pool:
        assert slow.status == 206
        waiting = node.get(path, "bytes=0-9")
        assert (waiting.status, waiting.headers["Holdfast-Load"]) == (503, "1,0")
        served = pool.submit(node.get, path, "bytes=0-9")
        assert slow.read() == big
        assert served.result().status in (206, 503)
    assert node.get(path, "bytes=0-9").status == 206


def test_a_peer_that_does_not_read_is_dropped(start: Start) -> None:
    """A reader that takes no bytes loses its upload, and another one is served."""
    node = start(ServerSettings(uploads=1, queue=4, wait_s=15.0, stall_s=0.2))
    path = blob_path(node.add_blob(os.urandom(PIECE_BYTES)))
    with node.ask(path, f"bytes=0-{PIECE_BYTES - 1}") as stalled:
        assert stalled.status == 206
        assert node.get(path, "bytes=0-9").status == 206


def test_the_upload_rate_is_kept(start: Start) -> None:
    """Two peers together get no more than the limit, beyond its burst."""
    rate = 8 * 1024 * 1024
    node = start(ServerSettings(rate=rate))
    path = blob_path(node.add_blob(DATA))
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        bodies = pool.map(lambda _: node.get(path, f"bytes=0-{len(DATA) - 1}").body, range(2))
        assert list(bodies) == [DATA, DATA]
    assert time.monotonic() - began >= 2 * len(DATA) / rate - 0.2  # a limit is a least time


def test_idle_connections_make_room(start: Start) -> None:
    """Past the limit of connections the longest idle one is closed: who holds some open locks no other client out."""
    node = start(ServerSettings(connections=3))
    path = blob_path(node.add_blob(DATA))
    holding = [socket.create_connection(node.address, timeout=120) for _ in range(3)]
    try:
        assert node.get(path, "bytes=0-9").status == 206
        assert holding[0].recv(1) == b""
    finally:
        for each in holding:
            each.close()


def test_a_slow_head_is_ended(start: Start) -> None:
    """A head that does not end in time, or an idle connection, is closed without an answer."""
    node = start(ServerSettings(idle_s=0.2, head_s=0.2))
    for begun in (b"", b"GET /v1"):
        with socket.create_connection(node.address, timeout=120) as connection:
            connection.sendall(begun)
            assert connection.recv(10) == b""


def test_closing_ends_every_thread(start: Start, tmp_path: Path) -> None:
    """After `close` no thread is left, also of uploads that nothing reads, and the port is free."""
    node = start()
    server = PeerServer(Contents(node.layout, NoPartials()), Tracking(), lambda: KEYS, ServerSettings(), Counted())
    address = server.open(("127.0.0.1", 0))
    other = Node(node.layout, address, Counted())
    path = blob_path(node.add_blob(os.urandom(PIECE_BYTES)))
    before = set(threading.enumerate())
    with other.ask(path, f"bytes=0-{PIECE_BYTES - 1}"), socket.create_connection(address):
        server.close()
        assert set(threading.enumerate()) <= before
    again = PeerServer(Contents(node.layout, NoPartials()), Tracking(), lambda: KEYS, ServerSettings(), Counted())
    assert again.open(address) == address
    again.close()


def test_a_taken_port_is_an_error(start: Start) -> None:
    """A port that is in use is `cannot_listen`, with what to do."""
    node = start()
    server = PeerServer(Contents(node.layout, NoPartials()), Tracking(), lambda: KEYS, ServerSettings(), Counted())
    with pytest.raises(Permanent, match=str(node.address[1])) as caught:
        server.open(node.address)
    assert caught.value.code == "cannot_listen"


def test_an_announce_is_answered_by_the_tracker(start: Start) -> None:
    """Two nodes announce a version at its tracker's port: one is told to fetch its pieces, and the other that the first
    one is a neighbour, at the address it was heard from and the port it says."""
    node = start()
    announce = Announce("c" * 64, 3, "", 0, 7, neighbours=9)
    first = node.announce(encode_announce(announce), 1001)
    assert first.status == 200
    assert decode_reply(first.body, 3).active
    second = decode_reply(node.announce(encode_announce(announce), 1002).body, 3)
    assert second.neighbours == ("127.0.0.1:1001",)


def announce_with(**changes: object) -> bytes:
    return json.dumps(json.loads(encode_announce(WELL_FORMED)) | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": 2},
        {"protocol": 0, "pieces": "many"},
        {"have": "////"},
        {"have": "A" * 900_000},
        {"have": "/wM="},  # all nine, and one beyond
        {"have": "AQA=", "want": "AQA="},
        {"pieces": 1 << 30},
        {"pieces": 1 << 17},
    ],
    ids=["newer", "older", "short", "long", "beyond", "both", "count", "length"],
)
def test_an_absurd_announce_is_refused(start: Start, changes: dict[str, object]) -> None:
    """Another protocol, and bitmaps of another length, beyond the last piece or that contradict each other, are 400 at
    the port, begin nothing, and the next announce is answered as if there had been none."""
    node = start()
    assert node.announce(announce_with(**changes), 1001).status == 400
    good = node.announce(encode_announce(replace(WELL_FORMED, want=511, neighbours=9)), 1002)
    assert decode_reply(good.body, 9).neighbours == ()


@pytest.mark.parametrize("body", [b"x", b"{}", b"\0" * 1000, b"[" * 100_000, encode_announce(WELL_FORMED)[:-9]])
def test_a_strange_announce_is_refused(start: Start, body: bytes) -> None:
    """A body that is no announce is 400, and the next one is answered."""
    node = start()
    assert node.announce(body).status == 400
    assert node.announce(encode_announce(WELL_FORMED)).status == 200


def test_an_announce_is_the_pools(start: Start) -> None:
    """Another key is 401 before its body is read; a body that is not the signed one is 400: no announce of a node can
    be changed on its way."""
    node = start()
    body = encode_announce(WELL_FORMED)
    assert node.announce(body, keys=OTHER_POOL).status == 401
    assert node.announce(body, signed_body=body + b" ").status == 400
    with socket.create_connection(node.address, timeout=120) as connection:
        connection.sendall(b"POST /v1/announces/1 HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("length", ["", "0", "-1", "1048577", "99999999999", "+5", "1e3"])
def test_a_strange_length_is_refused(start: Start, length: str) -> None:
    """A POST without a length, or one beyond the bound, is 400."""
    with socket.create_connection(start().address, timeout=120) as connection:
        connection.sendall(f"POST /v1/announces/1 HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_a_flood_of_announces_is_refused(start: Start) -> None:
    """A node that announces again and again is told to wait, and the port serves on."""
    node = start()
    body = encode_announce(WELL_FORMED)
    assert 503 in {node.announce(body).status for _ in range(200)}
    assert node.announce(body, 1003).status == 200
    assert node.get(blob_path(node.add_blob(DATA)), "bytes=0-0").status == 206


def test_a_host_that_says_many_ports_is_few_nodes(start: Start) -> None:
    """Announces of one host with another port each are refused after a few: it cannot fill a tracker with nodes that
    there are not."""
    node = start()
    body = encode_announce(WELL_FORMED)
    statuses = [node.announce(body, port).status for port in range(2000, 2050)]
    assert statuses[0] == 200
    assert 503 in statuses


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_strange_port_is_refused(start: Start, port: int) -> None:
    """A node that says a port that there is not is refused."""
    assert start().announce(encode_announce(WELL_FORMED), port).status in (400, 404)


def test_strangers_close_no_connection_of_the_pool(start: Start) -> None:
    """Where there are too many connections, those that never showed the pool's key make room first: a member keeps its
    own, however long it was idle, and a new member is served."""
    node = start(ServerSettings(connections=3))
    path = blob_path(node.add_blob(DATA))
    with contextlib.ExitStack() as stack:
        member = stack.enter_context(contextlib.closing(http.client.HTTPConnection(*node.address, timeout=120)))
        for strangers in (6, 0):
            member.request("GET", path, headers=signed_headers(path, "bytes=0-9"))
            with contextlib.closing(member.getresponse()) as response:
                assert (response.status, response.read()) == (206, DATA[:10])
            for _ in range(strangers):
                stranger = stack.enter_context(socket.create_connection(node.address, timeout=120))
                stranger.sendall(b"GET /v1")
        assert node.get(path, "bytes=0-9").status == 206


def test_a_flood_of_connections_takes_bounded_threads(start: Start) -> None:
    """However many connections are opened at once, the port has twice as many threads as connections it allows, and
    serves a member afterwards."""
    node = start(ServerSettings(connections=8))
    path = blob_path(node.add_blob(DATA))
    before, most = threading.active_count(), 0
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(node.address, timeout=120))
            most = max(most, threading.active_count() - before)
        assert most <= 16 + 8  # a thread that has given up its place lives for a moment
        assert node.get(path, "bytes=0-9").status == 206


def test_requests_that_are_sent_at_once_are_answered_in_turn(start: Start) -> None:
    """A client may send several requests before it reads: each is answered, in their order; what follows the last one
    and is no request ends the connection."""
    node = start()
    path = blob_path(node.add_blob(DATA))
    asked = [(0, 9), (5, 70_000), (3, 3)]
    with socket.create_connection(node.address, timeout=120) as connection:
        connection.sendall(b"".join(head(path, f"bytes={first}-{last}") for first, last in asked) + b"GET\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    for first, last in asked:
        top, _, answer = answer.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 206 ")
        assert answer[: last - first + 1] == DATA[first : last + 1]
        answer = answer[last - first + 1 :]
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_version_that_is_evicted_is_sent_to_its_end(start: Start) -> None:
    """A range that is being sent keeps its bytes when the blob is deleted; the next request finds nothing."""
    node = start()
    data = os.urandom(PIECE_BYTES)
    sha256 = node.add_blob(data)
    with node.ask(blob_path(sha256), f"bytes=0-{PIECE_BYTES - 1}") as response:
        assert response.read(10) == data[:10]
        node.layout.blob(sha256).unlink()
        assert response.read() == data[10:]
    assert node.get(blob_path(sha256), "bytes=0-9").status == 404
