"""Which nodes are a pool's: no GPU is in two."""

import pytest

from dev.simulate.builder import NOW, WorldBuilder
from sluice_api.reasons import Reason
from sluice_operator.facts.live_claims import live_claims
from sluice_operator.facts.nodes import find_pool, pool_nodes
from sluice_operator.observe.views import Taint
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.refusals import refusal
from sluice_operator.plan.preflight import preflight_obstacle
from sluice_operator.status.pool import pool_status
from tests.unit.plan.worlds import allocated, describe


def overlapping() -> WorldBuilder:
    """Two nodes; the older pool selects the first, the younger one both."""
    builder = WorldBuilder()
    builder.node(1, labels={"kind": "a100"})
    builder.node(1)
    builder.pool("old", nodeSelector={"kind": "a100"})
    builder.pool("young")
    return builder


@pytest.mark.parametrize(("name", "nodes"), [("old", ["n1"]), ("young", ["n2"]), ("default", [])])
def test_node_selected_by_two_pools_belongs_to_the_older(name: str, nodes: list[str]) -> None:
    world = overlapping().world
    pool = find_pool(world, name)
    assert pool is not None
    assert [node.key.name for node in pool_nodes(world, pool)] == nodes


SPOT = Taint("example.com/spot", "yes", "NoSchedule")


@pytest.mark.parametrize(
    ("rule", "tolerations", "taint", "taken"),
    [
        ("a taint keeps training away", [], SPOT, False),
        ("unless the pool tolerates it", [{"key": "example.com/spot"}], SPOT, True),
        ("another key", [{"key": "example.com/sku"}], SPOT, False),
        ("its value", [{"key": "example.com/spot", "operator": "Equal", "value": "yes"}], SPOT, True),
        ("another value", [{"key": "example.com/spot", "operator": "Equal", "value": "no"}], SPOT, False),
        ("its effect", [{"key": "example.com/spot", "effect": "NoSchedule"}], SPOT, True),
        ("another effect", [{"key": "example.com/spot", "effect": "NoExecute"}], SPOT, False),
        ("a taint that only advises", [], Taint("example.com/spot", "yes", "PreferNoSchedule"), True),
    ],
)
def test_pool_tolerations_open_tainted_nodes(
    rule: str, tolerations: list[dict[str, str]], taint: Taint, taken: bool
) -> None:
    builder = WorldBuilder()
    builder.pool(tolerations=tolerations)
    builder.node(1, taints=(taint,))
    builder.job("a")
    assert describe(allocated(builder)) == ("a takes n1" if taken else "a waits NoNodes"), rule
    made = builder.stage_job(builder.job("b"), claim=builder.claim("n1"))
    builder.trainer_pod(made)
    assert (preflight_obstacle(builder.world, live_claims(builder.world)[0]) is None) is taken, (
        "nor is a claim proven there"
    )


def test_node_selector_message_names_the_older_pool() -> None:
    world = overlapping().world
    pool = find_pool(world, "young")
    assert pool is not None
    (ready,) = pool_status(world, take_stock(world, pool), 0, NOW).conditions
    assert ready.message == (
        "1 of 1 nodes take pods. spec.nodeSelector: 1 more that it selects belong to pool old, which is older. Narrow "
        "one of the two."
    )


def test_node_selector_message_comes_before_cordoned_nodes() -> None:
    builder = overlapping()
    for _ in range(70):
        builder.node(1, cordoned=True)
    builder.node(1, ready=False)
    pool = find_pool(builder.world, "young")
    assert pool is not None
    (ready,) = pool_status(builder.world, take_stock(builder.world, pool), 0, NOW).conditions
    assert ready.message == (
        "1 of 72 nodes take pods. spec.nodeSelector: 1 more that it selects belong to pool old, which is older. Narrow "
        "one of the two. n10, n11, n12 and 67 more are cordoned. n73 is not ready."
    )


def test_pools_of_different_resource_name_share_a_node() -> None:
    builder = overlapping()
    builder.pool("parts", resourceName="example.com/slice")
    told = refusal(builder.world, builder.job("a"))
    assert told is not None
    assert (told.reason, told.message) == (
        Reason.NO_NODES,
        "spec.resources.pool: pool default has no node that offers nvidia.com/gpu. Add one, or use another pool.",
    )
    pool = find_pool(builder.world, "young")
    assert pool is not None
    assert len(pool_nodes(builder.world, pool)) == 1
