"""Fetch one version with daemons of one pool in network namespaces, and count what their origin sends.

Law: real daemons, each in a namespace whose link `tc` limits, and nginx in one of its own, whose log counts the bytes.
The links are so slow that the processors are not the limit; how busy they were is printed. Every blob of every node is
hashed afterwards, whatever happened. Needs root, iproute2 and nginx.

Run `python -m bench.pool --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from bench.daemon import CatalogEntry, write_catalog
from bench.harness import Workplace, bench_main, matches, size_argument, workplace
from bench.machine import require_space
from bench.measure import failed, tail, wait_until
from bench.netns import Machine, Network, network
from bench.origins import Corpus, nginx, random_corpus
from bench.report import Target
from cached.contract.layout import Layout
from cached.contract.program.units import parse_rate
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verify import hash_file
from cached.peers.members import trackers_of
from cached.peers.pieces import PieceMap

_REF = ModelRef("bench", "v1")
_PORT = 9402
_FILES = 4
_FEW = 4  # nodes of the two runs whose times are compared
_READY_S = 120
_SEEDS_GO_S = 12  # after the last fetch: nodes seed a version for 8 s
_OLD_KEY, _NEW_KEY = "0" * 64, "1" * 64
_LIE, _STALL = "liar", "staller"


class Node:
    """One daemon on a machine of its own."""

    def __init__(self, number: int, machine: Machine, folder: Path) -> None:
        self.number = number
        self.address = f"{machine.address}:{_PORT}"
        self.layout = Layout(folder / "root")
        self.key_file = folder / "key"
        self._catalog = folder / "catalog" / "catalog.yaml"
        self._log = folder / "log"
        self._machine = machine
        self._process: subprocess.Popen[bytes] | None = None
        self._catalog.parent.mkdir(parents=True)
        self.write_key(_OLD_KEY)
        write_catalog(self._catalog, [])

    def write_key(self, *keys: str) -> None:
        """Replace the key file, as a Secret's volume does."""
        temporary = self.key_file.with_suffix(".new")
        temporary.write_text("\n".join(keys))
        temporary.rename(self.key_file)

    def start(self, members: Sequence[str], fault: str | None) -> None:
        """Start the daemon; without members it has no peers. `fault`: what it does to those that it serves."""
        program = ["-m", "cached.cli"] if fault is None else ["-m", "bench.pool", "--as", fault]
        peers = ("--peers", ",".join(members), "--peer-listen", self.address, "--peer-key-file", str(self.key_file))
        argv = [
            *(sys.executable, *program, "daemon", "--root", str(self.layout.root), "--catalog", str(self._catalog)),
            *("--listen", "127.0.0.1:9401", "--kube", "off", "--node", f"node{self.number}"),
            *("--high-watermark", "0.99", "--low-watermark", "0.98", "--scrub-rate", "0"),
            *(peers if members else ()),
        ]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(self._machine.command(argv), stdout=output, stderr=subprocess.STDOUT)

    def wait_listening(self) -> None:
        """Wait until it answers its control socket."""

        def is_up() -> bool | None:
            self._check_alive()
            with socket.socket(socket.AF_UNIX) as probe:
                return True if probe.connect_ex(str(self.layout.socket)) == 0 else None

        wait_until(is_up, f"daemon of node {self.number}", _READY_S, 0.1)

    def want(self, entry: CatalogEntry) -> None:
        """Let the daemon fetch a version."""
        write_catalog(self._catalog, [entry])

    def has_version(self) -> bool:
        """Return whether pods may see the version."""
        self._check_alive()
        return os.path.lexists(self.layout.public.model_link(_REF))

    def count_fetched(self) -> int:
        """Return the bytes on this node's disk, of partial and of committed blobs."""
        folders = (self.layout.ingest, self.layout.blobs)
        found = 0
        for path in (each for folder in folders for each in folder.rglob("*")):
            try:
                found += path.stat().st_blocks * 512 if path.is_file() else 0
            except FileNotFoundError:
                continue
        return found

    def kill(self) -> None:
        """End the daemon at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def count_wrong(self) -> int:
        """Return the blobs on this node that are not what their name says: there must be none, whichever node lied."""
        return sum(hash_file(path) != path.name for path in self.layout.blobs.rglob("*") if path.is_file())

    def _check_alive(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise failed(f"node {self.number} ended with {self._process.returncode}: {tail(self._log)}")


@dataclass
class Fleet:
    """The nodes of one run. `entry`: the version that they fetch; `awaited`: the nodes that must have it in the end."""

    nodes: list[Node]
    corpus: Corpus
    entry: CatalogEntry
    awaited: set[int] = field(default_factory=set)
    began_at: float = 0.0
    waiting_s: float = 0.0  # of a scenario for something else than the fetch

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    def start(
        self,
        numbers: Sequence[int] = (),
        members: Callable[[Node], Sequence[str]] | None = None,
        faults: dict[int, str] | None = None,
    ) -> None:
        """Start some nodes, or all, and have them fetch the version once all of them are up. A node with a fault is
        not waited for."""
        chosen = [self.nodes[number] for number in numbers] or self.nodes
        for node in chosen:
            known = self.addresses if members is None else members(node)
            node.start(known, (faults or {}).get(node.number))
        for node in chosen:
            node.wait_listening()
        if not self.began_at:
            self.began_at = time.monotonic()
        for node in chosen:
            node.want(self.entry)
            if node.number not in (faults or {}):
                self.awaited.add(node.number)

    def wait_for_share(self, number: int, share: float) -> None:
        """Wait until a node has this part of the version on its disk."""
        node, wanted = self.nodes[number], share * self.corpus.size
        wait_until(lambda: True if node.count_fetched() >= wanted else None, "progress", _READY_S * 10, 0.2)

    def wait_for_all(self, timeout_s: float) -> None:
        """Wait until every awaited node has published the version."""
        left = set(self.awaited)
        deadline = time.monotonic() + timeout_s
        while left:
            left = {number for number in left if not self.nodes[number].has_version()}
            if left and time.monotonic() > deadline:
                raise failed(f"nodes {sorted(left)} have not got the version within {timeout_s:.0f} s")
            time.sleep(0.05)

    def kill(self, number: int) -> None:
        """Kill a node, which is not waited for any more."""
        self.awaited.discard(number)
        self.nodes[number].kill()

    def find_tracker(self) -> int:
        """Return the number of the node that is asked first by all."""
        pieces = PieceMap((entry.sha256, entry.size) for entry in self.corpus.manifest.files)
        return self.addresses.index(trackers_of(pieces.key, self.addresses)[0])


def _play_all_from_origin(fleet: Fleet) -> None:
    fleet.start(members=lambda _: ())


def _play_pool(fleet: Fleet) -> None:
    fleet.start()


def _play_liar(fleet: Fleet) -> None:
    fleet.start(faults={1: _LIE})


def _play_staller(fleet: Fleet) -> None:
    fleet.start(faults={1: _STALL})


def _play_killed(fleet: Fleet) -> None:
    fleet.start()
    victim = (fleet.find_tracker() + 1) % len(fleet.nodes)
    fleet.wait_for_share(victim, 0.4)
    fleet.kill(victim)


def _play_tracker_killed(fleet: Fleet) -> None:
    fleet.start()
    victim = fleet.find_tracker()
    fleet.wait_for_share(victim, 0.4)
    fleet.kill(victim)


def _play_late(fleet: Fleet) -> None:
    """One node comes in the middle, and one after the last seed has left."""
    *early, middle, last = range(len(fleet.nodes))
    fleet.start(early)
    fleet.wait_for_share(0, 0.5)
    fleet.start([middle])
    fleet.wait_for_all(_READY_S * 10)
    time.sleep(_SEEDS_GO_S)
    fleet.waiting_s += _SEEDS_GO_S
    fleet.start([last])


def _play_split(fleet: Fleet) -> None:
    """Each node knows itself and all others but two: they do not agree on the first tracker."""
    rng = random.Random(1)

    def members(node: Node) -> list[str]:
        unknown = rng.sample([each for each in fleet.addresses if each != node.address], 2)
        return [each for each in fleet.addresses if each not in unknown]

    fleet.start(members=members)


def _play_half_split(fleet: Fleet) -> None:
    """Half of the nodes have an old answer of the name server, in which the first tracker is not."""
    first = fleet.addresses[fleet.find_tracker()]

    def members(node: Node) -> list[str]:
        return [each for each in fleet.addresses if node.number % 2 or each in (node.address,) or each != first]

    fleet.start(members=members)


def _play_rotation(fleet: Fleet) -> None:
    """The new key comes second on each node, then first, then alone, node after node, in the middle of the fetch."""
    fleet.start()
    for share, keys in ((0.2, (_OLD_KEY, _NEW_KEY)), (0.4, (_NEW_KEY, _OLD_KEY)), (0.6, (_NEW_KEY,))):
        fleet.wait_for_share(0, share)
        for node in fleet.nodes:
            node.write_key(*keys)
            time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`few`: it is run with 4 nodes. `most`: copies that the origin may send."""

    name: str
    play: Callable[[Fleet], None]
    most: float
    few: bool = False


_ORIGIN, _POOL_OF_FEW = "all from the origin", "pool of 4"
_SCENARIOS = (
    Scenario(_ORIGIN, _play_all_from_origin, float("inf"), few=True),
    Scenario(_POOL_OF_FEW, _play_pool, 1.05, few=True),
    Scenario("pool", _play_pool, 1.05),
    Scenario("one lies", _play_liar, 1.3),
    Scenario("one stalls", _play_staller, 1.3),
    Scenario("one killed", _play_killed, 1.3),
    Scenario("tracker killed", _play_tracker_killed, 1.3),
    Scenario("late joiners", _play_late, 1.3),
    Scenario("split DNS", _play_split, 1.3),
    Scenario("half-old DNS", _play_half_split, 1.3),
    Scenario("key rotated", _play_rotation, 1.3),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What one scenario came to. `copies`: what the origin sent by the version's size; `busy`: of all processors."""

    scenario: Scenario
    nodes: int
    wall_s: float
    copies: float
    whole: int
    wrong: int
    busy: float

    def __str__(self) -> str:
        return (
            f"| {self.scenario.name} | {self.nodes} | {self.wall_s:.1f} | {self.copies:.3f} | {self.whole} "
            f"| {self.wrong} | {self.busy:.0%} |"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if a target is missed."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["--as"]:
        return _misbehave(argv[1], argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench.pool", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=size_argument, default=1 << 31, help="of the version (default 2GiB)")
    parser.add_argument("--nodes", type=int, default=8, help="of a pool (default 8)")
    link = "of each node and of the origin, each way, in bytes a second (default 50MB/s, which is 400 Mbit/s)"
    parser.add_argument("--link", type=parse_rate, default=50_000_000, metavar="RATE", help=link)
    parser.add_argument("--only", default="", help="comma-separated words of the scenarios to run")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the origin's files there")
    options = parser.parse_args(argv)
    results = []
    with workplace(options.work) as place:
        require_space(place.folder, (options.nodes + 1) * options.size + (1 << 30))
        corpus = random_corpus(place.origin, _FILES, options.size // _FILES)
        print("| scenario | nodes | last node s | copies | whole | wrong blobs | processors |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for scenario in _SCENARIOS:
            if matches(options.only, scenario.name):
                count = min(_FEW, options.nodes) if scenario.few else options.nodes
                results.append(_run(scenario, place, corpus, count, options.link))
                print(results[-1], flush=True)
    targets = _judge(results)
    for target in targets:
        print(target)
    return 0 if all(target.met for target in targets) else 1


def _judge(results: Sequence[Result]) -> list[Target]:
    """Return the figures that must be reached."""
    found = []
    walls = {each.scenario.name: each.wall_s for each in results}
    for each in results:
        name = each.scenario.name
        if each.scenario.most != float("inf"):
            found.append(Target(f"{name}: copies", each.copies, each.scenario.most, False, ""))
        found.append(Target(f"{name}: wrong blobs", each.wrong, 0, False, ""))
    if _ORIGIN in walls and _POOL_OF_FEW in walls:
        found.append(Target("wall by all from the origin", walls[_POOL_OF_FEW] / walls[_ORIGIN], 0.40, False, ""))
    return found


def _run(scenario: Scenario, place: Workplace, corpus: Corpus, count: int, link: int) -> Result:
    """Play a scenario on a network of its own; remove the nodes' files."""
    log = place.scratch / "access.log"
    log.unlink(missing_ok=True)
    place.destination.mkdir()
    corpus.warm()
    try:
        with network() as switch:
            origin = switch.add(link * 8)
            with nginx(place.origin, place.scratch / "nginx", access_log=log, machine=origin) as url:
                entry = CatalogEntry(_REF, f"{url}/models/{corpus.version}/", corpus.manifest.digest, prefetch=True)
                with _fleet(switch, place.destination, corpus, entry, count, link) as fleet:
                    before = _read_processors()
                    scenario.play(fleet)
                    fleet.wait_for_all(60 + 2 * (count + 1) * corpus.size / link)
                    wall_s = time.monotonic() - fleet.began_at - fleet.waiting_s
                    busy = _count_busy(before, _read_processors())
            whole = sum(node.has_version() for node in fleet.nodes)
            wrong = sum(node.count_wrong() for node in fleet.nodes)
            return Result(scenario, count, wall_s, _count_sent(log) / corpus.size, whole, wrong, busy)
    finally:
        shutil.rmtree(place.destination)


@contextmanager
def _fleet(
    switch: Network, folder: Path, corpus: Corpus, entry: CatalogEntry, count: int, link: int
) -> Iterator[Fleet]:
    with ExitStack() as stack:
        nodes = [Node(number, switch.add(link * 8), folder / f"node{number}") for number in range(count)]
        for node in nodes:
            stack.callback(node.kill)
        yield Fleet(nodes, corpus, entry)


def _count_sent(log: Path) -> int:
    """Return the bytes of weights that nginx sent, also in answers that ended early."""
    lines = (line.split() for line in log.read_text().splitlines())
    return sum(int(line[2]) for line in lines if line[4].endswith(".safetensors"))


def _read_processors() -> list[int]:
    return [int(ticks) for ticks in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]


def _count_busy(before: Sequence[int], after: Sequence[int]) -> float:
    """Return the share of all processors that was not idle and did not wait for a disk."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent[:8])


def _misbehave(fault: str, argv: Sequence[str]) -> int:
    """Be a daemon that differs in one function: what it sends of a blob to another node."""
    from cached import cli
    from cached.peers.serving.contents import OpenRange

    def lie(connection: socket.socket, opened: OpenRange, offset: int, length: int) -> None:
        data = bytearray(os.pread(opened.descriptor, length, offset))
        data[0] ^= 1
        connection.sendall(data)

    def stall(connection: socket.socket, *_: object) -> None:
        while connection.recv(1, socket.MSG_PEEK):
            time.sleep(0.1)
        raise ConnectionError("the other node left")

    with mock.patch("cached.peers.serving.channel.send_chunk", {_LIE: lie, _STALL: stall}[fault]):
        return cli.main(argv)


if __name__ == "__main__":
    sys.exit(bench_main(main))
