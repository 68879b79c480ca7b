"""Measure what serving a blob to other nodes costs: CPU seconds a GB of the server, beside nginx, in turns.

Law: both send the same ranges of 32 MiB from the page cache to the same clients over loopback; the clients' time is not
counted. The server is the daemon's own (`cached/peers/serving`), in a process that does nothing else.

Run `python -m bench.peer_serving --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from bench.harness import bench_main, in_turn, size_argument, workplace
from bench.measure import cpu_seconds
from bench.origins import loopback_environment, nginx, running
from bench.report import Target
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.peers.access import PoolKeys, SignedRequest
from cached.peers.messages import Announce, Reply
from cached.peers.pieces import PIECE_BYTES
from cached.peers.serving.contents import Contents, NoPartials
from cached.peers.serving.server import PeerServer, ServerSettings
from cached.peers.trackers import TooMany

_KEYS = PoolKeys([b"a key that is in no way a secret"])
_CLIENTS = 8
_BUFFER_BYTES = 4 * 1024 * 1024
_SWITCH_S = 0.0005  # as in the daemon
_TARGET = 1.10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.peer_serving", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=size_argument, default=1 << 30, help="of the blob (default 1GiB)")
    parser.add_argument("--sends", type=int, default=8, help="how often it is sent in a round (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="how often, each (default 5)")
    parser.add_argument("--serve", type=Path, metavar="ROOT", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve is not None:
        return _serve(options.serve)
    with workplace(None) as place:
        layout = Layout(place.origin)
        blob = _make_blob(layout, options.size)
        path = f"/v1/blobs/sha256/{blob}"
        found: dict[str, list[float]] = {"holdfast": [], "nginx": []}
        with _holdfast(place.scratch, layout) as ours, _nginx(place.scratch, layout, blob) as theirs:
            servers = {"holdfast": (ours, path), "nginx": (theirs, f"/{blob}")}
            for round_ in range(options.rounds):
                for row in in_turn(list(servers), round_):
                    (pid, address), where = servers[row]
                    before = cpu_seconds(pid)
                    sent = _receive_all(address, where, options.size, options.sends)
                    found[row].append((cpu_seconds(pid) - before) / (sent / 1e9))
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


def _serve(root: Path) -> int:
    """Be the server, until SIGTERM; its port is in the file `port`."""
    sys.setswitchinterval(_SWITCH_S)
    server = PeerServer(
        Contents(Layout(root), NoPartials()), _NoAnnounces(), lambda: _KEYS, ServerSettings(), _Uncounted()
    )
    port = server.open(("127.0.0.1", 0))[1]
    (root / "port.tmp").write_text(str(port))
    (root / "port.tmp").rename(root / "port")
    signal.sigwait([signal.SIGTERM])
    server.close()
    return 0


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


class _Uncounted:
    def sent(self, size: int) -> None:
        """Count nothing."""

    def refused(self, status: int) -> None:
        """Count nothing."""


@contextlib.contextmanager
def _holdfast(scratch: Path, layout: Layout) -> Iterator[tuple[int, tuple[str, int]]]:
    argv = [sys.executable, "-m", "bench.peer_serving", "--serve", str(layout.root)]
    port = layout.root / "port"
    signal.pthread_sigmask(
        signal.SIG_BLOCK, [signal.SIGTERM]
    )  # the server takes it by sigwait(3), from its first moment
    try:
        with running(argv, loopback_environment(), scratch / "holdfast.log", port.exists) as pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            yield pid, ("127.0.0.1", int(port.read_text()))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


@contextlib.contextmanager
def _nginx(scratch: Path, layout: Layout, blob: str) -> Iterator[tuple[int, tuple[str, int]]]:
    with nginx(layout.blob(blob).parent, scratch / "nginx") as url:
        pid = int((scratch / "nginx" / "nginx.pid").read_text())
        yield pid, ("127.0.0.1", int(url.rpartition(":")[2]))


def _receive_all(address: tuple[str, int], path: str, size: int, sends: int) -> int:
    """Receive the whole blob so often, piece by piece, over `_CLIENTS` connections; return the bytes."""
    pieces = [(at, min(at + PIECE_BYTES, size)) for at in range(0, size, PIECE_BYTES)] * sends
    shares = [pieces[client::_CLIENTS] for client in range(_CLIENTS)]
    with ThreadPoolExecutor(_CLIENTS) as pool:
        return sum(pool.map(_receiver(address, path), shares))


def _receiver(address: tuple[str, int], path: str) -> Callable[[list[tuple[int, int]]], int]:
    def receive(pieces: list[tuple[int, int]]) -> int:
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        total = 0
        with socket.create_connection(address) as connection:
            for start, end in pieces:
                wanted = f"bytes={start}-{end - 1}"
                signed = _KEYS.sign(SignedRequest("GET", path, wanted), time.time())
                head = f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: {wanted}\r\nAuthorization: {signed}\r\n\r\n"
                connection.sendall(head.encode())
                total += _receive_body(connection, buffer, end - start)
        return total

    return receive


def _receive_body(connection: socket.socket, buffer: memoryview, length: int) -> int:
    data = b""
    while (at := data.find(b"\r\n\r\n")) < 0:
        data += connection.recv(1024)
    if not data.startswith(b"HTTP/1.1 206 "):
        raise ConnectionError(data.partition(b"\r\n")[0].decode("latin-1"))
    left = length - (len(data) - at - 4)
    while left:
        count = connection.recv_into(buffer[: min(left, len(buffer))], 0, socket.MSG_WAITALL)
        if not count:
            raise ConnectionError("the body ended early")
        left -= count
    return length


if __name__ == "__main__":
    sys.exit(bench_main(main))
