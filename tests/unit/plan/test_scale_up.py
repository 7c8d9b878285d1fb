"""Nodes before loans: who asks a cluster autoscaler for nodes, until when, and whose way its pods never are in."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NoReturn

import pytest

from dev.simulate.cluster import Cluster
from sluice_api.claim import AttemptOutcome
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.world import engine_key, identity, job_key
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.plan.missing_pods import PODS_WITHIN
from sluice_operator.plan.obstacle import Wait
from sluice_operator.plan.pool.allocate import allocate_fenced
from sluice_operator.plan.pool.scale_up import ScaleUp, plan_scale_up
from sluice_operator.plan.readiness import MOST
from sluice_operator.plan.stock import NodeStock
from sluice_operator.settings import Limits
from tests.unit.plan.node_requests import bound, made, planned, removed
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, allocated, describe, parse

LENDS = {"policy": "ScaleDown", "minReplicas": 0, "coolDownSeconds": 0, "drainTimeoutSeconds": 0}
assert PREPARED.ended_at is not None
READY = PREPARED.ended_at
OVER = READY + timedelta(seconds=600)
"""When a job of these worlds has asked for long enough."""


def waits(builder: WorldBuilder, name: str, now: datetime = NOW) -> Wait:
    return allocated(builder, now).waits[job_key("team", name)]


def decide(builder: WorldBuilder, name: str, now: datetime = NOW) -> JobDecision:
    found = allocated(builder, now).waits.get(job_key("team", name))
    return plan_job(builder.world, builder.world.jobs[job_key("team", name)], now, Limits(), found)


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        ("who asks for nodes borrows nothing meanwhile",
         "pool: 2 gpus | chat: 2 replicas | a: needs 1, scales",
         "a waits ScalingUp"),
        ("and takes nobody's place",
         "pool: 1 gpus | low: needs 1, yields, on n1 | a: needs 1, priority 5, scales",
         "a waits ScalingUp"),
        ("free GPUs it takes like any job",
         "pool: 2 gpus | chat: 1 replicas | a: needs 1, scales",
         "a takes n1"),
        ("free GPUs are kept for it from those behind",
         "pool: 1 gpus | a: needs 1, on n1 | b: needs 1, scales | c: needs 1",
         "b waits ScalingUp; c waits BehindInQueue"),
        ("and so is what it may borrow later",
         "pool: 2 gpus | chat: 2 replicas | a: needs 1, scales | b: needs 1",
         "a waits ScalingUp; b waits BehindInQueue"),
        ("who waits for free GPUs alone may ask too",
         "pool: 1 gpus | a: needs 1, on n1 | b: needs 1, queue, scales",
         "b waits ScalingUp"),
        ("who is larger than every node is not in the queue",
         "pool: 1 gpus | a: needs 2, scales | b: needs 1",
         "a waits ScalingUp; b takes n1"),
        ("nor is a group that is larger than the pool",
         "pool: 1 gpus | a: needs 1, pods 2, scales | b: needs 1",
         "a waits ScalingUp; b takes n1"),
        ("a pool without nodes is asked for one",
         "a: needs 1, scales",
         "a waits ScalingUp"),
    ],
)  # fmt: skip
def test_scale_up_first_asks_for_nodes_before_it_borrows(rule: str, world: str, expected: str) -> None:
    assert describe(allocated(parse(world))) == expected, rule


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        ("it borrows",
         "pool: 2 gpus | chat: 2 replicas | a: needs 1, scales",
         "a takes chat/1"),
        ("it takes another's place",
         "pool: 1 gpus | low: needs 1, yields, on n1 | a: needs 1, priority 5, scales",
         "a takes n1 from low"),
        ("it waits for free GPUs",
         "pool: 1 gpus | a: needs 1, on n1 | b: needs 1, queue, scales",
         "b waits WaitingForGPUs"),
        ("it is refused, and nobody waits for it",
         "pool: 1 gpus | a: needs 2, scales | b: needs 1",
         "b takes n1"),
    ],
)  # fmt: skip
def test_scale_up_first_ends_after_wait_seconds(rule: str, world: str, expected: str) -> None:
    builder = parse(world)
    assert describe(allocated(builder, OVER)) == expected, rule
    assert made(builder, OVER) == []


def test_wait_seconds_run_from_ready_and_the_pool_looks_again() -> None:
    builder = WorldBuilder()
    builder.node(1)
    builder.engine("chat", 1, preemption=LENDS)
    builder.slot(builder.world.engines[engine_key("team", "chat")], 0, "n1")
    builder.job("a", scheduling={"policy": "Preempt", "scaleUpFirst": {"waitSeconds": 900}})
    pool = find_pool(builder.world, "default")
    assert pool is not None
    over = READY + timedelta(seconds=900)
    assert allocated(builder).again_at == over
    assert describe(allocated(builder, over - timedelta(seconds=1))) == "a waits ScalingUp"
    assert describe(allocated(builder, over)) == "a takes chat/0"


@pytest.mark.parametrize(
    ("reason", "asks"),
    [(Reason.QUOTA_EXCEEDED, False), (Reason.UNSCHEDULABLE, False), (Reason.PREEMPTED, True), (Reason.REQUEUED, True)],
)
def test_scale_up_first_begins_anew_only_after_training(reason: Reason, asks: bool) -> None:
    long_ago = replace_times(PREPARED, NOW - timedelta(hours=1))
    train = AttemptOutcome(stage=Stage.TRAIN, attempt=1, reason=reason, ended_at=NOW - timedelta(seconds=90))
    builder = WorldBuilder()
    builder.node(1)
    other = builder.job("other")
    builder.trainer_pod(builder.stage_job(other, claim=builder.claim("n1")), "n1")
    builder.job("a", outcomes=(long_ago, train), scheduling={"policy": "Queue", "scaleUpFirst": {}})
    assert describe(allocated(builder)) == f"a waits {'ScalingUp' if asks else 'WaitingForGPUs'}"


def replace_times(outcome: AttemptOutcome, at: datetime) -> AttemptOutcome:
    return outcome.model_copy(update={"started_at": at, "ended_at": at})


def test_scaling_up_message_says_until_when() -> None:
    builder = parse("pool: 2 gpus | chat: 2 replicas | b: needs 1, queue | a: needs 1, scales")
    assert waits(builder, "a").message == (
        "Waiting for 1 GPU in pool default since 2026-11-22 11:56 UTC. It asks for nodes and borrows nothing until "
        "2026-11-22 12:06:00 UTC (scheduling.scaleUpFirst). Next: wait until 12:06:00 UTC or a node is added, or raise "
        "scheduling.priority to 1, and add 1 GPU to the pool."
    )
    assert waits(builder, "a").position == "2"


def test_scaling_up_message_says_why_no_node_fits() -> None:
    builder = parse("pool: 1 gpus | a: needs 2, scales")
    decision = decide(builder, "a")
    assert decision.reason is Reason.SCALING_UP
    assert "spec.resources.gpus: 2 are asked for, the largest node of pool default has 1." in decision.message
    assert decision.message.endswith("Next: wait until 12:06:00 UTC or a node is added.")
    refused = decide(builder, "a", OVER)
    assert refused.reason is Reason.EXCEEDS_EVERY_NODE
    assert refused.message.endswith("None came within 600 s (spec.scheduling.scaleUpFirst).")


def test_scale_up_first_job_prepares_without_a_node() -> None:
    builder = WorldBuilder()
    builder.job("a", outcomes=(), scheduling={"policy": "Queue", "scaleUpFirst": {}})
    builder.job("b", outcomes=(), scheduling={"policy": "Queue"})
    assert decide(builder, "a").reason is Reason.PREPARING
    assert decide(builder, "b").reason is Reason.NO_NODES
    assert planned(builder).make == ()


def test_scale_up_not_supported_in_a_dra_pool() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, scales")
    builder.pool(sharing={"mode": "DRA"})
    decision = decide(builder, "a")
    assert decision.reason is Reason.SCALE_UP_NOT_SUPPORTED
    assert "spec.scheduling.scaleUpFirst" in decision.message
    assert made(builder) == []


# Its pods


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


# The whole of it


def test_job_trains_on_the_node_that_its_scale_up_pod_brought() -> None:
    cluster = Cluster()
    cluster.builder.node(1)
    cluster.builder.engine("chat", 1, preemption=LENDS)
    for _ in range(3):
        cluster.round()
    job = cluster.builder.job("a", scheduling={"policy": "Preempt", "scaleUpFirst": {}})
    cluster.round()
    assert [pod.node for pod in cluster.world.scale_ups["default"].values()] == [""]
    cluster.builder.node(1)
    cluster.scheduler()
    assert [pod.node for pod in cluster.world.scale_ups["default"].values()] == ["n2"]
    for _ in range(4):
        cluster.round()
    (stage_job,) = cluster.world.stage_jobs_of[identity(job)].values()
    assert [pod.node for pod in cluster.world.pods_of[identity(stage_job)].values()] == ["n2"]
    assert not cluster.world.scale_ups.get("default")
    assert cluster.world.engines[engine_key("team", "chat")].status.lent == 0


def test_job_borrows_after_wait_seconds_without_a_node() -> None:
    cluster = Cluster()
    cluster.builder.node(1)
    cluster.builder.engine("chat", 1, preemption=LENDS)
    for _ in range(3):
        cluster.round()
    cluster.builder.job("a", scheduling={"policy": "Preempt", "scaleUpFirst": {}})
    for _ in range(5):
        cluster.round()
    assert cluster.world.engines[engine_key("team", "chat")].status.lent == 0
    cluster.pass_time(600)
    for _ in range(8):
        cluster.round()
    assert cluster.world.engines[engine_key("team", "chat")].status.lent == 1
    assert not cluster.world.scale_ups.get("default")
