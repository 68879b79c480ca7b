"""Kill the daemon during a fetch, start it again, and count the bytes that the origin sent twice.

Law: the origin's own log counts, so bytes in flight to a dead process count as sent. Connections are those open in the
kernel's table just before the kill.

Run `python -m bench.resume --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench import report
from bench.daemon import CatalogEntry, daemon, write_catalog
from bench.harness import Workplace, bench_main, size_argument, workplace
from bench.machine import append_section, require_space
from bench.measure import failed, io_count, wait_until
from bench.origins import BUCKET, Corpus, loopback_environment, nginx, random_corpus
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef

_REF = ModelRef("bench", "v1")
_MIB = 1024 * 1024
_SPARE_BYTES = 1024**3
_ESTABLISHED, _IDLE = "01", ("06", "0A")  # the column `st` of /proc/net/tcp; idle: TIME_WAIT, LISTEN


@dataclass(frozen=True, slots=True)
class Resumed:
    """One killed fetch: `connections` open at the kill, bytes sent until then, and by both processes."""

    connections: int
    sent_before: int
    sent: int
    size: int

    @property
    def twice_per_connection(self) -> float:
        """Bytes sent twice, per open connection."""
        return (self.sent - self.size) / max(1, self.connections)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.resume", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=4, help="files in the model (default 4)")
    parser.add_argument("--size", type=size_argument, default="2GiB", help="size of each (default 2GiB)")
    parser.add_argument("--at", default="0.25,0.5,0.75", help="kill after these parts of the bytes (0.25,0.5,0.75)")
    parser.add_argument("--work", type=Path, help="keep the origin's files in this folder for the next run")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    parts = [float(part) for part in options.at.split(",")]
    with workplace(options.work) as place:
        require_space(place.folder, 2 * options.files * options.size + _SPARE_BYTES)
        corpus = random_corpus(place.origin, options.files, options.size)
        log = place.scratch / "access.log"
        with nginx(place.origin, place.scratch / "nginx", access_log=log) as url:
            results = [_kill_at(part, corpus, url, log, place) for part in parts]
        text = _report(parts, results)
        print(text)
        if options.append:
            append_section(f"Killed and restarted, {format_size(corpus.size)}", place.folder, text)
    return 0


def _kill_at(part: float, corpus: Corpus, url: str, log: Path, place: Workplace) -> Resumed:
    root, catalog, port = place.destination, place.scratch / "catalog.yaml", urlsplit(url).port or 0
    digest = corpus.manifest.digest
    write_catalog(catalog, [CatalogEntry(_REF, f"{url}/{BUCKET}/{corpus.version}/", digest, prefetch=True)])
    corpus.warm()
    logged_before = _sent(log)
    try:
        with daemon(root, catalog, loopback_environment()) as first:
            enough = int(corpus.size * part)
            wait_until(
                lambda: True if io_count(first.pid, "wchar") >= enough else None, "progress", corpus.timeout_s, 0.002
            )
            connections = _connections(port)
            first.kill()
        if os.path.lexists(first.layout.public.model_link(_REF)):
            raise failed("the fetch ended before it was killed", "give a larger --size or a smaller --at")
        _wait_closed(port)
        sent_before = _sent(log) - logged_before
        with daemon(root, catalog, loopback_environment()) as second:
            second.wait_published(_REF, digest, corpus.timeout_s)
        _wait_closed(port)
        return Resumed(connections, sent_before, _sent(log) - logged_before, corpus.size)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _report(parts: Sequence[float], results: Sequence[Resumed]) -> str:
    head = ["killed at", "connections", "sent before, MiB", "sent in all, MiB", "twice, MiB", "twice / connection, MiB"]
    body = [
        [
            f"{part:.0%}",
            str(result.connections),
            f"{result.sent_before / _MIB:.0f}",
            f"{result.sent / _MIB:.0f}",
            f"{(result.sent - result.size) / _MIB:.1f}",
            f"{result.twice_per_connection / _MIB:.1f}",
        ]
        for part, result in zip(parts, results, strict=True)
    ]
    worst = max(result.twice_per_connection for result in results) / _MIB
    target = report.Target("sent twice, per open connection", worst, 64, False, " MiB")
    return f"{report.grid(head, body)}\n\n{report.bullets([target])}"


def _sent(log: Path) -> int:
    """Return the bytes of model files that the origin sent, in complete and broken requests."""
    total = 0
    for line in log.read_text().splitlines() if log.exists() else ():
        _connection, _status, size, _complete, path = line.split(maxsplit=4)
        if path.endswith(".safetensors"):
            total += int(size)
    return total


def _connections(port: int) -> int:
    """Count the established TCP connections to `port` on loopback."""
    return sum(remote.endswith(f":{port:04X}") and state == _ESTABLISHED for _local, remote, state in _sockets())


def _wait_closed(port: int) -> None:
    """Return once the origin has closed its connections, and so has logged the bytes it sent."""

    def closed() -> bool | None:
        held = any(local.endswith(f":{port:04X}") and state not in _IDLE for local, _remote, state in _sockets())
        return None if held else True

    wait_until(closed, "end of the origin's connections", 30, 0.02)


def _sockets() -> list[list[str]]:
    """Return local address, remote address and state of every IPv4 TCP socket, in the kernel's hexadecimal."""
    return [line.split()[1:4] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]


if __name__ == "__main__":
    sys.exit(bench_main(main))
