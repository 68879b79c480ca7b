"""The processors near a device. Law: reads sysfs; where that has no data, every processor counts as near."""

from __future__ import annotations

import os
from pathlib import Path

_DEVICES = Path("/sys/bus/pci/devices")
_NODES = Path("/sys/devices/system/node")


def find_near(bus_id: str, devices: Path = _DEVICES, nodes: Path = _NODES) -> frozenset[int]:
    """Return the usable processors of the NUMA node of a PCI device; all usable ones where the node is unknown."""
    allowed = frozenset(os.sched_getaffinity(0))
    try:
        node = int((devices / bus_id / "numa_node").read_text())
        found = parse_cpu_list((nodes / f"node{node}" / "cpulist").read_text())
    except (OSError, ValueError):  # no such device or node, or -1 where the firmware does not report it
        return allowed
    return (allowed & found) or allowed


def parse_cpu_list(text: str) -> frozenset[int]:
    """Parse a list in the kernel's form, `0-3,8`; raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
