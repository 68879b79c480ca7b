"""How much memory this container has left.

Law: looks, allocates nothing; standard library only, for it is asked before torch is imported.
"""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Bytes that can still be had: what the host and this container's limit have left."""
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
