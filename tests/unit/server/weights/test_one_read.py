"""Several processes of a node and one disk: what goes over the disk's wire, as the kernel counts it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import random_raw, same, write
from tests.support.cold import drop
from tests.support.mounts import mounted_image
from tests.support.serving import REPOSITORY

RAWS = {
    "up": random_raw("BF16", (4096, 512), 1),
    "down": random_raw("BF16", (512, 4096), 2),
    "wide": random_raw("BF16", (16, 131072), 3),  # rows too far apart to read what lies between them
    "norm": random_raw("F32", (512,), 4),
}
DIMS = {"up": 0, "down": 1, "wide": 1}
SLACK = 256 * 1024  # inodes, extents, headers

WORKER = """
import json, sys, torch
from dataclasses import replace
from server import Shards, load_file
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.unit.server.weights.conftest import SMALL
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    settings = replace(SMALL, local_readers=job["readers"])
    device = "cpu" if job["mapped"] else fake_accelerator(FakeRuntime(), settings)
    found = load_file(job["path"], device, shards=Shards(*job["shards"]) if job["shards"] else None)
    torch.save({name: tensor.contiguous().clone() for name, tensor in found.items()}, job["out"])
    del found
    print("done", flush=True)
"""


class Rank:
    """A process of its own that loads what it is told to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.wait("ready")

    def start(self, path: Path, out: Path, *, readers: int, mapped: bool, dims: dict[str, int] | None) -> None:
        shards = None if dims is None else [self.number, 2, dims]
        job = {"path": str(path), "out": str(out), "readers": readers, "mapped": mapped, "shards": shards}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()

    def wait(self, for_what: str = "done") -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == for_what

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def ranks() -> Iterator[list[Rank]]:
    started = [Rank(number) for number in range(2)]
    yield started
    for rank in started:
        rank.end()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of 13 MB on an ext4 of its own, whose device no other process reads."""
    folder = tmp_path_factory.mktemp("disk") / "ext4"
    with mounted_image(folder, "ext4", 64 << 20):
        yield write(folder / "m.safetensors", RAWS)


@contextmanager
def disk(path: Path) -> Iterator[list[int]]:
    """With nothing of the file cached; the bytes that were read from the disk in that block, once it is over."""
    os.sync()
    drop(path)
    number = path.stat().st_dev
    counters = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    if not counters.is_file():
        pytest.skip(f"{counters} is not there")
    before = int(counters.read_text().split()[2])
    counted: list[int] = []
    yield counted
    counted.append((int(counters.read_text().split()[2]) - before) * 512)


def result(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(out)
    return found


def check(outs: list[Path], dims: dict[str, int] | None) -> None:
    """Every bit of what the ranks have is the file's."""
    for rank, out in enumerate(outs):
        for name, tensor in result(out).items():
            plain = RAWS[name].tensor()
            if dims is not None and name in dims:
                plain = plain.chunk(2, dims[name])[rank]
            assert same(tensor, plain), name


SCENARIOS: dict[str, dict[str, Any]] = {
    "shares of two ranks": {"readers": 2, "mapped": False, "dims": DIMS},
    "the whole on two ranks": {"readers": 2, "mapped": False, "dims": None},
    "shares of two ranks on a CPU": {"readers": 2, "mapped": True, "dims": DIMS},
    "the whole on two CPU ranks": {"readers": 2, "mapped": True, "dims": None},
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ranks_of_a_node_read_each_byte_from_disk_once(
    scenario: str, ranks: list[Rank], path: Path, tmp_path: Path
) -> None:
    """Two processes that load at the same time read no more from a cold disk than the file is long."""
    outs = [tmp_path / f"rank{rank.number}" for rank in ranks]
    with disk(path) as read:
        for rank, out in zip(ranks, outs, strict=True):
            rank.start(path, out, **SCENARIOS[scenario])
        for rank in ranks:
            rank.wait()
    assert path.stat().st_size * 0.9 <= read[0] <= path.stat().st_size + SLACK
    check(outs, SCENARIOS[scenario]["dims"])


def test_replicas_that_know_nothing_of_each_other_read_each_byte_once(
    ranks: list[Rank], path: Path, tmp_path: Path
) -> None:
    """While another process holds its lock on the file nothing reads past the page cache, whatever it was told."""
    outs = [tmp_path / f"rank{rank.number}" for rank in ranks]
    with path.open("rb") as other, disk(path) as read:
        fcntl.flock(other, fcntl.LOCK_SH)
        for rank, out in zip(ranks, outs, strict=True):
            rank.start(path, out, readers=1, mapped=False, dims=None)
        for rank in ranks:
            rank.wait()
    assert read[0] <= path.stat().st_size + SLACK
    check(outs, None)


def test_a_rank_alone_reads_only_its_share(ranks: list[Rank], path: Path, tmp_path: Path) -> None:
    """Contiguous shares, and strided ones with long rows, cost the disk their own bytes and no more."""
    dims = {"up": 0, "wide": 1}
    with disk(path) as read:
        ranks[0].start(path, tmp_path / "out", readers=1, mapped=False, dims=dims)
        ranks[0].wait()
    nbytes = sum(tensor.nbytes for tensor in result(tmp_path / "out").values())
    assert nbytes == sum(len(raw.data) // (2 if name in dims else 1) for name, raw in RAWS.items())
    assert nbytes * 0.9 <= read[0] <= nbytes + SLACK
