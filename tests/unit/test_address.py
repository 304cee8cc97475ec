"""Which addresses the guard lets through."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from dlconsole.workers.fetch.address import AddressGuard, is_address

REFUSED = [
    "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "192.88.99.1", "198.18.0.1", "203.0.113.7", "224.0.0.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1",
    "ff02::1", "2001:db8::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "::127.0.0.1", "not an address", "",
]  # fmt: skip
# IANA's registries of special-purpose addresses, https://www.iana.org/assignments/iana-ipv4-special-registry and
# iana-ipv6-special-registry, entry by entry; ::ffff:0:0/96 is taken for the IPv4 address in it.
REGISTERED = [
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32",
    "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.88.99.2/32",
    "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
    "255.255.255.255/32",
    "::1/128", "::/128", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32",
    "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48",
    "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    "5f00::/16", "fc00::/7", "fe80::/10",
]  # fmt: skip
OTHERS = ["224.0.0.0/4", "ff00::/8", "fec0::/10", "::/8", "4000::/3", "192.0.0.192/32", "100.100.100.200/32"]
NEIGHBOURS = [
    "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0",
    "192.0.3.0", "192.31.195.255", "192.31.197.0", "192.88.98.255", "192.88.100.0", "192.167.255.255",
    "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "203.0.114.0", "223.255.255.255",
    "2001:200::", "2001:db7:ffff::", "2001:db9::", "2003::", "2620:4f:7fff::", "2620:4f:8001::",
    "3ffe:ffff::",
]  # fmt: skip
ALLOWED = [
    "8.8.8.8",
    "1.1.1.1",
    "93.184.216.34",
    "2606:4700::1111",
    "2a00:1450:4001:80b::200e",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize("address", REFUSED)
def test_what_is_not_global_unicast_is_refused(address: str) -> None:
    assert AddressGuard().refusal(address, 80)


@pytest.mark.parametrize("network", REGISTERED + OTHERS)
def test_every_special_purpose_network_is_refused_whatever_python_knows_of_it(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (IPv4Address, IPv6Address):  # as one would be that knows no registry
        monkeypatch.setattr(kind, "is_global", property(lambda _self: True))
        monkeypatch.setattr(kind, "is_reserved", property(lambda _self: False))
        monkeypatch.setattr(kind, "is_multicast", property(lambda _self: False))
    found = ip_network(network)
    for address in (found[0], found[found.num_addresses // 2], found[-1]):
        assert AddressGuard().refusal(str(address), 80)
        if isinstance(address, IPv4Address):
            assert AddressGuard().refusal(f"::ffff:{address}", 80)


@pytest.mark.parametrize("address", NEIGHBOURS)
def test_the_addresses_beside_special_purpose_networks_are_allowed(address: str) -> None:
    assert AddressGuard().refusal(address, 80) == ""


@pytest.mark.parametrize("address", ALLOWED)
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressGuard().refusal(address, 443) == ""


def test_allow_networks_opens_only_what_it_names() -> None:
    guard = AddressGuard(["127.0.0.0/8", "fd00::/8"])
    assert guard.refusal("127.3.4.5", 80) == ""
    assert guard.refusal("::ffff:127.0.0.1", 22) == ""
    assert guard.refusal("fd12::1", 8080) == ""
    assert guard.refusal("10.0.0.1", 80)
    assert guard.refusal("::1", 80)


def test_only_the_listed_ports_are_open() -> None:
    assert "port 22" in AddressGuard().refusal("8.8.8.8", 22)
    assert "port 8080" in AddressGuard().host_refusal("a.example", 8080)
    assert AddressGuard(allow_ports=(8080,)).refusal("8.8.8.8", 8080) == ""
    assert AddressGuard(allow_ports=(8080,)).refusal("8.8.8.8", 80)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost.", "a.localhost", "127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433",
     "017700000001", "::1", "::ffff:10.0.0.1", "169.254.169.254", "10.0.0.1."],
)  # fmt: skip
def test_behind_a_proxy_hosts_that_spell_a_refused_address_are_refused(host: str) -> None:
    assert AddressGuard().host_refusal(host, 80)


@pytest.mark.parametrize(
    "host", ["example.com", "face.cafe", "8.8.8.8", "dead.beef.example", "1e100.net", "abc"]
)
def test_behind_a_proxy_other_hosts_pass(host: str) -> None:
    assert AddressGuard().host_refusal(host, 80) == ""


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "::1", "8.8.8.8."]
)
def test_every_spelling_of_an_address_is_one(host: str) -> None:
    assert is_address(host)


@pytest.mark.parametrize("host", ["a.example", "1e100.net", "face.cafe", "3com.com", "a.1b", "localhost", ""])
def test_a_name_is_no_address(host: str) -> None:
    assert not is_address(host)
