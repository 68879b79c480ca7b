"""Forbidden targets of a redirect: this machine itself, and its cloud's metadata service.

Law: pure. The owner of a source chooses the targets of its redirects, and the daemon publishes their content to every
pod of the node: credentials from a metadata service must not get there. Private networks (10.0.0.0/8 and the like) are
allowed: object stores are there.
"""

from __future__ import annotations

import ipaddress

# Metadata services that are not link-local: AWS over IPv6, Alibaba Cloud.
_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})


def is_internal(host: str) -> bool:
    """Return whether `host`, an address in text, is loopback, link-local, multicast, unspecified or a metadata service.
    False for a name: its addresses count instead."""
    address = _parse(host)
    if address is None:
        return False
    is_special = address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
    return is_special or address in _METADATA


def is_loopback(host: str) -> bool:
    """Return whether `host`, an address in text or a name, is this machine itself."""
    address = _parse(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def _parse(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
