"""Measure what a tracker costs: the processor seconds of 1,000 announces, with HTTP, signatures and JSON, on its port.

Law: the server is the daemon's own (`cached/peers/serving`, `cached/peers/trackers.py`), in a process that does nothing
else; the announcing nodes are in this one, each at an address of its own (127.0.x.y), and their time is not counted. A
version of 140 GB spreads evenly in 50 s. Each node announces once a second of the version's time, however long that
takes here: other work of the machine changes no figure much.

Run `python -m bench.peer_tracker --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import random
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.harness import bench_main, workplace
from bench.measure import cpu_seconds
from bench.peer_port import KEYS, port_process, serve_port
from bench.report import Target
from cached.peers.access import SignedRequest, digest_content
from cached.peers.messages import decode_reply, encode_announce
from cached.peers.swarm import Swarm
from tests.support.pooling import Tracking

_PIECES = 4172
_SPREADS_S = 50
_TARGET = 0.30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if the target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.peer_tracker", description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1000, help="that announce (default 1000)")
    parser.add_argument(
        "--seconds", type=_parse_seconds, default=10, help="of the version's time, 2 or more (default 10)"
    )
    parser.add_argument("--serve", type=Path, metavar="ROOT", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve is not None:
        serve_port(options.serve, Tracking(), options.serve / "port")
        return 0

    with workplace(None) as place, _tracker(place.scratch, place.origin) as (pid, address):
        nodes = [_Node(number, address) for number in range(options.nodes)]
        order = list(range(_PIECES))
        random.Random(7).shuffle(order)
        each = _PIECES // _SPREADS_S
        spent = []
        for second in range(options.seconds):
            before = cpu_seconds(pid)
            for node in nodes:
                node.announce(second, order[second * each : (second + 1) * each], len(nodes))
            spent.append((cpu_seconds(pid) - before) * 1000 / len(nodes))
            print(f"second {second}: {spent[-1]:.3f} CPU s for 1,000 announces", flush=True)
        reconnected = sum(node.connects for node in nodes) - len(nodes)
        for node in nodes:
            node.close()
    share = sum(spent[1:]) / len(spent[1:])  # the first second is of new connections
    print(f"connections opened again: {reconnected} of {len(nodes) * options.seconds} announces")
    target = Target("tracker, of a core at 1,000 announces a second", share, _TARGET, False, "")
    print(target)
    return 0 if target.met else 1


class _Node:
    """A node that announces, with its connection."""

    def __init__(self, number: int, tracker: tuple[str, int]) -> None:
        self.connects = 0
        self._number = number
        self._tracker = tracker
        self._source = f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        self._rng = random.Random(number)
        self._swarm = Swarm("e" * 64, _PIECES, f"zone-{number % 4}", 0, 0.0, self._rng)
        self._connection: socket.socket | None = None

    def announce(self, second: int, new: Sequence[int], nodes: int) -> None:
        """Have most of the new pieces, and announce."""
        for piece in self._rng.sample(new, len(new) * 9 // 10):
            self._swarm.have |= 1 << piece
        if second and self._number % max(1, nodes // 100) == 0:
            piece = new[self._number * len(new) // nodes]
            self._swarm.vouch(piece, hashlib.sha256(b"%d" % self._number).hexdigest())
        now = second + self._number / nodes
        body = encode_announce(self._swarm.make_announce((1 << _PIECES) - 1, now))
        path, digest = "/v1/announces/9402", digest_content(body)
        signed = KEYS.sign(SignedRequest("POST", path, "", digest), time.time())
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nContent-Digest: {digest}\r\n"
            f"Authorization: {signed}\r\n\r\n"
        )
        self._swarm.take_reply(decode_reply(self._exchange(head.encode() + body), _PIECES), now)

    def _exchange(self, request: bytes) -> bytes:
        """Send a request on the connection that is open, or on a new one where the tracker closed it."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.sendall(request)
                answer = _receive(self._connection)
                if answer is not None:
                    return answer
            self._connection.close()
        self._connection = socket.create_connection(self._tracker, source_address=(self._source, 0))
        self.connects += 1
        self._connection.sendall(request)
        answer = _receive(self._connection)
        if answer is None:
            raise ConnectionError("the tracker closed the connection without an answer")
        return answer

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()


def _receive(connection: socket.socket) -> bytes | None:
    """Return the body of an answer; None where the connection was closed before it."""
    data = b""
    while (at := data.find(b"\r\n\r\n")) < 0:
        received = connection.recv(65536)
        if not received:
            return None
        data += received
    if not data.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError(data[:200].decode("latin-1"))
    length = next(int(line[15:]) for line in data[:at].split(b"\r\n") if line.startswith(b"Content-Length:"))
    body = data[at + 4 :]
    while len(body) < length:
        received = connection.recv(65536)
        if not received:
            raise ConnectionError("the answer ended early")
        body += received
    return body


def _parse_seconds(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"expected 2 or more, found {number}: the first second does not count")
    return number


@contextlib.contextmanager
def _tracker(scratch: Path, root: Path) -> Iterator[tuple[int, tuple[str, int]]]:
    argv = [sys.executable, "-m", "bench.peer_tracker", "--serve", str(root)]
    with port_process(argv, scratch / "tracker.log", root / "port") as server:
        yield server


if __name__ == "__main__":
    sys.exit(bench_main(main))
