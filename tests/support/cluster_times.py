"""When things happened in a pod, finer than the whole seconds of the API: by the clock of its node, since the epoch.

Law: for figures; a test asserts an order of such times and never a length.
"""

from __future__ import annotations

import os
from datetime import datetime

from tests.support.cluster import Pod


def process_started_at(pod: Pod, container: str) -> float:
    """When a container's first process started, in steps of 10 ms."""
    script = "cat /proc/1/stat; cat /proc/uptime; date +%s.%N"
    stat, uptime, now = pod.run(container, "sh", "-c", script).stdout.splitlines()
    ticks = int(stat.rpartition(") ")[2].split()[19])  # the 22nd field, after the name, which may hold anything
    return float(now) - float(uptime.split()[0]) + ticks / os.sysconf("SC_CLK_TCK")


def said_at(pod: Pod, container: str, what: str) -> float:
    """When a container first logged a line with these words, as the container runtime noted it."""
    line = next(line for line in pod.log(container, "--timestamps").splitlines() if what in line)
    whole, _, fraction = line.split()[0].rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction or 0}")
