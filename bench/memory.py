"""Measure the daemon's memory, idle, at most, and a minute after its last fetch: with one model, and with many models
one after another in one process.

Law: the figures are the kernel's own (`VmRSS`, and `VmHWM` from the daemon's start on). The origin's files are sparse
with a unique tail, so the origin needs no disk; the daemon writes every byte, and a quota makes it evict the oldest
model for the next, so that it fetches far more than the disk holds.

Run `python -m bench.memory --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import report
from bench.daemon import CatalogEntry, daemon, write_catalog
from bench.harness import Workplace, bench_main, size_argument, workplace
from bench.machine import append_section, require_space
from bench.measure import peak_memory, resident_memory
from bench.origins import BUCKET, Corpus, loopback_environment, nginx, sparse_corpora
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef

_MIB = 1024 * 1024
_SPARE_BYTES = 1024**3
_KEPT = 2.5  # models within the quota: the fetched one, the one before, and room for a deletion in progress


@dataclass(frozen=True, slots=True)
class Memory:
    """One daemon process: bytes fetched, resident memory when ready and idle, its peak, and that after a rest."""

    row: str
    fetched: int
    idle_bytes: int
    peak_bytes: int
    rested_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=4, help="files in each model (default 4)")
    parser.add_argument("--size", type=size_argument, default="2GiB", help="size of each file (default 2GiB)")
    parser.add_argument("--models", type=int, default=8, help="models in the long run (default 8)")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds from the last fetch to the last look (60)")
    parser.add_argument("--before", type=Path, help="another checkout of this repository, to run as well")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(None) as place:
        require_space(place.folder, int(_KEPT * options.files * options.size) + _SPARE_BYTES)
        corpora = sparse_corpora(place.origin, options.models, options.files, options.size)
        checkouts = [None] if options.before is None else [None, options.before.resolve()]
        with nginx(place.origin, place.scratch / "nginx") as url:
            found = [
                _fetch_all(chosen, url, place, checkout, options.rest)
                for chosen in (corpora[:1], corpora)
                for checkout in checkouts
            ]
        text = _report(found)
        print(text)
        if options.append:
            append_section("The daemon's memory", place.folder, text)
    return 0


def _fetch_all(corpora: Sequence[Corpus], url: str, place: Workplace, checkout: Path | None, rest_s: float) -> Memory:
    root, catalog = place.destination, place.scratch / "catalog.yaml"
    wanted = [
        CatalogEntry(ModelRef("bench", corpus.version), f"{url}/{BUCKET}/{corpus.version}/", corpus.manifest.digest)
        for corpus in corpora
    ]
    write_catalog(catalog, wanted)
    quota = int(corpora[0].size * _KEPT)
    try:
        with daemon(root, catalog, loopback_environment(), ["--quota", str(quota)], checkout) as running:
            running.wait_ready()
            idle = resident_memory(running.pid)
            for entry, corpus in zip(wanted, corpora, strict=True):
                running.pull(entry.ref)
                running.wait_published(entry.ref, entry.digest, corpus.timeout_s)
                print(f"{entry.ref}: {format_size(peak_memory(running.pid))} at most so far", flush=True)
            time.sleep(rest_s)
            fetched = sum(corpus.size for corpus in corpora)
            row = "holdfast" if checkout is None else "before"
            return Memory(row, fetched, idle, peak_memory(running.pid), resident_memory(running.pid))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _report(found: Sequence[Memory]) -> str:
    head = ["daemon", "fetched", "idle MiB", "peak MiB", "after a rest MiB"]
    body = [[each.row, format_size(each.fetched), *(f"{size / _MIB:.0f}" for size in _sizes(each))] for each in found]
    targets = []
    for each in found:
        if each.row == "holdfast":
            fetched, more = format_size(each.fetched), each.rested_bytes - each.idle_bytes
            targets.append(report.Target(f"peak, {fetched}", each.peak_bytes / _MIB, 200, False, " MiB"))
            targets.append(report.Target(f"more than idle after a rest, {fetched}", more / _MIB, 10, False, " MiB"))
    return f"{report.grid(head, body)}\n\n{report.bullets(targets)}"


def _sizes(each: Memory) -> tuple[int, int, int]:
    return each.idle_bytes, each.peak_bytes, each.rested_bytes


if __name__ == "__main__":
    sys.exit(bench_main(main))
