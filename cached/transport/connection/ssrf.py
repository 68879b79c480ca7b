"""Where a redirect may not lead: to this machine itself, or to what its cloud keeps there for it alone.

Law: pure. Whoever owns a source chooses where its redirects go, and what they lead to is published to every pod of the
node: credentials from a metadata service must not be. Networks of one's own (10.0.0.0/8 and the like) are no such
place: object stores live there.
"""

from __future__ import annotations

import ipaddress

# Metadata services that are not link-local: AWS over IPv6, Alibaba Cloud.
_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})


def is_inward(host: str) -> bool:
    """Tell whether `host`, an address in text, is loopback, link-local, unspecified or a metadata service.

    A name is not: its addresses are, or are not.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in _METADATA
    )
