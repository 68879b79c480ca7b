"""What this server runs on: the versions of everything that can change a number in an answer.

Law: looks; never raises, and names no secret: packages, interpreter, device, driver and what the image says it is.
"""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from cached.contract.golden import Environment

IMAGE_VARIABLE = "HOLDFAST_IMAGE"  # the image's digest, where whoever deploys it says so
_DRIVER_VERSION = Path("/sys/module/nvidia/version")


@cache
def environment(device: str) -> Environment:
    """The environment of a model on the torch device `device`."""
    name, cuda = _device(device)
    return Environment(
        python=platform.python_version(),
        device=name,
        cuda=cuda,
        driver=_driver() if cuda else "",
        image=os.environ.get(IMAGE_VARIABLE, ""),
        packages=_packages(),
    )


def _packages() -> dict[str, str]:
    """As `pip freeze` has them: the first of a name on the path is what is imported."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name and distribution.version:
            found.setdefault(name.lower().replace("_", "-"), distribution.version)
    return dict(sorted(found.items()))


def _device(device: str) -> tuple[str, str]:
    """The name of the GPU and torch's CUDA; for a CPU its model, and nothing."""
    torch = sys.modules.get("torch")  # user code may do without
    if torch is None or not device.startswith("cuda"):
        return _processor(), ""
    return str(torch.cuda.get_device_name(device)), str(torch.version.cuda or torch.version.hip or "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # no Linux: the architecture is all there is to say
    return platform.machine()


def _driver() -> str:
    try:
        return _DRIVER_VERSION.read_text().strip()
    except OSError:
        return ""
