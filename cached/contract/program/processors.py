"""How many processors this process may use.

Law: standard library only, cheap to import. A control group's quota counts as whole processors, rounded up.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def count_processors() -> int:
    """Return the number of processors of this process's affinity, within its control group's quota if any."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group of version 2, or `max`: no quota
        return allowed
