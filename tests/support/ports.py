"""Ports for programs that must be told theirs.

Law: a port is from below those that the kernel gives to connections and to who asks for any, so that no program takes
it between this look and the program's start.
"""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

_LOWEST = 10_240


def free_port() -> int:
    """A port of 127.0.0.1 at which nothing listens now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """So many of them, each another one."""
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chance = random.SystemRandom()  # another process that looks now has other ports
    ports: list[int] = []
    with ExitStack() as probes:
        while len(ports) < count:
            port, probe = chance.randrange(_LOWEST, end), probes.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
    return ports
