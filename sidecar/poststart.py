"""`python3 -m sidecar.poststart PORT SECONDS`: the gate's postStart hook, which ends when the gate opens, or in time.

Law: always ends within SECONDS, and with 0: a hook that fails kills its container, and one that hangs makes the pod
undeletable. The startup probe, not the hook, decides what starts next. Bare sockets, as it runs in every pod.
"""

from __future__ import annotations

import socket
import sys
import time

_EVERY_S = 0.02  # between two requests; one costs the gate less than a millisecond
_HOSTS = ("127.0.0.1", "::1")  # the gate listens on all of a pod's addresses, of one family
_REQUEST = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def wait_open(port: int, seconds: float) -> bool:
    """Wait at most `seconds` until the gate on this port is open; return whether it is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(_is_open((host, port), deadline) for host in _HOSTS):
            return True
        time.sleep(max(0.0, min(_EVERY_S, deadline - time.monotonic())))
    return False


def _is_open(address: tuple[str, int], deadline: float) -> bool:
    try:
        with socket.create_connection(address, _left_s(deadline)) as connection:
            connection.sendall(_REQUEST)
            connection.settimeout(_left_s(deadline))
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:  # the gate does not listen yet, or not on this family, or is too slow
        return False


def _left_s(deadline: float) -> float:
    """Return the remaining seconds, never 0, which would mean not to block at all."""
    return max(0.001, deadline - time.monotonic())


if __name__ == "__main__":
    wait_open(int(sys.argv[1]), float(sys.argv[2]))
