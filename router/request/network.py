"""Networks that clients come from, as limits count them."""

from __future__ import annotations

import ipaddress

__all__ = ["network_of"]

_IPV6_PREFIX = 64  # who has one address of a network of IPv6 has them all


def network_of(address: str) -> str:
    """The address itself, or the /64 network of one of IPv6."""
    host = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(host, ipaddress.IPv4Address):
        return str(host)
    if host.ipv4_mapped is not None:
        return str(host.ipv4_mapped)
    return str(ipaddress.ip_network((host, _IPV6_PREFIX), strict=False))
