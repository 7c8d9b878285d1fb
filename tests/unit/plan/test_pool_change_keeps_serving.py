"""Replicas that run go on when their pool does not know their node any more, and jobs learn that nodes have come."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from dev.simulate.builder import GPU, NOW, WorldBuilder
from dev.simulate.cluster import Cluster
from sluice_api.inferenceengine import SlotState
from sluice_api.reasons import Reason
from sluice_operator.observe.world import engine_key, pool_key
from sluice_operator.plan.engine.decide import plan_engine
from tests.unit.plan.worlds import planned_status


def _gone(builder: WorldBuilder) -> None:
    builder.store.remove(pool_key("a100"), "pool-a100")


def _selects_another(builder: WorldBuilder) -> None:
    builder.pool("a100", nodeSelector={"gpu": "a100"})


def _restarts(builder: WorldBuilder) -> None:
    (node,) = builder.nodes
    builder.version += 1
    builder.put(replace(node, resource_version=builder.version, allocatable={**node.allocatable, GPU: 0}))


@pytest.mark.parametrize(
    ("rule", "change", "reason"),
    [
        ("the pool is deleted", _gone, Reason.POOL_NOT_FOUND),
        ("the pool selects other nodes", _selects_another, Reason.ALL_SERVING),
        ("the device plugin restarts, and the node offers no GPU for a moment", _restarts, Reason.ALL_SERVING),
    ],
)
def test_serving_replica_survives_a_pool_change(
    rule: str, change: Callable[[WorldBuilder], None], reason: Reason
) -> None:
    builder = WorldBuilder()
    builder.pool("a100")
    builder.node(1)
    builder.slot(builder.engine("chat", 1, resources={"pool": "a100"}), 0, "n1")
    change(builder)
    engine = builder.world.engines[engine_key("team", "chat")]
    decision, ready = plan_engine(builder.world, engine, NOW), planned_status(builder.world, engine, NOW).conditions[0]
    assert decision.stop == (), rule
    assert [slot.state for slot in decision.slots] == [SlotState.SERVING]
    assert (ready.status, ready.reason) == ("True", reason)


def test_pool_not_found_is_named_by_a_waiting_engine() -> None:
    builder = WorldBuilder()
    engine = builder.engine("chat", 1, resources={"pool": "a100"})
    ready = planned_status(builder.world, engine, NOW).conditions[0]
    assert (ready.status, ready.reason) == ("False", Reason.POOL_NOT_FOUND)
    assert "spec.resources.pool: there is no GPUPool a100" in ready.message


def test_job_refused_for_no_nodes_is_woken_when_a_node_comes() -> None:
    cluster = Cluster()
    cluster.builder.job("a", outcomes=())
    cluster.work()
    (job,) = cluster.world.jobs.values()
    assert job.status.summary == Reason.NO_NODES
    cluster.builder.node(1)
    cluster.work()
    (job,) = cluster.world.jobs.values()
    assert job.status.summary == Reason.PREPARING
