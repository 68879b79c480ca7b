"""How much memory is left on a device, for what a model keeps of the sequences it works on.

Law: looks, allocates nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: str) -> int:
    """Bytes that can still be had: the GPU's free memory, or what the host and this container's limit have left."""
    if torch.device(device).type == "cuda":
        # What torch has kept of what it freed is as good as free.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return int(min(_host_bytes(), _container_bytes()))


def _host_bytes() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_MEMINFO} has no MemAvailable")


def _container_bytes() -> float:
    """What is left of the cgroup's limit; the page cache counts against it, but gives way."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        reclaimable = next(
            int(line.split()[1])
            for line in (_CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
    except (OSError, ValueError, StopIteration):
        return float("inf")  # cgroup v1, or none
    return float("inf") if limit == "max" else max(0, int(limit) - used + reclaimable)
