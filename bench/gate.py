"""Measure the gate: its time to open on a published version, and its rate in mode `full` on a warm one.

Law: gates run as processes; their references (an empty Python, two threads of bare sha256 over memory) run in the same
round, so that a slower machine slows both. All files lie in a temporary folder.

Run `python -m bench.gate --help` in the repository's root.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from bench import report
from bench.harness import bench_main, workplace
from bench.machine import append_section, describe, require_space
from bench.measure import failed
from cached.contract.layout import PublicLayout, SnapshotLayout
from cached.contract.manifest import FileEntry, Manifest
from cached.contract.reference import ModelRef
from cached.contract.snapshot.verified import VerifiedFile, VerifiedRecord
from cached.contract.status import timestamp
from tests.support.page_cache import drop_pages

_GIB = 1 << 30
_MIB = 1 << 20
_GB = 10**9
_SPARSE_FILES = 30
_SPARSE_BYTES = 5 * _GB
_SHARDS = 8
_THREADS = 2
_MEMORY_BYTES = 256 * _MIB  # for each thread of bare sha256: well past the last-level cache
_WARM_TRIES = 8
_BLOCK_BYTES = 512  # what getrusage(2) counts in
_OPEN_TARGET_MS = 150
_FULL_TARGET = 0.90
_SPARSE = ModelRef("bench/sparse", "v1")
_RANDOM = ModelRef("bench/random", "v1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gate", description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=int, default=8, help="GiB of random data for mode `full` (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of mode `full` (default 5)")
    parser.add_argument("--starts", type=int, default=21, help="starts in mode `record` (default 21)")
    parser.add_argument("--append", action="store_true", help="append the tables to docs/benchmarks.md")
    options = parser.parse_args(argv)
    with workplace(None) as place:
        require_space(place.folder, options.gib * _GIB + _GIB)
        public = PublicLayout(place.destination)
        opening = _opening(public, options.starts)
        print(opening, flush=True)
        hashing = _hashing(public, options.gib * _GIB, options.rounds)
        print(hashing)
        if options.append:
            append_section("The gate", place.folder, f"{opening}\n\n{hashing}")
        else:
            print(f"\n{describe(place.folder)}")
    return 0


def _opening(public: PublicLayout, starts: int) -> str:
    """Measure mode `record` over sparse files, next to an empty Python."""
    _publish(public, _SPARSE, _sparse_file, [_SPARSE_BYTES] * _SPARSE_FILES)
    gate = _gate_command(public, _SPARSE, "record")
    rows: dict[str, list[float]] = {"python -c pass": [], "gate --once, mode record": []}
    for _ in range(starts):
        for row, command in zip(rows, ([sys.executable, "-c", "pass"], gate), strict=True):
            rows[row].append(_wall_s(command))
    bare = median(rows["python -c pass"])
    body = [
        [row, f"{median(s) * 1000:.0f}", f"{min(s) * 1000:.0f}", f"{max(s) * 1000:.0f}", f"{median(s) / bare:.1f}"]
        for row, s in rows.items()
    ]
    found = median(rows["gate --once, mode record"]) * 1000
    what = f"start of the process to its end, {_SPARSE_FILES} files of {_SPARSE_BYTES // _GB} GB, median of {starts}"
    target = report.Target(what, found, _OPEN_TARGET_MS, at_least=False, unit=" ms")
    return f"{report.grid(['process', 'median ms', 'min', 'max', 'x bare'], body)}\n\n{report.bullets([target])}"


def _hashing(public: PublicLayout, size: int, rounds: int) -> str:
    """Measure mode `full` over a warm snapshot of `size` bytes, next to as many threads of bare sha256 over memory."""
    print(f"making {size // _GIB} GiB of random data", flush=True)
    _publish(public, _RANDOM, _random_file, [size // _SHARDS] * _SHARDS)
    command = _gate_command(public, _RANDOM, "full")
    for path in public.model_link(_RANDOM).glob("*.safetensors"):
        drop_pages(path)
    bare: list[float] = []
    gate: list[float] = []
    for _ in range(rounds):
        bare.append(_bare_s(size))
        gate.append(_warm_s(command, size))
    ratios = [b / g for b, g in zip(bare, gate, strict=True)]
    body = [
        [row, f"{median(s):.2f}", f"{size / median(s) / _GB:.2f}", f"{median(r):.3f}", f"{min(r):.3f}", f"{max(r):.3f}"]
        for row, s, r in (
            (f"{_THREADS} threads of sha256 over memory", bare, [1.0] * rounds),
            (f"gate --verify full --threads {_THREADS}", gate, ratios),
        )
    ]
    what = f"mode `full`, {size // _GIB} GiB warm, whole process, against bare sha256, median of {rounds} pairs"
    target = report.Target(what, median(ratios), _FULL_TARGET, at_least=True, unit=" x")
    return f"{report.grid(['row', 'wall s', 'GB/s', 'x bare', 'min', 'max'], body)}\n\n{report.bullets([target])}"


def _warm_s(command: Sequence[str], size: int) -> float:
    """Return the seconds of a gate that found its `size` bytes in memory.

    A gate before it, which is not counted, reads them from the disk. A machine may reclaim pages within seconds (DAMON
    does, where it is enabled), so a gate that read from the disk is not counted.
    """
    for _ in range(_WARM_TRIES):
        _wall_s(command)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock
        wall_s = _wall_s(command)
        from_disk = (resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock - before) * _BLOCK_BYTES
        if from_disk <= size // 1000:
            return wall_s
    raise failed(f"the page cache lost part of {size // _GIB} GiB before every of {_WARM_TRIES} gates: try --gib 4")


def _gate_command(public: PublicLayout, ref: ModelRef, mode: str) -> list[str]:
    named = ["--root", str(public.path), "--model", ref.name, "--version", ref.version]
    return [sys.executable, "-m", "sidecar", "gate", *named, "--verify", mode, "--threads", str(_THREADS), "--once"]


def _wall_s(command: Sequence[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - started
    if done.returncode != 0:
        raise failed(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return wall_s


def _bare_s(size: int) -> float:
    """Return the seconds in which threads of hashlib hash `size` bytes of memory in all."""
    memories = [memoryview(bytearray(os.urandom(_MIB) * (_MEMORY_BYTES // _MIB))) for _ in range(_THREADS)]

    def hash_share(memory: memoryview) -> None:
        sha = hashlib.sha256()
        left = size // _THREADS
        while left > 0:
            sha.update(memory[:left])
            left -= len(memory)
        sha.digest()

    threads = [threading.Thread(target=hash_share, args=(memory,)) for memory in memories]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def _publish(public: PublicLayout, ref: ModelRef, make: Callable[[Path, int], str], sizes: Sequence[int]) -> None:
    """Publish a snapshot as the daemon does; `make` writes a file and returns its sha256 for the manifest."""
    snapshot = SnapshotLayout(public.snapshots / ".tmp-making")
    snapshot.manifest.parent.mkdir(parents=True)
    entries, record = [], {}
    for number, size in enumerate(sizes):
        path = f"model-{number + 1:05d}-of-{len(sizes):05d}.safetensors"
        entries.append(FileEntry(path, make(snapshot.path / path, size), size))
        record[path] = VerifiedFile.of((snapshot.path / path).stat(), timestamp(time.time()))
    manifest = Manifest.build(entries)
    snapshot.manifest.write_bytes(manifest.canonical())
    snapshot.verified.write_bytes(VerifiedRecord(record).encode())
    snapshot.lease.touch()
    snapshot.path.rename(public.snapshot(manifest.digest).path)
    public.model_link(ref).parent.mkdir(parents=True)
    public.model_link(ref).symlink_to(public.link_target(manifest.digest))


def _sparse_file(path: Path, size: int) -> str:
    """Make a file without blocks; mode `record` reads no bytes, so the sha256 only has to be unique."""
    path.touch()
    os.truncate(path, size)
    return hashlib.sha256(path.name.encode()).hexdigest()


def _random_file(path: Path, size: int) -> str:
    sha = hashlib.sha256()
    with path.open("wb") as file:
        for start in range(0, size, _MIB):
            block = os.urandom(min(_MIB, size - start))
            sha.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())  # dirty pages cannot be dropped
    return sha.hexdigest()


if __name__ == "__main__":
    sys.exit(bench_main(main))
