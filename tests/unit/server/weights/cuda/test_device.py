from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cached.contract.errors import Permanent
from server.weights.cuda.device import GpuFacts, collect_facts, select, why_none

DRIVERLESS = GpuFacts("2.13.0+cu130", "13.0", None, False, 0, None)


@pytest.mark.parametrize(
    ("facts", "reason", "check"),
    [
        (replace(DRIVERLESS, torch_version="2.13.0+cpu", torch_cuda=None), "without CUDA", "CUDA build"),
        (DRIVERLESS, "/dev/nvidiactl", "nvidia.com/gpu"),
        (replace(DRIVERLESS, driver_files=True, visible_devices=""), "CUDA_VISIBLE_DEVICES=''", "unset"),
        (replace(DRIVERLESS, driver_files=True, complaint="driver too old"), "driver too old", "nvidia-smi"),
        (replace(DRIVERLESS, driver_files=True, driver_cuda=12040), "CUDA up to 12.4", "torch built for CUDA 12"),
        (replace(DRIVERLESS, driver_files=True, driver_cuda=13000), "no reason given", "Xid"),
        (replace(DRIVERLESS, driver_files=True), "no reason given", "Xid"),
    ],
)
def test_the_surest_cause_is_named_first(facts: GpuFacts, reason: str, check: str) -> None:
    """A CUDA-less build, a missing device file, hidden devices, an old driver and torch's complaint are told apart."""
    found, what_to_check = why_none(facts)
    assert reason in found
    assert check in what_to_check


def test_the_cpu_is_always_there() -> None:
    """`cpu` needs no look at GPUs."""
    assert select("cpu") == "cpu"


def test_a_gpu_beyond_the_last_is_refused() -> None:
    """A number that no GPU has is an error, with or without GPUs here."""
    with pytest.raises(Permanent) as caught:
        select("cuda:64")
    assert caught.value.code == "no_gpu"


def test_auto_takes_what_is_there() -> None:
    """`auto` is the first GPU where torch finds one, else the CPU."""
    assert collect_facts().count == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert select("auto") == ("cuda:0" if collect_facts().count else "cpu")
