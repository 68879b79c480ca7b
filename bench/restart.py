"""Start the daemon on a root with many versions, and measure the time until it is ready.

Law: the store's own publication makes each root, once; the blobs' pages are dropped before each start, so that hashing
them again would show in the bytes read from the disk. The catalog wants every version; its source is an address without
a listener, so that a download would fail. Builds that are compared have a root each, and take turns; each kind of end
before a start is a row of its own.

Run `python -m bench.restart --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import report
from bench.daemon import CatalogEntry, Daemon, daemon, write_catalog
from bench.harness import bench_main, in_turn, workplace
from bench.machine import append_section
from bench.measure import cpu_seconds, failed, io_count, resident_memory, wait_until
from bench.origins import free_port, loopback_environment
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import State, timestamp
from cached.store.start import recovery
from cached.store.version import snapshots
from tests.support.page_cache import drop_pages

_MIB = 1024 * 1024
_FILE_BYTES = 4096
_VERSIONS_OF_ONE = 10
_SETTLED_S = 8.0  # after which a daemon has given back what its start took
_READY_S = 120.0
_CLEAN, _KILLED, _CHANGED = "clean end before", "after kill -9", "kill -9, and a folder changed"
_ENDS = (_CLEAN, _KILLED, _CHANGED)
_BOUNDS = {_CLEAN: 0.35, _KILLED: 0.8, _CHANGED: 0.8}
_RESIDENT_BOUND = 0.75


@dataclass(frozen=True, slots=True)
class Build:
    """A checkout of this repository, None for this one, and its own root and catalog."""

    name: str
    checkout: Path | None
    layout: Layout
    catalog: Path


@dataclass(frozen=True, slots=True)
class Restart:
    """One start after `before`: seconds until /readyz answered 200, CPU seconds until then, seconds until every version
    was `ready`, bytes read from the disk, and resident bytes some seconds later."""

    build: str
    before: str
    readyz_s: float
    cpu_s: float
    all_ready_s: float
    disk_bytes: int
    resident_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.restart", description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, default=500, help="versions on the node (default 500)")
    parser.add_argument("--files", type=int, default=100, help="files in each (default 100)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a start after each end (default 3)")
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another checkout, measured in turns with this")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    checkouts = {"this": None} | ({} if options.beside is None else {"beside": options.beside.resolve()})
    with workplace(None) as place:
        builds, nowhere = [], f"http://127.0.0.1:{free_port()}/"
        for name, checkout in checkouts.items():
            print(f"{name}: making {options.versions} versions of {options.files} files", flush=True)
            build_ = Build(name, checkout, Layout(place.destination / name), place.scratch / f"{name}.yaml")
            published = build(build_.layout, options.versions, options.files)
            entries = [CatalogEntry(ref, nowhere, digest, prefetch=True) for ref, digest in published.items()]
            write_catalog(build_.catalog, entries)
            builds.append(build_)
        starts = list(_run(builds, options.rounds))
        text = _report(starts, options.versions * options.files * _FILE_BYTES)
        print(text)
        if options.append:
            title = f"Restart with {options.versions} versions of {options.files} files"
            append_section(title, place.folder, text)
    return 0


def build(layout: Layout, versions: int, files: int, model: str = "model") -> dict[ModelRef, Digest]:
    """Publish `versions` of `files` small files each through the store, ten a name that begins with `model`; return
    their digests."""
    recovery.prepare(layout)
    published = {}
    verified_at = timestamp(time.time())
    for number in range(versions):
        entries = []
        for index in range(files):
            data = os.urandom(_FILE_BYTES)
            entry = FileEntry(f"part-{index:03d}.bin", Digest.of(data).hex, len(data))
            blob = layout.blob(entry.sha256)
            blob.parent.mkdir(mode=0o700, exist_ok=True)
            blob.write_bytes(data)
            blob.chmod(0o444)
            entries.append(entry)
        ref = ModelRef(f"{model}-{number // _VERSIONS_OF_ONE:03d}", f"v{number % _VERSIONS_OF_ONE}")
        digest = snapshots.publish(layout, Manifest.build(entries), verified_at)
        snapshots.set_name(layout, ref, digest)
        published[ref] = digest
    return published


def _run(builds: Sequence[Build], rounds: int) -> Iterator[Restart]:
    """Yield every start; each leaves its root as the next one's row says."""
    for build in builds:
        _start(build, "", Daemon.stop)  # with the statuses and records of this build, and a clean end
    for round_ in range(rounds):
        for before, end in ((_CLEAN, Daemon.kill), (_KILLED, Daemon.kill), (_CHANGED, Daemon.stop)):
            for build in in_turn(builds, round_):
                if before is _CHANGED:
                    os.utime(next(build.layout.blobs.iterdir()))
                yield _start(build, before, end)


def _start(build: Build, before: str, end: Callable[[Daemon], None]) -> Restart:
    _drop_blobs(build.layout)
    published = {ModelRef(link.parent.name, link.name) for link in build.layout.public.models.glob("*/*")}
    started = time.monotonic()
    with daemon(build.layout.root, build.catalog, loopback_environment(), checkout=build.checkout) as running:
        running.wait_ready()
        readyz_s, cpu_s = time.monotonic() - started, cpu_seconds(running.pid)
        wait_until(lambda: _all_ready(running, published), "status `ready` of every version", _READY_S, 0.05)
        all_ready_s = time.monotonic() - started
        read = io_count(running.pid, "read_bytes")
        time.sleep(_SETTLED_S)
        resident = resident_memory(running.pid)
        if (fetched := running.metric("holdfast_fetch_bytes_total")) > 0:
            raise failed(f"expected nothing to be downloaded, found {fetched:.0f} bytes")
        end(running)
        return Restart(build.name, before, readyz_s, cpu_s, all_ready_s, read, resident)


def _all_ready(running: Daemon, published: set[ModelRef]) -> bool | None:
    models = running.status()["models"]
    ready = {ModelRef(m["model"], m["version"]) for m in models if m["state"] == State.READY}
    return True if published <= ready else None


def _drop_blobs(layout: Layout) -> None:
    os.sync()  # dirty pages cannot be dropped
    for blob in layout.blobs.glob("*/*"):
        drop_pages(blob)


def _report(starts: Sequence[Restart], blob_bytes: int) -> str:
    head = ["build", "before", "/readyz, s", "CPU s", "all ready, s", "read from disk, MiB", "resident, MiB"]
    names = list(dict.fromkeys(start.build for start in starts))
    figures = {(name, before): _Figures(starts, name, before) for before in _ENDS for name in names}
    body = [
        [
            name,
            before,
            f"{found.readyz_s:.2f}",
            f"{found.cpu_s:.2f}",
            f"{found.all_ready_s:.2f}",
            f"{found.disk_bytes / _MIB:.1f}",
            f"{found.resident_bytes / _MIB:.1f}",
        ]
        for (name, before), found in figures.items()
    ]
    ours = figures["this", _CLEAN]
    targets = [
        report.Target("start to /readyz, median", ours.readyz_s, 2, False, " s"),
        # Hashing the blobs again would read all of them; a tenth leaves room for program files outside the cache.
        report.Target(
            f"read from disk, of {blob_bytes / _MIB:.0f} MiB of blobs",
            max(figures["this", before].disk_bytes for before in _ENDS) / _MIB,
            blob_bytes / 10 / _MIB,
            False,
            " MiB",
        ),
    ]
    if len(names) > 1:
        for before, bound in _BOUNDS.items():
            this, that = figures["this", before], figures["beside", before]
            targets += [
                report.Target(f"{before}: /readyz", this.readyz_s / that.readyz_s, bound, False, " x"),
                report.Target(f"{before}: CPU", this.cpu_s / that.cpu_s, bound, False, " x"),
            ]
        resident = ours.resident_bytes / figures["beside", _CLEAN].resident_bytes
        targets.append(report.Target("resident", resident, _RESIDENT_BOUND, False, " x"))
    return f"{report.grid(head, body)}\n\n{report.bullets(targets)}"


class _Figures:
    """The medians of one build's starts after one kind of end."""

    def __init__(self, starts: Sequence[Restart], build: str, before: str) -> None:
        chosen = [start for start in starts if (start.build, start.before) == (build, before)]
        self.readyz_s = median(start.readyz_s for start in chosen)
        self.cpu_s = median(start.cpu_s for start in chosen)
        self.all_ready_s = median(start.all_ready_s for start in chosen)
        self.disk_bytes = max(start.disk_bytes for start in chosen)
        self.resident_bytes = median(start.resident_bytes for start in chosen)


if __name__ == "__main__":
    sys.exit(bench_main(main))
