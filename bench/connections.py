"""Measure the server's connections: probes beside many idle ones, and what a rolling update loses.

Law: the servers are real processes; the model is user code that answers at once, so that only connections cost. The
clients run in this process, over loopback. Endpoints that are withdrawn late are the tests' balancer.

Run `python -m bench.connections --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import urlsplit

from bench import report
from bench.harness import Workplace, bench_main, workplace
from bench.machine import append_section
from bench.measure import cpu_seconds, peak_memory
from bench.report import Target
from tests.support.rollout import Balancer, asking, eight_clients, write_app
from tests.support.serving import ServerProcess, running

_MIB = 1024 * 1024
_READY_MS = 50.0
_LOG_LINES = 10
_REQUESTED = "half a body"  # a request, which has its line in the access log
# How each connection stands open: what its client sent.
_SENT = {
    "silent": b"",
    "kept after a request": b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n",
    "half a head": b"POST /v1/completions HTTP/1.1\r\nHost: be",
    _REQUESTED: b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: 1000\r\n\r\n{",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.connections", description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=1000, help="that stand open (default 1000)")
    parser.add_argument("--probes", type=int, default=1000, help="of /readyz beside them (default 1000)")
    parser.add_argument(
        "--files", type=int, default=0, help="also with this limit of open files (default: no such row)"
    )
    parser.add_argument("--late", default="1,4,8", help="seconds that endpoints are late (default 1,4,8)")
    parser.add_argument("--append", action="store_true", help="append the tables to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(None) as place:
        code = write_app(place.scratch / "code")
        rows: list[list[str]] = []
        targets: list[Target] = []
        for files in (None, options.files) if options.files else (None,):
            for how in _SENT:
                row, found = _beside(_Crowd(how, options.connections, options.probes, files), code, place)
                rows.append(row)
                targets += found
        head = ["connections", "/readyz p50, ms", "p99, ms", "log lines", "CPU s", "peak MiB"]
        tables = [report.grid(head, rows)]
        lost = []
        for late_s in (float(text) for text in options.late.split(",") if text):
            lost.append(_roll(late_s, code, place))
            targets.append(
                Target(f"requests lost, endpoint {late_s:g} s late", float(lost[-1][2]), 0, at_least=False, unit="")
            )
        if lost:
            tables.append(report.grid(["endpoint late by s", "requests", "lost"], lost))
        text = "\n\n".join([*tables, "\n".join(f"- {target}" for target in targets)])
        print(text)
        if options.append:
            append_section("Connections of the server", place.folder, text)
    return 0


@dataclass(frozen=True, slots=True)
class _Crowd:
    """Connections that stand open, each as `how` says, and the probes beside them; `files`: the limit of open files."""

    how: str
    connections: int
    probes: int
    files: int | None

    def __str__(self) -> str:
        return f"{self.connections}, {self.how}" + (f", {self.files} open files" if self.files else "")


def _beside(crowd: _Crowd, code: Path, place: Workplace) -> tuple[list[str], list[Target]]:
    """Time probes on new connections beside the crowd; return the row and its targets."""
    under = ("prlimit", f"--nofile={crowd.files}:{crowd.files}") if crowd.files else ()
    log = place.scratch / "server.log"
    arguments = ("--app", "rolled_app:make", "--device", "cpu", "--model-path", str(place.scratch))
    with (
        running(log, *arguments, python_path=code, under=under) as server,
        contextlib.ExitStack() as stack,
    ):
        lines, address = len(log.read_text().splitlines()), urlsplit(server.url)
        before_s = cpu_seconds(server.process.pid)
        for _ in range(crowd.connections):
            client = stack.enter_context(socket.create_connection((str(address.hostname), address.port or 0), 60))
            client.sendall(_SENT[crowd.how])
        taken_ms = [_probe(server) * 1000 for _ in range(crowd.probes)]
        p99 = quantiles(taken_ms, n=100, method="inclusive")[98]
        cpu_s = cpu_seconds(server.process.pid) - before_s
        lines = len(log.read_text().splitlines()) - lines
        peak = peak_memory(server.process.pid) / _MIB
        row = [str(crowd), f"{median(taken_ms):.1f}", f"{p99:.1f}", str(lines), f"{cpu_s:.2f}", f"{peak:.0f}"]
    targets = [Target(f"/readyz p99 beside {crowd}", p99, _READY_MS, at_least=False, unit=" ms")]
    if crowd.how != _REQUESTED:
        targets.append(Target(f"log lines beside {crowd}", lines, _LOG_LINES, at_least=False, unit=""))
    return row, targets


def _probe(server: ServerProcess) -> float:
    began = time.monotonic()
    assert server.get("/readyz")[0] == 200
    return time.monotonic() - began


def _roll(late_s: float, code: Path, place: Workplace) -> list[str]:
    """Replace a server under load; return how late its endpoint was, and how many requests were sent and lost."""
    clients = eight_clients()
    arguments = ("--app", "rolled_app:make", "--device", "cpu", "--model-path", str(place.scratch))
    lingering = {"HOLDFAST_DRAIN_LINGER": "10"}
    with (
        running(place.scratch / "old.log", *arguments, python_path=code, variables=lingering) as old,
        running(place.scratch / "new.log", *arguments, python_path=code, variables=lingering) as new,
        Balancer() as balancer,
    ):
        balancer.targets = (old,)
        with asking(balancer.url, "m", clients):
            time.sleep(3)
            balancer.targets = (old, new)
            old.process.send_signal(signal.SIGTERM)
            time.sleep(late_s)
            balancer.targets = (new,)
            old.process.wait(120)
            time.sleep(3)
    lost = sum(len(client.failures) for client in clients)
    return [f"{late_s:g}", str(sum(client.answers for client in clients) + lost), str(lost)]


if __name__ == "__main__":
    sys.exit(bench_main(main))
