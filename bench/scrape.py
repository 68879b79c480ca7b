"""Scrape a daemon that holds many versions: the CPU time and the bytes of `GET /metrics`, beside another checkout.

Law: the daemon is a real process on a root that the store's own publication made; it has no cluster and fetches
nothing. Scrapes ask for gzip, as Prometheus does, and come far enough apart that each is rendered. CPU time is the
kernel's, in nanoseconds, of all threads, with that of the same time without scrapes subtracted. Checkouts take turns on
one root.

Run `python -m bench.scrape --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench import report
from bench.daemon import CatalogEntry, Daemon, daemon, write_catalog
from bench.harness import bench_main, in_turn, workplace
from bench.machine import append_section
from bench.measure import failed, run_seconds
from bench.origins import loopback_environment
from bench.restart import build
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.reference import ModelRef
from cached.contract.status import Verdict
from cached.contract.trust import Trust
from cached.store.version import fetch_records

_SETTLE_S = 8.0  # after which a daemon has done what its start left to do
_PAUSE_S = 0.5  # between scrapes: a page takes at most a tenth of the wall time
_MODEL = "acme/llama-3.1-8b"  # names as people give them: 24 characters with number and version
_CPU_S, _BYTES = 0.025, 400_000
_OF_VERSIONS = 500  # that the bounds hold for


@dataclass(frozen=True, slots=True)
class Scrapes:
    """CPU seconds a scrape; bytes of a page on the wire, and of its text; its series."""

    cpu_s: float
    wire_bytes: int
    text_bytes: int
    series: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.scrape", description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, default=_OF_VERSIONS, help="versions on the node (default 500)")
    parser.add_argument("--files", type=int, default=30, help="files in each (default 30)")
    parser.add_argument("--scrapes", type=int, default=40, help="scrapes a round (default 40)")
    parser.add_argument("--rounds", type=int, default=3, help="how often (default 3)")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, whose daemon takes turns")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    rows: dict[str, Path | None] = {"this": None}
    if options.beside is not None:
        rows = {"beside": options.beside.resolve(), **rows}
    with workplace(None) as place:
        layout, catalog = Layout(place.destination), place.scratch / "catalog.yaml"
        published = build(layout, options.versions, options.files, _MODEL)
        for ref, digest in published.items():
            _note_fetched(layout, ref, digest)
        write_catalog(catalog, [CatalogEntry(ref, "http://127.0.0.1:9/", digest) for ref, digest in published.items()])
        found: dict[str, list[Scrapes]] = {name: [] for name in rows}
        for round_ in range(options.rounds):
            for name in in_turn(list(rows), round_):
                with daemon(layout.root, catalog, loopback_environment(), checkout=rows[name]) as running:
                    found[name].append(_scrape(running, options.scrapes))
        what = f"{options.versions} versions of {options.files} files, {options.scrapes} scrapes"
        text = f"{what}, {options.rounds} rounds:\n\n{_report(found, options.versions)}"
        print(text)
        if options.append:
            append_section("A scrape of the daemon", place.folder, text)
    return 0


def _note_fetched(layout: Layout, ref: ModelRef, digest: Digest) -> None:
    """Write the record of a fetch, which gives the version a series for the trust in its source."""
    record = replace(fetch_records.unknown(digest, "s3://bucket/model"), verdict=Verdict(trust=Trust.KNOWN))
    fetch_records.set_unsynced(layout, ref, fetch_records.write_unsynced(layout, ref, record))


def _scrape(running: Daemon, scrapes: int) -> Scrapes:
    running.wait_ready()
    time.sleep(_SETTLE_S)
    text = _get(running.port, "identity")
    without_s, _ = _measure(running, 0, scrapes * _PAUSE_S)
    with_s, sizes = _measure(running, scrapes, _PAUSE_S)
    lines = [line for line in text.splitlines() if not line.startswith(b"#")]
    if not any(line.startswith(b"holdfast_model_ready") for line in lines):
        raise failed("expected the series of the versions, found none")
    return Scrapes(max(0.0, with_s - without_s) / scrapes, max(sizes), len(text), len(lines))


def _measure(running: Daemon, scrapes: int, pause_s: float) -> tuple[float, list[int]]:
    """Return the CPU seconds of the daemon in so many scrapes, each after a pause, or in one pause; and their bytes."""
    before_s, sizes = run_seconds(running.pid), []
    for _ in range(max(1, scrapes)):
        time.sleep(pause_s)
        if scrapes:
            sizes.append(len(_get(running.port, "gzip")))
    return run_seconds(running.pid) - before_s, sizes


def _get(port: int, encoding: str) -> bytes:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", "/metrics", headers={"Accept-Encoding": encoding})
        return connection.getresponse().read()


def _report(found: dict[str, list[Scrapes]], versions: int) -> str:
    head = ["build", "CPU a scrape, ms", "kB on the wire", "kB of text", "series"]
    cpu_s = {name: median(each.cpu_s for each in of) for name, of in found.items()}
    body = [
        [
            name,
            f"{cpu_s[name] * 1e3:.1f}",
            f"{max(each.wire_bytes for each in of) / 1e3:.0f}",
            f"{max(each.text_bytes for each in of) / 1e3:.0f}",
            str(max(each.series for each in of)),
        ]
        for name, of in found.items()
    ]
    share = versions / _OF_VERSIONS
    wire = max(each.wire_bytes for each in found["this"])
    targets = [
        report.Target("CPU a scrape, median", cpu_s["this"] * 1e3, _CPU_S * 1e3 * share, False, " ms"),
        report.Target("bytes on the wire", wire / 1e3, _BYTES / 1e3 * share, False, " kB"),
    ]
    return f"{report.grid(head, body)}\n\n{report.bullets(targets)}"


if __name__ == "__main__":
    sys.exit(bench_main(main))
