"""Which addresses may be fetched from: global unicast, on the ports that the settings list, and what
`allow_networks` opens on purpose, on every port.

Checked on the address that is really connected to, so literal IPs, redirects and DNS rebinding
cannot pass. Behind a proxy the proxy connects; there the URL's host is checked as far as it can be.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

_REFUSED: Final = tuple(
    ip_network(text)
    for text in (
        # Both of IANA's registries of special-purpose addresses, as of 2025, and multicast: what Python's
        # `is_global` knows of them changes with its patch level. Also what is globally reachable there is
        # infrastructure that no image comes from.
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; Alibaba Cloud's metadata
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; most clouds' metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments; Oracle Cloud's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112, RFC 7535: a sink for DNS
        "192.52.193.0/24",  # AMT relays, RFC 7450
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112, RFC 7534
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        # All that is not 2000::/3, of which alone IANA allocates global unicast: loopback, IPv4-compatible,
        # NAT64 (64:ff9b::/96, 64:ff9b:1::/48: reach any IPv4 address), discard-only (100::/64), dummy
        # (100:0:0:1::/64), segment routing (5f00::/16), unique local, link-local, site-local, multicast.
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",  # IETF protocol assignments: Teredo, ORCHID, benchmarks, AMT, AS112, drones
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, RFC 3056: reaches any IPv4 address
        "2620:4f:8000::/48",  # AS112, RFC 7534
        "3fff::/20",  # documentation, RFC 9637
        # In neither registry.
        "168.63.129.16/32",  # Azure's host agent
    )
)


class AddressGuard:
    """Says why an address may not be connected to. `allow_networks` are CIDR texts, checked first."""

    def __init__(self, allow_networks: Iterable[str] = (), allow_ports: Iterable[int] = (80, 443)) -> None:
        self._allowed = tuple(ip_network(text, strict=False) for text in allow_networks)
        self._ports = frozenset(allow_ports)
        self.refusal = lru_cache(maxsize=16384)(self._refusal)

    def _refusal(self, text: str, port: int) -> str:
        """Why not to connect to the textual IP address (a zone id is ignored), or ''."""
        try:
            address = ip_address(text.partition("%")[0])
        except ValueError:
            return f"{text} is no address"
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self._allowed):
            return ""
        if not _is_global_unicast(address):
            return f"{text} is not a public address"
        return self._port_refusal(port)

    def host_refusal(self, host: str, port: int) -> str:
        """Why not to ask a proxy for a URL's host, or '': refused are literal addresses that `refusal`
        refuses, in every spelling that libcurl takes for one, names that mean this machine, and ports.
        """
        name = host.rstrip(".")
        if name == "localhost" or name.endswith(".localhost"):
            return self.refusal("127.0.0.1", port)
        literal = literal_address(name)
        return self._port_refusal(port) if literal is None else self.refusal(literal, port)

    def _port_refusal(self, port: int) -> str:
        return "" if port in self._ports else f"port {port} is not one of fetch.allow_ports"


def is_address(host: str) -> bool:
    """Whether a URL's host spells an address, so that there is nothing to look up."""
    return literal_address(host) is not None


def _is_global_unicast(address: IPv4Address | IPv6Address) -> bool:
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _REFUSED)


def literal_address(host: str) -> str | None:
    """The address that a URL's host is (dotted, IPv6, or in old forms: `127.1`, `0x7f.1`, `2130706433`), an
    IPv4-mapped one as the IPv4 address that it reaches; None where it is a name.
    """
    host = host.rstrip(".")
    # In every spelling the last part begins with a digit, or there is a colon: most names end here.
    if ":" not in host and not host.rpartition(".")[2][:1].isdigit():
        return None
    return _parsed(host)


@lru_cache(maxsize=16384)
def _parsed(host: str) -> str | None:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return str(mapped or address)
    if not host or not set(host) <= set("0123456789abcdefx."):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None
