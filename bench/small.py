"""Fetch thousands of small files, and thousands of small versions, and measure the cost of each.

Law: time counts from the request until the version's symlink names the verified, durable snapshot. Rows take turns
within a round. `--before CHECKOUT` also runs another checkout of this repository, with fewer files: in older daemons a
file costs more, the more there are. Nothing is deleted before the end: ext4 does not use the inodes again that were
deleted within the last minutes, and looks at each of them whenever it makes a file (0.9 ms instead of 0.013 ms after
20,000 deletions); for the same reason `--work` should name a folder on a file system where little was deleted lately.

Run `python -m bench.small --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from statistics import median

from bench import report
from bench.daemon import CatalogEntry, daemon, write_catalog
from bench.harness import Workplace, bench_main, matches, workplace
from bench.machine import append_section
from bench.measure import cpu_seconds, wait_until
from bench.origins import BUCKET, Corpus, loopback_environment, nginx, s3_environment, s3_server
from bench.peers import S3_PEERS, Job
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import MANIFEST_NAME, FileEntry, Manifest
from cached.contract.reference import ModelRef

_FILE_BYTES = 4096
_REF = ModelRef("bench", "v1")
_TIMEOUT_S = 600.0
_S5CMD = next(peer for peer in S3_PEERS if peer.program == "s5cmd")


@dataclass(frozen=True, slots=True)
class Cost:
    """A run's seconds in all, for `count` files or versions."""

    count: int
    wall_s: float
    cpu_s: float

    @property
    def wall_ms(self) -> float:
        """Milliseconds a file or version."""
        return self.wall_s / self.count * 1e3

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a file or version."""
        return self.cpu_s / self.count * 1e3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    run: Callable[[], Cost]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.small", description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="another checkout of this repository, to run as well")
    parser.add_argument("--files", type=int, default=10_000, help="files of the large version (default 10000)")
    parser.add_argument("--few", type=int, default=500, help="files of the small version (default 500)")
    parser.add_argument("--before-files", type=int, default=4_000, help="files that --before gets (default 4000)")
    parser.add_argument("--s3-files", type=int, default=1_000, help="files from S3 (default 1000)")
    parser.add_argument("--versions", type=int, default=2_000, help="versions of one file (default 2000)")
    parser.add_argument("--few-versions", type=int, default=250, help="the same, few of them (default 250)")
    parser.add_argument("--rounds", type=int, default=3, help="times that every row runs (default 3)")
    parser.add_argument(
        "--only", default="", help="run only rows with one of these comma-separated words in their name"
    )
    parser.add_argument("--work", type=Path, help="folder for all files (default: a temporary one in /var/tmp)")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(options.work) as place:
        rows = [row for row in _rows(options, place) if matches(options.only, row.name)]
        costs: dict[str, list[Cost]] = {row.name: [] for row in rows}
        for round_ in range(1, options.rounds + 1):
            for row in rows:
                cost = row.run()
                costs[row.name].append(cost)
                print(f"round {round_}: {row.name}: {cost.wall_ms:.2f} ms, CPU {cost.cpu_ms:.2f} ms", flush=True)
        text = _report(costs)
        print(f"\n{text}")
        if options.append:
            append_section("Thousands of small files and versions", place.folder, text)
    return 0


def _rows(options: argparse.Namespace, place: Workplace) -> list[Row]:
    many, few = f"http, {options.files} files", f"http, {options.few} files"
    rows = [
        Row(many, partial(_http, place, options.files, None)),
        Row(few, partial(_http, place, options.few, None)),
        Row(f"s3, {options.s3_files} files", partial(_s3, place, options.s3_files)),
        Row(f"s5cmd cp + sync, {options.s3_files} files", partial(_s5cmd, place, options.s3_files)),
        Row(f"{options.versions} versions", partial(_versions, place, options.versions)),
        Row(f"{options.few_versions} versions", partial(_versions, place, options.few_versions)),
    ]
    if options.before is not None:
        name = f"before: http, {options.before_files} files"
        rows.insert(1, Row(name, partial(_http, place, options.before_files, options.before)))
    return rows


def small_corpus(origin: Path, files: int) -> Corpus:
    """Return a version of `files` files of 4 KiB each at the origin, new or from the last round."""
    folder = origin / BUCKET / f"small-{files}"
    if (folder / MANIFEST_NAME).exists():
        return Corpus(folder, Manifest.parse((folder / MANIFEST_NAME).read_bytes()))
    folder.mkdir(parents=True)
    entries = []
    for number in range(files):
        data = _weights()
        name = f"part-{number:05d}.safetensors"
        (folder / name).write_bytes(data)
        entries.append(FileEntry(name, hashlib.sha256(data).hexdigest(), len(data)))
    manifest = Manifest.build(entries)
    (folder / MANIFEST_NAME).write_bytes(manifest.canonical())
    return Corpus(folder, manifest)


def _weights() -> bytes:
    """Return a safetensors file of `_FILE_BYTES` bytes with one random tensor: other bytes would be told as damaged."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [_FILE_BYTES - 128], "data_offsets": [0, _FILE_BYTES - 128]}})
    return (120).to_bytes(8, "little") + header.ljust(120).encode() + os.urandom(_FILE_BYTES - 128)


def _http(place: Workplace, files: int, checkout: Path | None) -> Cost:
    corpus = small_corpus(place.origin, files)
    with nginx(place.origin, place.scratch / "nginx") as url:
        source = f"{url}/{BUCKET}/{corpus.version}/"
        return _holdfast(place, corpus, source, loopback_environment(), checkout)


def _s3(place: Workplace, files: int) -> Cost:
    corpus = small_corpus(place.origin, files)
    with s3_server(place.origin, place.scratch / "s3") as url:
        return _holdfast(place, corpus, f"s3://{BUCKET}/{corpus.version}/", s3_environment(url), None)


def _s5cmd(place: Workplace, files: int) -> Cost:
    corpus = small_corpus(place.origin, files)
    with s3_server(place.origin, place.scratch / "s3") as url, _new_destination(place) as folder:
        folder.mkdir()
        job = Job(corpus, url, s3_environment(url), folder, place.scratch, _TIMEOUT_S)
        usage = _S5CMD.run(job)
        return Cost(files, usage.wall_s, usage.cpu_s)


def _holdfast(
    place: Workplace, corpus: Corpus, source: str, environment: dict[str, str], checkout: Path | None
) -> Cost:
    catalog, digest = place.scratch / "catalog.yaml", corpus.manifest.digest
    write_catalog(catalog, [CatalogEntry(_REF, source, digest)])
    with (
        _new_destination(place) as root,
        daemon(root, catalog, environment, ("--scrub-rate", "0"), checkout) as running,
    ):
        running.wait_ready()
        started, cpu_before_s = time.monotonic(), cpu_seconds(running.pid)
        running.pull(_REF)
        running.wait_published(_REF, digest, _TIMEOUT_S)
        wall_s = time.monotonic() - started
        return Cost(len(corpus.manifest.files), wall_s, cpu_seconds(running.pid) - cpu_before_s)


def _versions(place: Workplace, count: int) -> Cost:
    """Measure `count` versions of one file, wanted all at once by the catalog's prefetch."""
    folder, catalog = place.origin / f"versions-{count}", place.scratch / "catalog.yaml"
    for number in range(count):
        file = folder / f"v{number}" / "model.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True)
            file.write_bytes(_weights())
    nothing = [CatalogEntry(_REF, "file:///nowhere", Digest("0" * 64))]
    write_catalog(catalog, nothing)
    with (
        nginx(folder, place.scratch / "nginx") as url,
        _new_destination(place) as root,
        daemon(root, catalog, loopback_environment(), ("--scrub-rate", "0")) as running,
    ):
        running.wait_ready()
        started, cpu_before_s = time.monotonic(), cpu_seconds(running.pid)
        versions = [f"v{number}" for number in range(count)]
        model = {"source": f"{url}/{{version}}/model.safetensors", "prefetch": {"versions": versions}}
        changed = catalog.with_suffix(".new")
        changed.write_text(json.dumps({"models": {"many": model}}))
        changed.rename(catalog)
        named = Layout(root).public.models / "many"
        wait_until(lambda: _all_named(named, count), f"{count} published versions", _TIMEOUT_S, 0.05)
        return Cost(count, time.monotonic() - started, cpu_seconds(running.pid) - cpu_before_s)


def _all_named(folder: Path, count: int) -> bool | None:
    if not folder.exists():
        return None
    return True if sum(1 for name in os.listdir(folder) if not name.startswith(".")) >= count else None


@contextmanager
def _new_destination(place: Workplace) -> Iterator[Path]:
    """Yield a destination that no row had before, and write back what the row left there."""
    place.destination.mkdir(exist_ok=True)
    yield place.destination / str(len(os.listdir(place.destination)))
    os.sync()  # else these writes would slow the next row


def _report(costs: dict[str, list[Cost]]) -> str:
    body = [
        [name, f"{median(c.wall_ms for c in found):.2f}", f"{median(c.cpu_ms for c in found):.2f}"]
        for name, found in costs.items()
    ]
    parts = [report.grid(["each of", "wall ms", "CPU ms"], body), report.bullets(_targets(costs))]
    return "\n\n".join(part for part in parts if part)


def _targets(costs: dict[str, list[Cost]]) -> list[report.Target]:
    wall, cpu = attrgetter("wall_ms"), attrgetter("cpu_ms")

    def ratio(over: str, under: str, figure: Callable[[Cost], float]) -> float | None:
        pairs = zip(costs.get(over, ()), costs.get(under, ()), strict=False)
        ratios = [figure(a) / figure(b) for a, b in pairs]
        return median(ratios) if ratios else None

    http = [name for name in costs if name.startswith("http")]
    before = [name for name in costs if name.startswith("before")]
    s3 = [name for name in costs if name.startswith(("s3", "s5cmd"))]
    versions = [name for name in costs if name.endswith("versions")]
    wanted: list[report.Target] = []

    def want(what: str, found: float | None, bound: float, unit: str, *, at_least: bool = False) -> None:
        if found is not None:
            wanted.append(report.Target(what, found, bound, at_least, unit))

    if http and before:
        want("wall of a file, before over now", ratio(before[0], http[0], wall), 8, " x", at_least=True)
    if len(http) == 2:
        want(f"CPU of a file, {http[0]} over {http[1]}", ratio(http[0], http[1], cpu), 1.15, " x")
    if len(s3) == 2:
        want(f"rate, {s3[0]} beside {s3[1]}", ratio(s3[1], s3[0], wall), 0.5, " x", at_least=True)
    if len(versions) == 2:
        want(f"CPU, {versions[0]}", median(c.cpu_ms for c in costs[versions[0]]), 6, " ms")
        want(f"CPU, {versions[0]} over {versions[1]}", ratio(versions[0], versions[1], cpu), 1.25, " x")
    return wanted


if __name__ == "__main__":
    sys.exit(bench_main(main))
