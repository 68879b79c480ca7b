"""A fake GPU everywhere, the real one where there is one, with a ring so small that everything goes round."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from server.weights.cuda.accelerator import Accelerator, TorchMemory
from server.weights.cuda.cudart import CudaRuntime, load_library
from server.weights.settings import LoaderSettings
from tests.support.fake_cuda import FakeRuntime, fake_accelerator

SMALL = LoaderSettings(
    threads=4, slots=5, slot_bytes=65536, range_bytes=1 << 18, convert_range_bytes=1 << 17, merge_gap=4096
)


@pytest.fixture
def fake() -> Iterator[FakeRuntime]:
    """A runtime that has seen no misuse when the test is over."""
    runtime = FakeRuntime()
    yield runtime
    assert runtime.violations == []
    assert runtime.pending == 0


@pytest.fixture(params=["fake", pytest.param("cuda", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    """A device to load onto: every test that takes it holds for the fake and for the real runtime."""
    if request.param == "fake":
        made = fake_accelerator(request.getfixturevalue("fake"), SMALL)
    elif not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    else:
        device = torch.device("cuda:0")
        made = Accelerator(device, CudaRuntime(load_library(), 0), TorchMemory(device), SMALL)
    yield made
    made.close()
