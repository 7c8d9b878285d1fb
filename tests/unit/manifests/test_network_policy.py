"""What a NetworkPolicy's blocks of addresses let through, as a network reads them."""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sluice_operator.writes import Manifest
from tests.unit.manifests.examples import GOLDEN

POLICIES = [name for name, made in GOLDEN.items() if made[0]["kind"] == "NetworkPolicy"]
METADATA = ("169.254.169.254", "fd00:ec2::254")


def ways_out(policy: Manifest, address: str) -> Iterator[int]:
    """Ports at which an address is reached, by blocks of addresses alone."""
    for rule in policy["spec"]["egress"]:
        if any(_has(peer["ipBlock"], address) for peer in rule["to"] if "ipBlock" in peer):
            yield from (port["port"] for port in rule["ports"])


def _has(block: Manifest, address: str) -> bool:
    found = [ip_address(address) in ip_network(cidr) for cidr in (block["cidr"], *block.get("except", ()))]
    return found[0] and not any(found[1:])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "resolver",
    [
        pytest.param("10.96.0.10", id="a Service"),
        pytest.param("169.254.20.10", id="NodeLocal DNSCache"),
        pytest.param("169.254.25.10", id="NodeLocal DNSCache by Kubespray"),
        pytest.param("169.254.169.254", id="Cloud DNS for GKE"),
        pytest.param("fe80::a", id="of a link, by IPv6"),
    ],
)
def test_network_policy_allows_dns_to_any_resolver(policy: str, resolver: str) -> None:
    """Seen elsewhere: tektoncd/operator#4000, XenitAB/terraform-modules#608."""
    assert 53 in set(ways_out(GOLDEN[policy][0], resolver))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("address", METADATA)
def test_network_policy_allows_metadata_services_dns_ports_only(policy: str, address: str) -> None:
    assert set(ways_out(GOLDEN[policy][0], address)) <= {53, 5353}


FETCHES = [name for name in POLICIES if 443 in set(ways_out(GOLDEN[name][0], "93.184.215.14"))]
"""Those that open the internet."""
SPECIAL = {
    "one cloud's metadata service": "192.0.0.192",
    "this network": "0.0.0.1",
    "shared with a provider": "100.64.0.1",
    "benchmarks": "198.18.0.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "all": "255.255.255.255",
    "mapped": "::ffff:10.0.0.1",
    "NAT64 of a private address": "64:ff9b::10.0.0.1",
    "NAT64 of a metadata service": "64:ff9b::169.254.169.254",
    "NAT64 of the network's own": "64:ff9b:1::10.0.0.1",
    "6to4 of a private address": "2002:a00:1::1",
    "Teredo": "2001:0:1::1",
    "of a site": "fec0::1",
    "unique and local": "fd00::1",
    "of a link": "fe80::1",
    "multicast of IPv6": "ff02::1",
    "loopback": "::1",
}


@pytest.mark.parametrize("policy", FETCHES)
@pytest.mark.parametrize("address", SPECIAL.values(), ids=SPECIAL.keys())
def test_network_policy_opens_no_special_address(policy: str, address: str) -> None:
    assert set(ways_out(GOLDEN[policy][0], address)) <= {53, 5353}


@pytest.mark.parametrize("policy", FETCHES)
@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "64:ff9b::93.184.215.14"])
def test_network_policy_opens_the_internet(policy: str, address: str) -> None:
    assert 443 in set(ways_out(GOLDEN[policy][0], address))


@settings(max_examples=1000)
@given(st.ip_addresses())
@example(ip_address("192.88.99.1"))
def test_opened_addresses_are_those_that_python_calls_global(address: IPv4Address | IPv6Address) -> None:
    """Python has IANA's registries. NAT64 has a test of its own; blocks of 2001::/23 that are global stay closed."""
    is_open = 443 in set(ways_out(GOLDEN[FETCHES[0]][0], str(address)))
    if is_open:
        assert address.is_global
    elif address.is_global and not address.is_multicast:
        assert address in ip_network("192.0.0.0/24" if address.version == 4 else "2001::/23") or address not in (
            ip_network("2000::/3")
        )
