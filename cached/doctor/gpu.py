"""The node's GPUs and their driver. Law: blocking; reads /sys, /proc and the driver's library, and opens no device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

from cached.contract.program.units import format_count
from cached.doctor.findings import CheckResult, failed, ok, skipped, warning

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA_VERSION = Path("/proc/driver/nvidia/version")
_AMD_VERSION = Path("/sys/module/amdgpu/version")
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD"}
_CLASSES = ("0x0300", "0x0302", "0x0380", "0x1200")  # display and 3D controllers, processing accelerators
_DRIVERS = {"nvidia", "amdgpu"}
_AWAY = {"vfio-pci", "pci-stub"}  # given to virtual machines


def check_gpus() -> Iterator[CheckResult]:
    """Yield what is found about each vendor's GPUs."""
    area, devices = "gpu", list(_find_devices())
    if not devices:
        yield skipped(area, "the PCI bus shows no NVIDIA or AMD GPU")
        return
    for vendor in sorted({vendor for vendor, _ in devices}):
        drivers = [driver for each, driver in devices if each == vendor]
        unbound = [driver for driver in drivers if driver not in _DRIVERS]
        count = f"{format_count(len(drivers), f'{vendor} GPU')}"
        version = _find_version(vendor)
        if all(driver in _AWAY for driver in unbound) and unbound:
            yield warning(area, f"{count}, {len(unbound)} bound to {unbound[0]}", "they are given to virtual machines")
        elif unbound:
            bound = f"{len(unbound)} without its driver (found {unbound[0] or 'none'})"
            yield failed(area, f"{count}, {bound}", "install the vendor's driver, or its GPU operator; see `dmesg`")
        else:
            yield ok(area, f"{count}, driver {version or 'of unknown version'}")
    if any(vendor == "NVIDIA" for vendor, _ in devices):
        yield _check_library()


def _find_devices() -> Iterator[tuple[str, str]]:
    """Yield the vendor of each GPU and the name of its driver, empty without one."""
    if not _PCI.is_dir():
        return
    for device in sorted(_PCI.iterdir()):
        try:
            vendor = _VENDORS.get((device / "vendor").read_text().strip())
            is_gpu = (device / "class").read_text().startswith(_CLASSES)
            driver = (device / "driver").resolve().name if (device / "driver").exists() else ""
        except OSError:
            continue
        if vendor is not None and is_gpu:
            yield vendor, driver


def _find_version(vendor: str) -> str | None:
    try:
        if vendor == "AMD":
            return _AMD_VERSION.read_text().strip()
        words = _NVIDIA_VERSION.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[:1].isdigit()), None)


def _check_library() -> CheckResult:
    """Return whether the driver answers through its library (NVML), where this process has it."""
    area = "gpu"
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        text = "the driver's library is not here: usual in the daemon's container, which needs no GPU"
        return skipped(area, text)
    code, count = library.nvmlInit_v2(), ctypes.c_uint()
    if code == 0:
        code = library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        library.nvmlShutdown()
    if code == 0:
        return ok(area, f"the driver answers: {count.value} usable here")
    library.nvmlErrorString.restype = ctypes.c_char_p
    reason = (library.nvmlErrorString(code) or b"").decode(errors="replace")
    remedy = "library and kernel module differ after an upgrade: restart the node"
    return failed(area, f"the driver does not answer: {reason}", remedy)
