"""What a NetworkPolicy's blocks of addresses let through, as a network reads them."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

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
