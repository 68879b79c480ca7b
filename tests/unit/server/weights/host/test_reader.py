from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from server import load_file
from server.weights import report
from server.weights.host.page_cache import PageCache, count_cached
from server.weights.settings import Io, LoaderSettings
from tests.support.checkpoints import random_raw, same, write
from tests.support.cold import cached, drop
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.support.mounts import mounted_overlay
from tests.support.serving import REPOSITORY
from tests.unit.server.weights.conftest import SMALL

TENSORS = {f"t{number}": random_raw("BF16", (300, 1000 + number), number) for number in range(5)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three megabytes, on disk where the temporary folder is."""
    return write(tmp_path / "m.safetensors", TENSORS)


def load(path: Path, settings: LoaderSettings) -> report.LoadReport:
    """Load, check every bit, and return the report."""
    found = load_file(path, fake_accelerator(FakeRuntime(), settings))
    assert all(same(found[name], raw.tensor()) for name, raw in TENSORS.items())
    return report.list_recent()[-1]


def direct_works(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_cold_bytes_go_past_the_cache_and_warm_ones_through_it(path: Path) -> None:
    """Alone on the node: what is cold is read with O_DIRECT and stays out of the cache, what is cached is copied."""
    if not direct_works(path):
        pytest.skip("no O_DIRECT on this file system")
    drop(path)
    cold = load(path, SMALL)
    assert cold.cold_bytes > 0.9 * cold.bytes
    assert cold.direct_bytes > 0.9 * cold.bytes
    assert cached(path) < 0.2
    path.read_bytes()
    warm = load(path, SMALL)
    assert (warm.cold_bytes, warm.direct_bytes) == (0, 0)


@pytest.mark.parametrize("settings", [replace(SMALL, local_readers=2), replace(SMALL, io=Io.BUFFERED)])
def test_several_readers_leave_the_bytes_to_each_other(path: Path, settings: LoaderSettings) -> None:
    """With several ranks on the node everything goes through the cache: the next rank reads nothing from disk."""
    drop(path)
    first = load(path, settings)
    assert first.cold_bytes > 0
    assert first.direct_bytes == 0
    assert cached(path) > 0.99
    assert load(path, settings).cold_bytes == 0


def test_a_file_that_somebody_else_reads_is_read_through_the_cache(path: Path) -> None:
    """While another process holds its shared lock on the file, no byte goes past the cache."""
    drop(path)
    code = (
        "import fcntl, os, sys\nfcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH)\n"
        "print(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        together = load(path, SMALL)
        other.communicate(b"")
    assert together.direct_bytes == 0
    assert cached(path) > 0.99


def test_direct_reads_are_right_wherever_tensors_lie(path: Path) -> None:
    """With O_DIRECT for everything, cached or not, the bytes are the same, the file's unaligned end too."""
    for _ in range(2):
        assert load(path, replace(SMALL, io=Io.DIRECT)).bytes == sum(len(raw.data) for raw in TENSORS.values())
        path.read_bytes()


def test_the_probe_sees_what_the_kernel_counts(path: Path) -> None:
    """Where the kernel will not count pages, a look at one page tells cold from cached, and brings in no other."""
    drop(path)
    descriptor = os.open(path, os.O_RDONLY)
    cache = PageCache(descriptor)
    try:
        assert cache.is_cold(0, 1 << 20)
        assert not cache.is_resident(1 << 20)
        assert count_cached(descriptor, 0, path.stat().st_size) <= 1
        path.read_bytes()
        assert cache.is_resident(1 << 20)
        assert not cache.is_cold(0, 1 << 20)
    finally:
        cache.close()
        os.close(descriptor)


def test_on_an_overlay_cold_and_warm_are_told_apart(path: Path, tmp_path: Path) -> None:
    """On overlayfs, which container images and some nodes have, cached bytes are copied and cold ones are not taken
    for cached: the kernel's count is 0 there for both."""
    (tmp_path / "lower").mkdir()
    path = path.rename(tmp_path / "lower" / path.name)
    with mounted_overlay(tmp_path / "overlay", path.parent) as folder:
        found = folder / path.name
        drop(path)
        cold = load(found, SMALL)
        assert cold.cold_bytes > 0.9 * cold.bytes
        assert cached(found) == cached(path) < 0.2
        path.read_bytes()
        warm = load(found, SMALL)
        assert (warm.cold_bytes, warm.direct_bytes) == (0, 0)
        assert cached(found) == cached(path) > 0.99


RANK = """
import sys, torch
from safetensors import safe_open as reference
from server import safe_open
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.unit.server.weights.conftest import SMALL
path, rank, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with safe_open(path, "pt", fake_accelerator(FakeRuntime(), SMALL)) as file, reference(path, "pt") as plain:
    for name in file.keys():
        rows = -(-300 // ranks)
        index = slice(rank * rows, (rank + 1) * rows)
        ours, theirs = file.get_slice(name)[index], plain.get_slice(name)[index]
        assert torch.equal(ours.view(torch.int16), theirs.view(torch.int16))
"""


def test_processes_read_their_shares_side_by_side(path: Path) -> None:
    """Ranks in processes of their own, reading one cold file at the same time, each get their rows."""
    drop(path)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(path), str(rank), "2"],
            cwd=REPOSITORY,
            env={**os.environ, "LOCAL_WORLD_SIZE": "2", "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in started:
        process.communicate()
        assert process.returncode == 0
