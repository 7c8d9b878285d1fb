"""Scale-up pods: which are there, when they go, and whose way they never are in."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, NoReturn

import pytest

from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.world import job_key
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.missing_pods import PODS_WITHIN
from sluice_operator.plan.pool.allocate import allocate_fenced
from sluice_operator.plan.pool.scale_up import ScaleUp, plan_scale_up
from sluice_operator.plan.readiness import MOST
from sluice_operator.plan.stock import NodeStock
from tests.unit.plan.node_requests import OVER, bound, decide, made, planned, removed
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, describe, parse


def test_each_training_pod_has_a_scale_up_pod() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, pods 2, scales | b: needs 1, on n1")
    assert made(builder) == ["a-0", "a-1"]
    bound(builder, "a", "", 1)
    assert made(builder) == ["a-0"]


def test_only_the_first_of_the_queue_have_scale_up_pods() -> None:
    jobs = " | ".join(f"j{number}: needs 1, scales" for number in range(MOST + 3))
    builder = parse(f"pool: 1 gpus | x: needs 1, on n1 | {jobs} | large: needs 8, scales")
    assert made(builder) == [f"j{number}-0" for number in range(MOST)]


@pytest.mark.parametrize(
    ("rule", "world", "changes"),
    [
        ("suspended", "pool: 1 gpus | x: needs 1, on n1 | a: needs 1, scales", {"suspend": True}),
        ("managed elsewhere", "pool: 1 gpus | x: needs 1, on n1 | a: needs 1, scales", {"managed_by": "kueue"}),
    ],
)
def test_scale_up_pod_goes_when_its_job_no_longer_waits(rule: str, world: str, changes: dict[str, Any]) -> None:
    builder = parse(world)
    bound(builder, "a", "")
    assert removed(builder) == []
    job = builder.world.jobs[job_key("team", "a")]
    builder.version += 1
    version = {"resource_version": str(builder.version)}
    builder.put(
        job.model_copy(
            update={
                "spec": job.spec.model_copy(update=changes),
                "metadata": job.metadata.model_copy(update=version),
            }
        )
    )
    assert removed(builder) == ["a"], rule


def test_scale_up_pod_goes_after_wait_seconds_or_its_own_end() -> None:
    builder = parse("pool: 1 gpus | x: needs 1, on n1 | a: needs 1, scales")
    pod = bound(builder, "a", "")
    assert removed(builder, OVER) == ["a"]
    builder.version += 1
    builder.put(replace(pod, resource_version=builder.version, ended=True))
    assert removed(builder) == ["a"]


def test_scale_up_pod_on_a_cordoned_node_goes() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, scales")
    bound(builder, "a", "n1")
    builder.version += 1
    builder.put(replace(builder.nodes[0], resource_version=builder.version, cordoned=True))
    assert describe(allocated(builder)) == "a waits ScalingUp"
    assert removed(builder) == ["a"]


def test_gpu_of_a_scale_up_pod_counts_as_free() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, scales")
    bound(builder, "a", "n1")
    pool = find_pool(builder.world, "default")
    assert pool is not None
    assert take_stock(builder.world, pool).nodes["n1"].free == 1
    assert describe(allocated(builder)) == "a takes n1"
    builder.engine("chat", 1, preemption={"priority": 0})
    assert describe(allocated(builder)) == "a waits ScalingUp"  # the replica has that room


def test_scale_up_pod_of_another_sluice_counts_as_a_stranger() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, scales")
    pod = bound(builder, "a", "n1")
    job = builder.world.jobs[job_key("team", "a")]
    builder.store.remove(job_key("team", "a"), job.metadata.uid)
    builder.job("b")
    assert describe(allocated(builder)) == "b waits WaitingForGPUs"
    assert pod not in planned(builder).remove


def test_memory_of_a_scale_up_pod_counts_as_free() -> None:
    builder = WorldBuilder()
    builder.node(2, memory=3 << 30)
    job = builder.job("a", resources={"memory": "3Gi"}, scheduling={"policy": "Queue", "scaleUpFirst": {}})
    builder.scale_up_pod(job, node="n1")
    assert describe(allocated(builder)) == "a takes n1"


def test_scale_up_pod_stays_until_the_trainer_is_bound() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, scales")
    bound(builder, "a", "n1")
    (claim,) = allocated(builder).claims.values()
    stage_job = builder.stage_job(builder.world.jobs[job_key("team", "a")], claim=claim, created=NOW)
    assert planned(builder).make == ()
    assert removed(builder) == []  # its pod is about to be made
    assert planned(builder).again_at == NOW + PODS_WITHIN

    pod = builder.trainer_pod(stage_job)
    later = NOW + timedelta(seconds=5)
    assert decide(builder, "a", later).bind == ((pod, "n1"),)  # proven: what is to go is not in its way
    assert removed(builder, later) == []

    builder.version += 1
    builder.put(replace(pod, resource_version=builder.version, gates=(), nominated_node="n1", bound_at=later))
    assert removed(builder, later) == ["a"]


def test_scale_up_pod_goes_when_the_training_pod_is_overdue() -> None:
    """A ResourceQuota counts both."""
    builder = parse("pool: 1 gpus | a: needs 1, scales")
    bound(builder, "a", "n1")
    (claim,) = allocated(builder).claims.values()
    builder.stage_job(builder.world.jobs[job_key("team", "a")], claim=claim, created=NOW)
    assert removed(builder, NOW + PODS_WITHIN - timedelta(seconds=1)) == []
    assert removed(builder, NOW + PODS_WITHIN) == ["a"]


def test_scale_up_pod_without_a_node_goes_when_its_job_has_a_claim() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, scales")
    bound(builder, "a", "")
    (claim,) = allocated(builder).claims.values()
    builder.stage_job(builder.world.jobs[job_key("team", "a")], claim=claim, created=NOW)
    assert removed(builder) == ["a"]


def test_scale_up_pod_goes_for_a_replica_until_that_has_a_node() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, scales | b: needs 1, scales")
    bound(builder, "a", "n1")
    engine = builder.engine("chat", 1)
    assert removed(builder) == ["a"]
    assert made(builder) == []
    builder.slot(engine, 0, "n1")
    assert made(builder) == ["b-0"]


def test_replica_starts_beside_a_terminating_scale_up_pod() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, scales | b: needs 1, scales")
    pod = bound(builder, "a", "n1")
    engine = builder.engine("chat", 1)
    builder.version += 1
    builder.put(replace(pod, resource_version=builder.version, deleting=True))
    assert made(builder) == []
    assert [plan.size for plan in plan_engine(builder.world, engine, NOW).apply] == [1]


def test_scale_up_pod_in_another_pool_goes_for_its_claims() -> None:
    """Until the claim's pod is nominated, that pool leaves it alone."""
    builder = WorldBuilder()
    builder.pool("old", nodeSelector={"gpu": "old"})
    builder.node(1, labels={"gpu": "old"})
    builder.scale_up_pod(builder.job("a", scheduling={"policy": "Queue", "scaleUpFirst": {}}), node="n1")
    job = builder.job("b", resources={"pool": "old"})
    pool = find_pool(builder.world, "old")
    assert pool is not None
    claim = allocated_in(builder, "old")["b"]
    pod = builder.trainer_pod(builder.stage_job(job, claim=claim), created=NOW)
    assert plan_scale_up(builder.world, take_stock(builder.world, pool), (), NOW).remove == ()
    builder.version += 1
    builder.put(replace(pod, resource_version=builder.version, gates=(), nominated_node="n1"))
    (gone,) = plan_scale_up(builder.world, take_stock(builder.world, pool), (), NOW).remove
    assert gone.owner is not None
    assert gone.owner.name == "a"


def allocated_in(builder: WorldBuilder, name: str) -> dict[str, Any]:
    pool = find_pool(builder.world, name)
    assert pool is not None
    return {key.name: claim for key, claim in allocate_fenced(builder.world, pool, NOW).claims.items()}


def test_scale_up_pod_on_reserved_gpus_stays() -> None:
    """Else it would be made again, and bound there again."""
    builder = parse("pool: 2 gpus | x: needs 1, on n1 | f: needs 2 | b: needs 1, scales")
    bound(builder, "b", "n1")
    assert describe(allocated(builder)) == "b waits ScalingUp; f waits WaitingForGPUs"
    assert planned(builder) == ScaleUp()


class Unread(dict[str, NodeStock]):
    """Nodes that nobody may go through."""

    def values(self) -> NoReturn:
        raise AssertionError("looks at every node")


def test_scale_up_scans_no_nodes() -> None:
    builder = parse("pool: 1 gpus | x: needs 1, on n1 | a: needs 1, scales")
    pool = find_pool(builder.world, "default")
    assert pool is not None
    stock = take_stock(builder.world, pool)
    unread = replace(stock, nodes=Unread(stock.nodes))
    assert plan_scale_up(builder.world, unread, (), NOW) == ScaleUp()
    bound(builder, "a", "n1")
    assert [pod.node for pod in plan_scale_up(builder.world, unread, (), NOW).remove] == ["n1"]
