"""Fetch a model over loopback with Holdfast and with other tools, in turns, and print the cost of each.

Law: every row fetches the same files from the same server with the origin's files in the page cache; rows take turns
within a round; a row's files are removed before the next row. docs/benchmarks.md explains each row.

Run `python -m bench.fetch --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import report
from bench.daemon import CatalogEntry, daemon, write_catalog
from bench.harness import Workplace, bench_main, in_turn, matches, size_argument, workplace
from bench.machine import append_section, require_space
from bench.measure import Usage, cpu_seconds, peak_memory
from bench.origins import BUCKET, Corpus, loopback_environment, nginx, random_corpus, s3_environment, s3_server
from bench.peers import BARE, CURL, HTTP_PEERS, S3_PEERS, Job, Peer
from cached.contract.errors import HoldfastError
from cached.contract.program.units import format_size
from cached.contract.reference import ModelRef

HOLDFAST_HTTP, HOLDFAST_S3 = "holdfast (http)", "holdfast (s3)"
BEFORE_HTTP, BEFORE_S3 = "before (http)", "before (s3)"
_REF = ModelRef("bench", "v1")
_SPARE_BYTES = 1024**3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `run` gets an empty folder and returns the cost."""

    name: str
    run: Callable[[Path], Usage]


@dataclass(frozen=True, slots=True)
class Server:
    """A running origin: the corpus, its URL, a client's environment, and Holdfast's source URI."""

    corpus: Corpus
    url: str
    environment: Mapping[str, str]
    source: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.fetch", description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=4, help="files in the model (default 4)")
    parser.add_argument("--size", type=size_argument, default="2GiB", help="size of each (default 2GiB)")
    parser.add_argument("--before", type=Path, help="another checkout of this repository, to run as well")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row runs (default 3)")
    parser.add_argument(
        "--only", default="", help="run only rows with one of these comma-separated words in their name"
    )
    parser.add_argument("--work", type=Path, help="keep the origin's files in this folder for the next run")
    parser.add_argument("--json", type=Path, help="also write every sample to this file")
    parser.add_argument("--append", action="store_true", help="append the tables to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(options.work) as place, ExitStack() as servers:
        total = options.files * options.size
        require_space(place.folder, total * 2 + _SPARE_BYTES)
        print(f"origin: {options.files} files of {format_size(options.size)} in {place.origin}", flush=True)
        corpus = random_corpus(place.origin, options.files, options.size)
        rows = _rows(corpus, place, servers, options)
        samples = _rounds(rows, corpus, place, options.rounds)
        text, document = _report(samples, corpus)
        print(f"\n{text}")
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=1) + "\n")
        if options.append:
            append_section(f"Fetch, {options.files} files of {format_size(options.size)}", place.folder, text)
    return 0


def _rows(corpus: Corpus, place: Workplace, servers: ExitStack, options: argparse.Namespace) -> list[Row]:
    web_url = servers.enter_context(nginx(place.origin, place.scratch / "nginx"))
    web = Server(corpus, web_url, loopback_environment(), f"{web_url}/{BUCKET}/{corpus.version}/")
    daemons = [(HOLDFAST_HTTP, HOLDFAST_S3, None)]
    if options.before is not None:
        daemons.append((BEFORE_HTTP, BEFORE_S3, options.before.resolve()))
    rows = [Row(name, partial(_holdfast, web, place, checkout)) for name, _, checkout in daemons]
    rows += _peers(HTTP_PEERS, web, place)
    try:
        s3_url = servers.enter_context(s3_server(place.origin, place.scratch / "s3"))
    except HoldfastError as error:
        print(f"skipped, all S3 rows: {error.message}", flush=True)
    else:
        s3 = Server(corpus, s3_url, s3_environment(s3_url), f"s3://{BUCKET}/{corpus.version}/")
        rows += [Row(name, partial(_holdfast, s3, place, checkout)) for _, name, checkout in daemons]
        rows += _peers(S3_PEERS, s3, place)
    return [row for row in rows if matches(options.only, row.name)]


def _peers(peers: Sequence[Peer], server: Server, place: Workplace) -> list[Row]:
    rows = []
    for peer in peers:
        if (reason := peer.missing()) is not None:
            print(f"skipped, {peer.name}: {reason}", flush=True)
            continue
        rows.append(Row(peer.name, partial(_peer, peer, server, place)))
    return rows


def _peer(peer: Peer, server: Server, place: Workplace, folder: Path) -> Usage:
    return peer.run(Job(server.corpus, server.url, server.environment, folder, place.scratch, server.corpus.timeout_s))


def _holdfast(server: Server, place: Workplace, checkout: Path | None, folder: Path) -> Usage:
    """Measure an idle daemon from the pull until the version's symlink names the verified snapshot."""
    catalog, digest = place.scratch / "catalog.yaml", server.corpus.manifest.digest
    write_catalog(catalog, [CatalogEntry(_REF, server.source, digest)])
    with daemon(folder, catalog, server.environment, checkout=checkout) as running:
        running.wait_ready()
        started, cpu_before_s = time.monotonic(), cpu_seconds(running.pid)
        running.pull(_REF)
        running.wait_published(_REF, digest, server.corpus.timeout_s)
        wall_s = time.monotonic() - started
        return Usage(wall_s, cpu_seconds(running.pid) - cpu_before_s, peak_memory(running.pid))


def _rounds(rows: Sequence[Row], corpus: Corpus, place: Workplace, rounds: int) -> list[report.Sample]:
    samples = []
    for round_ in range(rounds + 1):
        # Round 0 is a warm-up: the S3 server hashes a file at its first request.
        for row in in_turn(rows, round_):
            usage = _run(row, corpus, place)
            sample = report.Sample(row.name, round_, corpus.size, usage.wall_s, usage.cpu_s, usage.peak_bytes)
            label = f"round {round_}" if round_ else "warming"
            print(
                f"{label}: {row.name}: {usage.wall_s:.2f} s, {sample.rate / 1e9:.2f} GB/s, "
                f"{sample.cpu_s_per_gb:.2f} CPU s/GB, {format_size(usage.peak_bytes)} at most",
                flush=True,
            )
            if round_:
                samples.append(sample)
    return samples


def _run(row: Row, corpus: Corpus, place: Workplace) -> Usage:
    folder = place.destination
    folder.mkdir()
    corpus.warm()
    try:
        return row.run(folder)
    finally:
        shutil.rmtree(folder)
        os.sync()  # else the removal's writes would slow the next row


def _report(samples: Sequence[report.Sample], corpus: Corpus) -> tuple[str, dict[str, object]]:
    http = (HOLDFAST_HTTP, BEFORE_HTTP, *(peer.name for peer in HTTP_PEERS))
    s3 = (HOLDFAST_S3, BEFORE_S3, *(peer.name for peer in S3_PEERS))
    best = report.fastest(samples, s3[2:])
    parts, rows = [], []
    for title, names, reference in (("Over HTTP (nginx)", http, CURL.name), ("Over S3 (rclone)", s3, best)):
        references = [reference] if reference else []
        figures = report.figures(samples, names, references)
        if figures:
            rows += figures
            parts.append(f"{title}, {format_size(corpus.size)}:\n\n{report.table(figures, references)}")
    targets = [*_rate_targets(samples, best), *_cpu_targets(samples)]
    parts.append(report.bullets(targets))
    return "\n\n".join(part for part in parts if part), report.document(samples, rows, targets)


def _rate_targets(samples: Sequence[report.Sample], best_s3: str | None) -> list[report.Target]:
    bounds = [
        (HOLDFAST_HTTP, CURL.name, 1.2),
        (HOLDFAST_S3, best_s3, 1.0),
        (HOLDFAST_HTTP, BEFORE_HTTP, 1.0),
        (HOLDFAST_S3, BEFORE_S3, 1.0),
    ]
    return [
        report.Target(f"{row}, rate against {reference}", found, bound, True, " x")
        for row, reference, bound in bounds
        if reference is not None and (found := report.ratio(samples, row, reference)) is not None
    ]


def _cpu_targets(samples: Sequence[report.Sample]) -> list[report.Target]:
    bounds = [(HOLDFAST_HTTP, BEFORE_HTTP, 0.90), (HOLDFAST_HTTP, BARE.name, 1.10), (HOLDFAST_S3, BEFORE_S3, 0.90)]
    return [
        report.Target(f"{row}, CPU against {reference}", found, bound, False, " x")
        for row, reference, bound in bounds
        if (found := report.cpu_ratio(samples, row, reference)) is not None
    ]


if __name__ == "__main__":
    sys.exit(bench_main(main))
