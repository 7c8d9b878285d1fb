"""What a pool allows a namespace to serve with: engines are bound by its terms as jobs are."""

from typing import Any

import pytest

from sluice_api.reasons import Reason
from sluice_operator.observe.world import engine_key
from sluice_operator.plan.engine.decide import plan_engine
from tests.unit.plan.test_queues import LAB, engine
from tests.unit.plan.worlds import NOW, WorldBuilder, parse, planned_status


@pytest.mark.parametrize(
    ("rule", "pool", "started", "reason", "says"),
    [
        ("a pool of other namespaces", {"allowedNamespaces": LAB}, [], Reason.NAMESPACE_NOT_ALLOWED,
         "Use another pool, or have its spec.allowedNamespaces select the namespace."),
        ("a priority above the cap", {"quotas": [{"maxPriority": 4}]}, [], Reason.PRIORITY_TOO_HIGH,
         "spec.preemption.priority: 5 is above 4"),
        ("a cap that it keeps to", {"quotas": [{"maxPriority": 5}]}, [0, 1, 2], Reason.NONE_SERVING, ""),
        ("no more than maxServingGPUs", {"quotas": [{"maxServingGPUs": 2}]}, [0, 1], Reason.NAMESPACE_QUOTA,
         "have 2 of the 2 GPUs that they may have there at once"),
        ("another namespace's quota", {"quotas": [{"namespaces": LAB, "maxServingGPUs": 0}]}, [0, 1, 2],
         Reason.NONE_SERVING, ""),
        ("maxTotalGPUs counts jobs too", {"quotas": [{"maxTotalGPUs": 3}]}, [0, 1], Reason.NAMESPACE_QUOTA,
         "have 3 of the 3 GPUs that they may have there together"),
        ("maxGPUs counts jobs alone", {"quotas": [{"maxGPUs": 1}]}, [0, 1, 2], Reason.NONE_SERVING, ""),
    ],
)  # fmt: skip
def test_quotas_and_allowed_namespaces_bound_an_engine(
    rule: str, pool: dict[str, Any], started: list[int], reason: Reason, says: str
) -> None:
    builder = WorldBuilder()
    builder.node(8)
    builder.pool(**pool)
    trains = builder.job("a", scheduling={"policy": "Queue"})
    builder.trainer_pod(builder.stage_job(trains, claim=builder.claim("n1")), "n1")
    made = builder.engine("mine", 3, preemption={"priority": 5})
    decision = plan_engine(builder.world, made, NOW)
    assert [plan.index for plan in decision.apply] == started, rule
    ready = planned_status(builder.world, made, NOW).conditions[0]
    assert (ready.reason, says in ready.message) == (reason, True), ready.message
    assert ("No GPU is free" in ready.message) is False


@pytest.mark.parametrize(
    "pool", [{"allowedNamespaces": LAB}, {"quotas": [{"maxServingGPUs": 0, "maxTotalGPUs": 0, "maxPriority": -5}]}]
)
def test_running_replica_is_not_stopped_by_a_lower_quota(pool: dict[str, Any]) -> None:
    builder = WorldBuilder()
    builder.node(4)
    serving = engine(builder)
    builder.pool(**pool)
    decision = plan_engine(builder.world, serving, NOW)
    assert (decision.stop, decision.remove) == ((), ())
    assert planned_status(builder.world, serving, NOW).conditions[0].reason == Reason.ALL_SERVING


def test_replica_above_max_serving_gpus_reclaims_no_loan() -> None:
    builder = parse("pool: 4 gpus | a: needs 1, takes chat/1 on n1")
    builder.pool(quotas=[{"maxServingGPUs": 2}])
    lender = engine(builder, reclaim="OnDemand", minReplicas=0)
    grown = lender.model_copy(update={"spec": lender.spec.model_copy(update={"replicas": 3})})
    builder.version += 1
    metadata = grown.metadata.model_copy(update={"resource_version": str(builder.version)})
    builder.put(grown.model_copy(update={"metadata": metadata}))
    lends = builder.world.engines[engine_key("team", "chat")]
    decision = plan_engine(builder.world, lends, NOW)
    assert [slot.state for slot in decision.slots if slot.lent_to] == ["Stopping"]
    assert planned_status(builder.world, lends, NOW).conditions[0].reason == Reason.NAMESPACE_QUOTA
