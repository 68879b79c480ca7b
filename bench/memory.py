"""Measure the daemon's peak memory: with one model, and with many models one after another in one process.

Law: the peak is the kernel's own (`VmHWM`), from the daemon's start on. The origin's files are sparse with a unique
tail, so the origin needs no disk; the daemon writes every byte, and a quota makes it evict the oldest model for the
next, so that it fetches far more than the disk holds.

Run `python -m bench.memory --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench import report
from bench.daemon import CatalogEntry, daemon, write_catalog
from bench.harness import Workplace, bench_main, size_argument, workplace
from bench.machine import append_section, require_space
from bench.measure import peak_memory
from bench.origins import BUCKET, Corpus, loopback_environment, nginx, sparse_corpora
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef

_MIB = 1024 * 1024
_SPARE_BYTES = 1024**3
_KEPT = 2.5  # models within the quota: the fetched one, the one before, and room for a deletion in progress


@dataclass(frozen=True, slots=True)
class Peak:
    """One daemon process: bytes fetched, resident memory when ready and idle, and its peak."""

    fetched: int
    idle_bytes: int
    peak_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=4, help="files in each model (default 4)")
    parser.add_argument("--size", type=size_argument, default="2GiB", help="size of each file (default 2GiB)")
    parser.add_argument("--models", type=int, default=8, help="models in the long run (default 8)")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(None) as place:
        require_space(place.folder, int(_KEPT * options.files * options.size) + _SPARE_BYTES)
        corpora = sparse_corpora(place.origin, options.models, options.files, options.size)
        with nginx(place.origin, place.scratch / "nginx") as url:
            peaks = [_fetch_all(chosen, url, place) for chosen in (corpora[:1], corpora)]
        text = _report(peaks)
        print(text)
        if options.append:
            append_section("The daemon's memory", place.folder, text)
    return 0


def _fetch_all(corpora: Sequence[Corpus], url: str, place: Workplace) -> Peak:
    root, catalog = place.destination, place.scratch / "catalog.yaml"
    wanted = [
        CatalogEntry(ModelRef("bench", corpus.version), f"{url}/{BUCKET}/{corpus.version}/", corpus.manifest.digest)
        for corpus in corpora
    ]
    write_catalog(catalog, wanted)
    quota = int(corpora[0].size * _KEPT)
    try:
        with daemon(root, catalog, loopback_environment(), ["--quota", str(quota)]) as running:
            running.wait_ready()
            idle = peak_memory(running.pid)
            for entry, corpus in zip(wanted, corpora, strict=True):
                running.pull(entry.ref)
                running.wait_published(entry.ref, entry.digest, corpus.timeout_s)
                print(f"{entry.ref}: {format_size(peak_memory(running.pid))} at most so far", flush=True)
            return Peak(sum(corpus.size for corpus in corpora), idle, peak_memory(running.pid))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _report(peaks: Sequence[Peak]) -> str:
    head = ["fetched", "idle MiB", "peak MiB"]
    body = [
        [format_size(peak.fetched), f"{peak.idle_bytes / _MIB:.0f}", f"{peak.peak_bytes / _MIB:.0f}"] for peak in peaks
    ]
    targets = [
        report.Target(f"peak, {format_size(peak.fetched)}", peak.peak_bytes / _MIB, 200, False, " MiB")
        for peak in peaks
    ]
    return f"{report.grid(head, body)}\n\n{report.bullets(targets)}"


if __name__ == "__main__":
    sys.exit(bench_main(main))
