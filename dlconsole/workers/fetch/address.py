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

_UNSAFE: Final = tuple(
    ip_network(text)
    for text in (
        # What the standard library calls global but is not safe to fetch from.
        "168.63.129.16/32",  # Azure's host agent
        "100.100.100.200/32",  # Alibaba Cloud's metadata
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "64:ff9b::/96",  # NAT64, RFC 6052: reaches any IPv4 address
        "64:ff9b:1::/48",  # local-use NAT64, RFC 8215
        "2002::/16",  # 6to4, RFC 3056: as above
        "2001::/32",  # Teredo, RFC 4380: as above
        "fec0::/10",  # site-local, RFC 3879
        "::/96",  # IPv4-compatible, RFC 4291
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
    return not any(address in network for network in _UNSAFE)


def literal_address(host: str) -> str | None:
    """The address that a URL's host is (dotted, IPv6, or in old forms: `127.1`, `0x7f.1`, `2130706433`);
    None where it is a name.
    """
    host = host.rstrip(".")
    # In every spelling the last part begins with a digit, or there is a colon: most names end here.
    if ":" not in host and not host.rpartition(".")[2][:1].isdigit():
        return None
    return _parsed(host)


@lru_cache(maxsize=16384)
def _parsed(host: str) -> str | None:
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    if not host or not set(host) <= set("0123456789abcdefx."):
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None
