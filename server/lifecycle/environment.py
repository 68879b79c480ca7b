"""The versions of everything on this server that can change a number in an answer.

Law: never raises and reveals no secret: packages, interpreter, device, driver and the image's digest.
"""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib.metadata import distributions, packages_distributions
from pathlib import Path

from cached.contract.golden import Environment

IMAGE_VARIABLE = "HOLDFAST_IMAGE"  # the image's digest, where the deployment sets it
_DRIVER_VERSION = Path("/sys/module/nvidia/version")


@cache
def environment(device: str) -> Environment:
    """Return the environment of a model on the torch device `device`."""
    name, cuda = _device(device)
    return Environment(
        python=platform.python_version(),
        device=name,
        cuda=cuda,
        driver=_driver() if cuda else "",
        image=os.environ.get(IMAGE_VARIABLE, ""),
        packages=_packages(),
    )


def loaded_packages() -> frozenset[str]:
    """Return the packages of which this process has imported a module. Reads the metadata of all: takes a while."""
    modules = {name.partition(".")[0] for name in sys.modules}
    found = packages_distributions()
    return frozenset(_key(name) for module in modules & found.keys() for name in found[module])


def _key(name: str) -> str:
    return name.lower().replace("_", "-")


def _packages() -> dict[str, str]:
    """List packages as `pip freeze` does: the first of a name on the path is the one that is imported."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name and distribution.version:
            found.setdefault(_key(name), distribution.version)
    return dict(sorted(found.items()))


def _device(device: str) -> tuple[str, str]:
    """Return the GPU's name and torch's CUDA version; for a CPU its model and `""`."""
    torch = sys.modules.get("torch")  # user code may run without it
    if torch is None or not device.startswith("cuda"):
        return _processor(), ""
    return str(torch.cuda.get_device_name(device)), str(torch.version.cuda or torch.version.hip or "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux: report the architecture
    return platform.machine()


def _driver() -> str:
    try:
        return _DRIVER_VERSION.read_text().strip()
    except OSError:
        return ""
