"""The free memory of this container.

Law: allocates nothing; standard library only, as it runs before torch is imported.
"""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Return the free bytes of the host within this container's limit."""
    return int(min(_host_bytes(), _container_bytes()))


def _host_bytes() -> int:
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_MEMINFO} has no MemAvailable")


def _container_bytes() -> float:
    """Return the rest of the cgroup's limit, inf without one; the page cache counts as free, as it is reclaimable."""
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
