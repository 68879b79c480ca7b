"""Start the daemon on a root with many versions, and measure the time until it is ready.

Law: the store's own publication makes the root, once; the blobs' pages are dropped before each start, so that hashing
them again would show in the bytes read from the disk. The catalog wants every version; its source is an address without
a listener, so that a download would fail.

Run `python -m bench.restart --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import report
from bench.daemon import CatalogEntry, Daemon, daemon, write_catalog
from bench.harness import bench_main, workplace
from bench.machine import append_section
from bench.measure import cpu_seconds, drop_pages, failed, io_count, wait_until
from bench.origins import free_port, loopback_environment
from cached.contract.digest import Digest
from cached.contract.layout import Layout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.contract.status import State, timestamp
from cached.store import recovery, snapshots

_MIB = 1024 * 1024
_FILE_BYTES = 4096
_VERSIONS_OF_ONE = 10


@dataclass(frozen=True, slots=True)
class Restart:
    """One start: seconds until /readyz answered 200, CPU seconds until then, seconds until every version was `ready`,
    bytes read from the disk."""

    readyz_s: float
    cpu_s: float
    all_ready_s: float
    disk_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.restart", description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, default=500, help="versions on the node (default 500)")
    parser.add_argument("--files", type=int, default=100, help="files in each (default 100)")
    parser.add_argument("--rounds", type=int, default=3, help="starts (default 3)")
    parser.add_argument("--append", action="store_true", help="append the table to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(None) as place:
        layout, catalog = Layout(place.destination), place.scratch / "catalog.yaml"
        print(f"making {options.versions} versions of {options.files} files", flush=True)
        published = build(layout, options.versions, options.files)
        nowhere = f"http://127.0.0.1:{free_port()}/"
        write_catalog(catalog, [CatalogEntry(ref, nowhere, digest, prefetch=True) for ref, digest in published.items()])
        starts = [_start(layout, catalog, set(published)) for _ in range(options.rounds)]
        text = _report(starts, options.versions * options.files * _FILE_BYTES)
        print(text)
        if options.append:
            title = f"Restart with {options.versions} versions of {options.files} files"
            append_section(title, place.folder, text)
    return 0


def build(layout: Layout, versions: int, files: int) -> dict[ModelRef, Digest]:
    """Publish `versions` of `files` small files each through the store; return their digests."""
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
        ref = ModelRef(f"model-{number // _VERSIONS_OF_ONE:03d}", f"v{number % _VERSIONS_OF_ONE}")
        digest = snapshots.publish(layout, Manifest.build(entries), verified_at)
        snapshots.set_name(layout, ref, digest)
        published[ref] = digest
    return published


def _start(layout: Layout, catalog: Path, published: set[ModelRef]) -> Restart:
    _drop_blobs(layout)
    started = time.monotonic()
    with daemon(layout.root, catalog, loopback_environment()) as running:
        running.wait_ready()
        readyz_s, cpu_s = time.monotonic() - started, cpu_seconds(running.pid)
        wait_until(lambda: _all_ready(running, published), "status `ready` of every version", 60, 0.05)
        all_ready_s = time.monotonic() - started
        read = io_count(running.pid, "read_bytes")
        if (fetched := running.metric("holdfast_fetch_bytes_total")) > 0:
            raise failed(f"expected nothing to be downloaded, found {fetched:.0f} bytes")
        return Restart(readyz_s, cpu_s, all_ready_s, read)


def _all_ready(running: Daemon, published: set[ModelRef]) -> bool | None:
    models = running.status()["models"]
    ready = {ModelRef(m["model"], m["version"]) for m in models if m["state"] == State.READY}
    return True if published <= ready else None


def _drop_blobs(layout: Layout) -> None:
    os.sync()  # dirty pages cannot be dropped
    for blob in layout.blobs.glob("*/*"):
        drop_pages(blob)


def _report(starts: Sequence[Restart], blob_bytes: int) -> str:
    head = ["start", "/readyz, s", "CPU s", "all ready, s", "read from disk, MiB"]
    body = [
        [
            str(number),
            f"{start.readyz_s:.2f}",
            f"{start.cpu_s:.2f}",
            f"{start.all_ready_s:.2f}",
            f"{start.disk_bytes / _MIB:.1f}",
        ]
        for number, start in enumerate(starts, 1)
    ]
    targets = [
        report.Target("start to /readyz, median", median(s.readyz_s for s in starts), 2, False, " s"),
        # Hashing the blobs again would read all of them; a tenth leaves room for program files outside the cache.
        report.Target(
            f"read from disk, of {blob_bytes / _MIB:.0f} MiB of blobs",
            max(s.disk_bytes for s in starts) / _MIB,
            blob_bytes / 10 / _MIB,
            False,
            " MiB",
        ),
    ]
    return f"{report.grid(head, body)}\n\n{report.bullets(targets)}"


if __name__ == "__main__":
    sys.exit(bench_main(main))
