"""Which addresses the guard lets through."""

from __future__ import annotations

import pytest

from dlconsole.workers.fetch.address import AddressGuard, is_address

REFUSED = [
    "127.0.0.1", "127.8.9.10", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "100.100.100.200", "168.63.129.16", "192.88.99.1", "198.18.0.1", "203.0.113.7", "224.0.0.1", "239.1.1.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1",
    "ff02::1", "2001:db8::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::", "::ffff:127.0.0.1",
    "::ffff:169.254.169.254", "::127.0.0.1", "not an address", "",
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
