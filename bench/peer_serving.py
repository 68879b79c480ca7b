"""Measure what serving a blob to other nodes costs, in clear and over TLS: CPU seconds a GB, beside nginx, in turns.

Law: both send the same ranges of 32 MiB from the page cache to the same clients over loopback; the clients' time is not
counted. The server is the daemon's own (`cached/peers/serving`), in a process that does nothing else.

Run `python -m bench.peer_serving --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.harness import bench_main, in_turn, size_argument, workplace
from bench.measure import cpu_seconds
from bench.origins import nginx
from bench.peer_port import KEYS, port_process, serve_port
from bench.report import Target
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.peers.access import SignedRequest
from cached.peers.messages import Announce, Reply
from cached.peers.pieces import PIECE_BYTES
from cached.peers.serving.tls_files import TlsFiles, TlsPaths
from cached.peers.trackers import TooMany

_CLIENTS = 8
_BUFFER_BYTES = 4 * 1024 * 1024
_TARGET = 1.10
_NAME = "peers.bench"
_TLS = "holdfast, TLS"


@dataclass(frozen=True, slots=True)
class _Server:
    """A running server; `tls`: how it is asked, None: in clear."""

    pid: int
    address: tuple[str, int]
    path: str
    tls: ssl.SSLContext | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.peer_serving", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=size_argument, default=1 << 30, help="of the blob (default 1GiB)")
    parser.add_argument("--sends", type=int, default=8, help="how often it is sent in a round (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="how often, each (default 5)")
    parser.add_argument("--tls", action="store_true", help="also over TLS, which needs openssl")
    parser.add_argument("--serve", type=Path, metavar="ROOT", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve is not None:
        root: Path = options.serve
        if options.tls:
            serve_port(root, _NoAnnounces(), root / "port-tls", _read_certificate(root).open_channel)
        else:
            serve_port(root, _NoAnnounces(), root / "port")
        return 0
    with workplace(None) as place, contextlib.ExitStack() as stack:
        layout = Layout(place.origin)
        blob = _make_blob(layout, options.size)
        path = f"/v1/blobs/sha256/{blob}"
        ours = stack.enter_context(_holdfast(place.scratch / "clear", layout, None))
        servers = {"holdfast": _Server(*ours, path), "nginx": stack.enter_context(_nginx(place.scratch, layout, blob))}
        if options.tls:
            context = _make_certificate(layout.root)
            encrypted = stack.enter_context(_holdfast(place.scratch / "tls", layout, context))
            servers[_TLS] = _Server(*encrypted, path, context)
        found: dict[str, list[float]] = {row: [] for row in servers}
        for round_ in range(options.rounds):
            for row in in_turn(list(servers), round_):
                server = servers[row]
                before = cpu_seconds(server.pid)
                sent = _receive_all(server, options.size, options.sends)
                found[row].append((cpu_seconds(server.pid) - before) / (sent / 1e9))
    print("| server | CPU s/GB, median | least | most |\n| --- | --- | --- | --- |")
    for row, values in found.items():
        print(f"| {row} | {median(values):.3f} | {min(values):.3f} | {max(values):.3f} |")
    ratio = median(mine / other for mine, other in zip(found["holdfast"], found["nginx"], strict=True))
    target = Target("serving, CPU time by nginx's", ratio, _TARGET, False, "")
    print(target)
    return 0 if target.met else 1


def _make_blob(layout: Layout, size: int) -> str:
    block = os.urandom(1 << 20)
    blocks = [block[at:] + block[:at] for at in range(size >> 20)]
    digest = hashlib.sha256()
    for each in blocks:
        digest.update(each)
    path = layout.blob(digest.hexdigest())
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.writelines(blocks)
    return digest.hexdigest()


def _make_certificate(folder: Path) -> ssl.SSLContext:
    """Write a certificate and its key for the server; return what a client checks it by."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={_NAME}", "-addext", f"subjectAltName=DNS:{_NAME}"]
    subprocess.run(
        [*argv, *names, "-out", folder / "tls.crt", "-keyout", folder / "tls.key"], check=True, capture_output=True
    )
    return _read_certificate(folder).read_client()


def _read_certificate(folder: Path) -> TlsFiles:
    return TlsFiles(TlsPaths(folder / "tls.crt", folder / "tls.key", folder / "tls.crt"))


class _NoAnnounces:
    def announce(self, address: str, message: Announce, now: float) -> Reply:  # noqa: ARG002
        """Refuse: nothing is fetched."""
        raise TooMany("a benchmark")

    def seed(self, message: Announce) -> Announce | None:  # noqa: ARG002
        """Return None: nothing is fetched."""
        return None

    def find_holders(self, digest: Digest) -> tuple[str, ...]:  # noqa: ARG002
        """Return nothing: there are no others."""
        return ()


@contextlib.contextmanager
def _holdfast(scratch: Path, layout: Layout, tls: ssl.SSLContext | None) -> Iterator[tuple[int, tuple[str, int]]]:
    argv = [sys.executable, "-m", "bench.peer_serving", "--serve", str(layout.root), *(["--tls"] if tls else [])]
    scratch.mkdir()
    with port_process(argv, scratch / "holdfast.log", layout.root / ("port-tls" if tls else "port")) as server:
        yield server


@contextlib.contextmanager
def _nginx(scratch: Path, layout: Layout, blob: str) -> Iterator[_Server]:
    with nginx(layout.blob(blob).parent, scratch / "nginx") as url:
        pid = int((scratch / "nginx" / "nginx.pid").read_text())
        yield _Server(pid, ("127.0.0.1", int(url.rpartition(":")[2])), f"/{blob}")


def _receive_all(server: _Server, size: int, sends: int) -> int:
    """Receive the whole blob so often, piece by piece, over `_CLIENTS` connections; return the bytes."""
    pieces = [(at, min(at + PIECE_BYTES, size)) for at in range(0, size, PIECE_BYTES)] * sends
    shares = [pieces[client::_CLIENTS] for client in range(_CLIENTS)]
    with ThreadPoolExecutor(_CLIENTS) as pool:
        return sum(pool.map(_receiver(server), shares))


def _receiver(server: _Server) -> Callable[[list[tuple[int, int]]], int]:
    def receive(pieces: list[tuple[int, int]]) -> int:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        total = 0
        path = server.path
        with _connect(server) as connection:
            for start, end in pieces:
                wanted = f"bytes={start}-{end - 1}"
                signed = KEYS.sign(SignedRequest("GET", path, wanted), time.time())
                head = f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: {wanted}\r\nAuthorization: {signed}\r\n\r\n"
                connection.sendall(head.encode())
                total += _receive_body(connection, buffer, end - start)
        return total

    return receive


def _connect(server: _Server) -> socket.socket:
    connection = socket.create_connection(server.address)
    return connection if server.tls is None else server.tls.wrap_socket(connection, server_hostname=_NAME)


def _receive_body(connection: socket.socket, buffer: memoryview, length: int) -> int:
    data = b""
    while (at := data.find(b"\r\n\r\n")) < 0:
        data += connection.recv(1024)
    if not data.startswith(b"HTTP/1.1 206 "):
        raise ConnectionError(data.partition(b"\r\n")[0].decode("latin-1"))
    left = length - (len(data) - at - 4)
    while left:
        part = buffer[: min(left, len(buffer))]
        encrypted = isinstance(connection, ssl.SSLSocket)
        count = connection.recv_into(part) if encrypted else connection.recv_into(part, 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionError("the body ended early")
        left -= count
    return length


if __name__ == "__main__":
    sys.exit(bench_main(main))
