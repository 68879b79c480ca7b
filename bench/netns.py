"""Machines of a bench: network namespaces on one bridge, whose links `tc` limits each way.

Law: needs root, iproute2 and the kernel's `sch_tbf`; says so where one is missing. Everything it makes is in namespaces
of its own, which it removes: the machine's own network is left alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from bench.measure import failed

# RFC 2544 keeps 198.18.0.0/15 for benchmarks: no host has one of these.
_NETWORK = "198.18.0."
_PREFIX = 24
_BURST = "128kb"
_QUEUE = "50ms"  # of bytes that wait for a link, as in a switch


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace and its one address."""

    namespace: str
    address: str

    def command(self, argv: list[str]) -> list[str]:
        """Return what runs `argv` there, as the same process."""
        return ["ip", "netns", "exec", self.namespace, *argv]


class Network:
    """A bridge in a namespace of its own, and the machines on it."""

    def __init__(self, switch: str, stack: contextlib.ExitStack) -> None:
        self._switch = switch
        self._stack = stack
        self._count = 0

    def add(self, bits_per_s: int) -> Machine:
        """Add a machine whose link carries `bits_per_s` each way."""
        number, self._count = self._count, self._count + 1
        machine = Machine(f"{self._switch}-{number}", f"{_NETWORK}{number + 1}")
        _ip("netns", "add", machine.namespace)
        self._stack.callback(_ip, "netns", "del", machine.namespace)
        port = f"port{number}"
        peer = ("type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", machine.namespace, "link", "add", "eth0", *peer)
        _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", machine.namespace, "address", "add", f"{machine.address}/{_PREFIX}", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", machine.namespace, "link", "set", link, "up")
        for namespace, link in ((machine.namespace, "eth0"), (self._switch, port)):
            limit = ("rate", f"{bits_per_s}bit", "burst", _BURST, "latency", _QUEUE)
            _run("tc", "-n", namespace, "qdisc", "add", "dev", link, "root", "tbf", *limit)
        return machine


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make a network for a `with` block; raises `Permanent` (`bench`) where this machine cannot."""
    if os.geteuid() != 0:
        raise failed("network namespaces need root", "run it as root")
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise failed(f"{program} is not on PATH", "install iproute2")
    switch = f"hf{os.getpid()}"
    with contextlib.ExitStack() as stack:
        _ip("netns", "add", switch)
        stack.callback(_ip, "netns", "del", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        yield Network(switch, stack)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise failed(f"{' '.join(argv)}: {done.stderr.strip()}", "the kernel needs veth, bridge and sch_tbf")
