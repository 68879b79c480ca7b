"""Select the model's device, and explain why there is no GPU and what to check.

Law: allocates one element to test the device, changes no setting.
"""

from __future__ import annotations

import ctypes
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from cached.contract.errors import Permanent
from cached.contract.program.units import format_size

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The visible facts: torch's build, the driver's files, the number of devices that torch finds. `driver_cuda` is
    the newest CUDA of the driver, in its own form (12040 is 12.4), None without a driver."""

    torch_version: str
    torch_cuda: str | None
    visible_devices: str | None
    driver_files: bool
    count: int
    complaint: str | None
    driver_cuda: int | None = None


def collect_facts() -> GpuFacts:
    """Collect the facts; never raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return GpuFacts(
        torch_version=torch.__version__,
        torch_cuda=torch.version.cuda or torch.version.hip,
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        driver_files=any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")),
        count=count,
        complaint=str(caught[0].message).strip() if caught else None,
        driver_cuda=_driver_cuda(),
    )


def why_none(facts: GpuFacts) -> tuple[str, str]:
    """Return why torch finds no GPU, and what to check, the most certain cause first."""
    if facts.torch_cuda is None:
        return (
            f"torch {facts.torch_version} is built without CUDA (torch.version.cuda is None)",
            "install a CUDA build of torch in the image: PyTorch's installation page names the index for each CUDA",
        )
    if not facts.driver_files:
        return (
            "no GPU's device file is in this container (/dev/nvidiactl)",
            "check that the pod asks for nvidia.com/gpu, that it runs under the nvidia runtime (runtimeClassName), "
            "and that the node's driver works (nvidia-smi on the node)",
        )
    if facts.visible_devices is not None and facts.visible_devices.strip() in ("", "-1", "none", "NoDevFiles"):
        return (
            f"CUDA_VISIBLE_DEVICES={facts.visible_devices!r} hides every GPU",
            "unset it, or let the device plugin set it",
        )
    major, driver_cuda = facts.torch_cuda.partition(".")[0], facts.driver_cuda
    # Within a major version an older driver runs newer runtimes (CUDA's minor version compatibility).
    if driver_cuda is not None and major.isdigit() and driver_cuda // 1000 < int(major):
        newest = f"{driver_cuda // 1000}.{driver_cuda % 1000 // 10}"
        return (
            f"the driver runs CUDA up to {newest}, and torch was built for CUDA {facts.torch_cuda}",
            f"update the node's driver to one for CUDA {major}, or use a torch built for CUDA {driver_cuda // 1000}",
        )
    return (
        f"torch {facts.torch_version} (CUDA {facts.torch_cuda}) finds no GPU: {facts.complaint or 'no reason given'}",
        "compare the driver's CUDA version in nvidia-smi with torch's: the driver must be at least as new; "
        "check CUDA_VISIBLE_DEVICES and the node's kernel log for Xid errors",
    )


def _driver_cuda() -> int | None:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    return version.value if library.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def select(wanted: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a torch device; raises `Permanent` (`no_gpu`) where it is missing."""
    if wanted == "cpu":
        return "cpu"
    facts = collect_facts()
    if facts.count == 0:
        reason, check = why_none(facts)
        if wanted == "auto":
            _LOG.warning("NO GPU: %s. Running on the CPU, which is slow. For a GPU: %s.", reason, check)
            return "cpu"
        raise Permanent("no_gpu", f"--device {wanted}: {reason}", check)
    number = int(wanted.partition(":")[2] or 0) if wanted != "auto" else 0
    if number >= facts.count:
        raise Permanent(
            "no_gpu",
            f"--device {wanted}: expected a GPU numbered {number}, found {facts.count} numbered from 0",
            "ask for a lower number, or check CUDA_VISIBLE_DEVICES",
        )
    _check_gpu(number, wanted)
    return f"cuda:{number}"


def _check_gpu(number: int, wanted: str) -> None:
    try:
        torch.zeros(1, device=f"cuda:{number}")
        free, total = torch.cuda.mem_get_info(number)
    except RuntimeError as error:
        raise Permanent(
            "no_gpu",
            f"--device {wanted}: GPU {number} does not work: {str(error).splitlines()[0]}",
            "check that no other process holds its memory (nvidia-smi), and the node's kernel log for Xid errors",
        ) from error
    count, name = torch.cuda.device_count(), torch.cuda.get_device_name(number)
    _LOG.info("GPU %d of %d: %s, %s free of %s", number, count, name, format_size(free), format_size(total))
