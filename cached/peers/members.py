"""Which nodes form the pool, and which of them keep track of a version.

Law: pure. Each node ranks the members for a version by a rendezvous hash: nodes that know the same members agree on the
trackers without asking, and a member that leaves moves only the versions that it tracked.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable

MAX_MEMBERS = 4000
TRACKERS = 3
INTRODUCE_S = 5.0  # how often other trackers are told which one a node follows
LOST_S = 60.0  # a tracker that others named and that does not answer is not asked for so long
_MOST_PORT = 65535


def parse_address(text: str) -> tuple[str, int]:
    """Parse `IP:PORT`, or `[IP]:PORT` for IPv6, as `format_address` writes it. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    is_six = host.startswith("[") and host.endswith("]")
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0
    try:
        address = ipaddress.ip_address(host[1:-1] if is_six else host)
    except ValueError:
        address = None
    if not colon or address is None or (address.version == 6) != is_six or not 0 < number <= _MOST_PORT:
        raise ValueError(f"expected IP:PORT, found {text[:80]!r}")
    if format_address(str(address), number) != text:
        raise ValueError(f"expected {format_address(str(address), number)!r}, found {text[:80]!r}")
    return str(address), number


def format_address(host: str, port: int) -> str:
    """Return the one text of an address, which names a member."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """Return the host of an address that `format_address` wrote."""
    return address.rpartition(":")[0]


def rank_members(version: str, members: Iterable[str]) -> list[str]:
    """Return the members (addresses) in their order for a version (the key of its `PieceMap`)."""
    return sorted(members, key=lambda address: hashlib.sha256(f"{version} {address}".encode()).digest())


def trackers_of(version: str, members: Iterable[str]) -> tuple[str, ...]:
    """Return the members that keep track of a version, the first to be asked first."""
    return tuple(rank_members(version, members)[:TRACKERS])


class Leads:
    """Which tracker one node asks about one version: the first of the members that it knows, and of the one that others
    named. Nodes whose name server answers otherwise agree on one in this way, and the origin sends one copy."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._named = ""
        self._ranked: tuple[tuple[str, ...], str, tuple[str, ...]] = (), "", ()  # members, name, their trackers
        self._ignored_until = self._introduced_at = float("-inf")

    def list_trackers(self, members: tuple[str, ...]) -> tuple[str, ...]:
        """Return the trackers to ask, the first to be asked first. Asked with each piece: a thousand members are ranked
        once, until they are others."""
        if self._ranked[0] is not members or self._ranked[1] != self._named:
            self._ranked = members, self._named, trackers_of(self._version, {*members, self._named} - {""})
        return self._ranked[2]

    def lose(self, tracker: str, now: float) -> None:
        """Note that a tracker does not answer: where others named it, it is asked no more for a while."""
        if tracker == self._named:
            self._named, self._ignored_until = "", now + LOST_S

    def hear(self, named: str, now: float) -> None:
        """Take the tracker that another one named, unless it did not answer of late."""
        if named and now >= self._ignored_until:
            self._named = named

    def list_untold(self, followed: str, trackers: Iterable[str], now: float) -> tuple[str, ...]:
        """Return the trackers to tell now which one is followed; none if they were told of late."""
        if now < self._introduced_at + INTRODUCE_S:
            return ()
        self._introduced_at = now
        return tuple(tracker for tracker in trackers if tracker != followed)


def is_before(version: str, one: str, other: str) -> bool:
    """Return whether one member ranks before another for a version."""
    return rank_members(version, (other, one))[0] == one
