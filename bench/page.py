"""Measure the page at `/`: its bytes, the daemon's time for it, and the daemon's processor time while pages or
`holdfast status --watch` stand open.

Law: the daemon is a real process with default options and nothing to fetch; its API server is the tests' in-process
one, whose time is not counted. Pages are followed over sockets of this process, as browsers follow them. Looks with
different numbers of open pages take turns in one daemon. CPU time is the kernel's, in nanoseconds, of all threads.

Run `python -m bench.page --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench import report
from bench.daemon import CatalogEntry, Daemon, daemon, write_catalog
from bench.harness import bench_main, in_turn, workplace
from bench.idle import make_kubeconfig
from bench.machine import append_section
from bench.measure import failed, resident_memory, run_seconds
from bench.origins import loopback_environment
from bench.restart import build
from cached.commands.shared.control_client import ControlClient
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from tests.support.fake_api import FakeApi
from tests.support.kube_shapes import make_pod

_KIB = 1024
_NODE = "bench"
_SETTLE_S = 10.0  # the first lists, labels and Events are not idle cost
_REST_S = 150.0  # a start index is written 30 to 60 s after the last change, and the start changes much
_LOADS = 20
_NONE, _ONE, _WATCH = "none", "1 page", "`status --watch`"
_OPEN = {_NONE: 0, _ONE: 1, "32 pages": 32}  # pages at once


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, default=500, help="versions on the node (default 500)")
    parser.add_argument("--files", type=int, default=30, help="files in each (default 30)")
    parser.add_argument("--pods", type=int, default=110, help="annotated pods on the node (default 110)")
    parser.add_argument("--seconds", type=float, default=30, help="how long to look, each time (default 30)")
    parser.add_argument("--rounds", type=int, default=2, help="how often (default 2)")
    parser.add_argument("--append", action="store_true", help="append the tables to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(None) as place, FakeApi() as api:
        layout, catalog = Layout(place.destination), place.scratch / "catalog.yaml"
        published = build(layout, options.versions, options.files)
        write_catalog(catalog, [CatalogEntry(ref, "http://127.0.0.1:9/", digest) for ref, digest in published.items()])
        refs = sorted(published)
        _bind_pods(api, refs, options.pods)
        environment = {**loopback_environment(), "KUBECONFIG": str(make_kubeconfig(place.scratch, api.url))}
        with daemon(layout.root, catalog, environment, ("--kube", "auto")) as running:
            running.wait_ready()
            _wait_for_rest(running)
            before = resident_memory(running.pid)
            loads = _load(running, refs[0])
            grown = resident_memory(running.pid) - before
            looks = _look(running, options.seconds, options.rounds)
        what = f"{options.versions} versions of {options.files} files, {options.pods} pods"
        text = (
            f"{what}, pages open for {options.seconds:g} s, {options.rounds} times:\n\n{_report(loads, looks, grown)}"
        )
        print(text)
        if options.append:
            append_section("The page", place.folder, text)
    return 0


@dataclass(frozen=True, slots=True)
class Load:
    """Loads of one kind: seconds until the whole answer was here, CPU seconds of the daemon, bytes on the wire. Each is
    the median, but of `longest_s`."""

    kind: str
    wall_s: float
    longest_s: float
    cpu_s: float
    size: int


def _wait_for_rest(running: Daemon) -> None:
    """Wait until the daemon has counted its blobs and written its start index: what a start does is not the page's
    cost."""
    index, deadline = running.layout.start_index, time.monotonic() + _REST_S
    while not index.exists():
        if time.monotonic() > deadline:
            raise failed(f"expected {index} within {_REST_S:g} s of the start, found none")
        time.sleep(0.5)
    time.sleep(_SETTLE_S)


def _bind_pods(api: FakeApi, refs: Sequence[ModelRef], count: int) -> None:
    api.create("/api/v1/nodes", {"metadata": {"name": _NODE, "labels": {}}})
    for number in range(count):
        ref = refs[number % len(refs)]
        asks = {"holdfast.dev/model": ref.name, "holdfast.dev/version": ref.version}
        api.create("/api/v1/namespaces/default/pods", make_pod(f"pod-{number}", _NODE, asks))


def _load(running: Daemon, ref: ModelRef) -> list[Load]:
    """Load the page for the first time, then after changes, then again and again, then uncompressed."""
    control, packed, plain = ControlClient(running.layout), {"Accept-Encoding": "gzip"}, {"Accept-Encoding": "identity"}
    changed = []
    first = [_get(running, packed)]
    for number in range(_LOADS):
        (control.unpin if number % 2 else control.pin)(ref)
        time.sleep(0.5)  # rendering is limited to a tenth of the time
        changed.append(_get(running, packed))
    return [
        _sum_up("the first one, with its modules", first),
        _sum_up("after a change", changed),
        _sum_up("again", [_get(running, packed, pause_s=0.2) for _ in range(_LOADS)]),
        _sum_up("again, not compressed", [_get(running, plain, pause_s=0.2) for _ in range(_LOADS)]),
    ]


def _get(running: Daemon, headers: Mapping[str, str], pause_s: float = 0.0) -> tuple[float, float, int]:
    """Load the page; return seconds, CPU seconds, and bytes with the head."""
    time.sleep(pause_s)
    cpu_s, began = run_seconds(running.pid), time.monotonic()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        wall_s = time.monotonic() - began
        if answer.status != 200:
            raise failed(f"expected 200 at /, found {answer.status}")
        size = len(body) + sum(len(name) + len(value) + 4 for name, value in answer.getheaders())
    return wall_s, run_seconds(running.pid) - cpu_s, size


def _sum_up(kind: str, loads: Sequence[tuple[float, float, int]]) -> Load:
    walls, cpus, sizes = zip(*loads, strict=True)
    return Load(kind, median(walls), max(walls), median(cpus), int(median(sizes)))


def _look(running: Daemon, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Return the daemon's CPU seconds a second by what stands open."""
    shares: dict[str, list[float]] = {what: [] for what in (*_OPEN, _WATCH)}
    for round_ in range(rounds):
        for what in in_turn(list(shares), round_):
            with _watch_status(running) if what == _WATCH else _open_pages(running, _OPEN[what]):
                time.sleep(2)  # what the pages were sent at first is not the cost of standing open
                before_s, began = run_seconds(running.pid), time.monotonic()
                time.sleep(seconds)
                shares[what].append((run_seconds(running.pid) - before_s) / (time.monotonic() - began))
    running.check_alive()
    return shares


@contextlib.contextmanager
def _watch_status(running: Daemon) -> Iterator[None]:
    """Run `holdfast status --watch`, which asks the daemon each second."""
    command = [sys.executable, "-m", "cached.cli", "status", "--watch", "--json", "--root", str(running.layout.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        reader = threading.Thread(target=_drop, args=(watching.stdout,))
        try:
            if not watching.stdout.readline():
                raise failed("holdfast status --watch ended at once")
            reader.start()
            yield
            if watching.poll() is not None:
                raise failed(f"holdfast status --watch ended with {watching.returncode}")
        finally:
            watching.terminate()
            if reader.ident is not None:
                reader.join()


def _drop(lines: Iterable[str]) -> None:
    for _ in lines:
        pass


@contextlib.contextmanager
def _open_pages(running: Daemon, count: int) -> Iterator[None]:
    """Follow the page's events from the present page on, `count` times; the kernel takes what comes."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)) as connection:
                connection.request("GET", "/")
                page = connection.getresponse().read().decode()
            position = re.search(r'data-position="([^"]+)"', page)
            follower = stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=60))
            follower.sendall(
                f"GET /page/events?after={position[1] if position else ''} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
            )
            if not follower.recv(4096).startswith(b"HTTP/1.1 200"):
                raise failed("expected 200 at /page/events")
        yield


def _report(loads: Sequence[Load], looks: Mapping[str, Sequence[float]], grown: int) -> str:
    head = ["the page", "ms", "longest, ms", "CPU, ms", "bytes on the wire"]
    body = [
        [
            each.kind,
            f"{1e3 * each.wall_s:.1f}",
            f"{1e3 * each.longest_s:.1f}",
            f"{1e3 * each.cpu_s:.1f}",
            f"{each.size}",
        ]
        for each in loads
    ]
    shares = {what: 100 * median(found) for what, found in looks.items()}
    open_ = [[what, f"{share:.3f}", f"{share - shares[_NONE]:.3f}"] for what, share in shares.items()]
    targets = [
        report.Target("bytes of the page over the wire", loads[1].size / 1000, 60, False, " kB"),
        report.Target("server time of the first page", 1e3 * loads[0].cpu_s, 100, False, " ms"),
        report.Target("server time of a page", 1e3 * loads[1].cpu_s, 100, False, " ms"),
        report.Target("a page left open, of a core", shares[_ONE] - shares[_NONE], 0.3, False, " %"),
        report.Target("`status --watch` left open, of a core", shares[_WATCH] - shares[_NONE], 0.3, False, " %"),
    ]
    tables = (report.grid(head, body), report.grid(["open", "CPU, % of a core", "more than none"], open_))
    memory = f"The page's modules and its first rendering: {grown / _KIB / _KIB:.1f} MiB of memory."
    return "\n\n".join((*tables, memory, report.bullets(targets)))


if __name__ == "__main__":
    sys.exit(bench_main(main))
