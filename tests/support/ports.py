"""Ports for programs that must be told theirs.

Law: a port is from below those that the kernel gives to connections and to whoever asks for any, so that nobody takes
it between this look and the program's start.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 10_240


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens now; another process that looks at the same time has another one."""
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(_LOWEST, end)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
