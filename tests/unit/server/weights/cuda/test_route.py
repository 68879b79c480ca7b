from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from server import load_file
from server.weights import report
from server.weights.cuda.accelerator import Accelerator
from tests.support.checkpoints import Raw, random_raw, same, write
from tests.support.fake_cuda import FakeRuntime, fake_accelerator
from tests.unit.server.weights.conftest import SMALL

TENSORS = {f"t{number}": random_raw("F32", (50, 1000 + number), number) for number in range(9)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = write(tmp_path / "m.safetensors", TENSORS)
    made.read_bytes()
    return made


def right(path: Path, accelerator: Accelerator, tensors: dict[str, Raw] = TENSORS) -> report.LoadReport:
    found = load_file(path, accelerator)
    assert all(same(found[name], raw.tensor()) for name, raw in tensors.items())
    return report.list_recent()[-1]


class Slow(FakeRuntime):
    """A runtime whose registration, or whose synchronization, takes its time."""

    def __init__(self, slow: str) -> None:
        super().__init__(read_only_registration=True)
        self._slow = slow

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        if self._slow == "register" and read_only:
            time.sleep(0.5)
        super().register(address, nbytes, read_only=read_only)

    def record(self, event: int, stream: int) -> None:
        if self._slow == "ring" and not any(read_only for _, read_only in self._registered.values()):
            time.sleep(0.5)
        super().record(event, stream)


@pytest.mark.parametrize(("slow", "method"), [("register", "ring"), ("ring", "registered")])
def test_the_faster_way_is_kept(slow: str, method: str, path: Path) -> None:
    """On a device that can read registered pages both ways are tried once, and every later load takes the faster."""
    runtime = Slow(slow)
    accelerator = fake_accelerator(runtime, SMALL)
    assert right(path, accelerator).method == method
    for _ in range(2):
        pinned = runtime.calls["cudaHostRegister"]
        assert right(path, accelerator).method == method
        assert (runtime.calls["cudaHostRegister"] > pinned) == (method == "registered")
    assert runtime.violations == []
    assert runtime.registered_bytes == SMALL.slots * SMALL.slot_bytes  # nothing but the ring stays pinned


def test_a_device_that_cannot_is_not_asked(path: Path, fake: FakeRuntime) -> None:
    """Where attribute 113 is 0 nothing is registered but the ring."""
    accelerator = fake_accelerator(fake, SMALL)
    assert right(path, accelerator).method == "ring"
    assert fake.calls["cudaHostRegister"] == 1


def test_small_loads_decide_nothing(tmp_path: Path) -> None:
    """A load of few ranges goes through the ring and leaves the question open."""
    runtime = Slow("ring")
    accelerator = fake_accelerator(runtime, replace(SMALL, range_bytes=1 << 30))
    path = write(tmp_path / "m.safetensors", TENSORS)
    assert right(path, accelerator).method == "ring"
    assert runtime.calls["cudaHostRegister"] == 1


def test_pages_that_cannot_be_pinned_go_through_the_ring(path: Path) -> None:
    """A registration that fails in the middle costs a copy, and no load."""
    runtime = Slow("ring")
    accelerator = fake_accelerator(runtime, SMALL)
    right(path, accelerator)
    runtime.fail["cudaHostRegister"] = (runtime.calls["cudaHostRegister"] + 3, 801)
    assert right(path, accelerator).method == "registered"
    assert runtime.violations == []
