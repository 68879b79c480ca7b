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
