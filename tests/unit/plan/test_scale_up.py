"""Nodes before loans: who asks a cluster autoscaler for nodes, and until when?"""

from datetime import datetime, timedelta

import pytest

from dev.simulate.cluster import Cluster
from sluice_api.claim import AttemptOutcome
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.world import engine_key, identity, job_key
from sluice_operator.plan.obstacle import Wait
from tests.unit.plan.node_requests import OVER, READY, decide, made, planned
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, allocated, describe, parse

LENDS = {"policy": "ScaleDown", "minReplicas": 0, "coolDownSeconds": 0, "drainTimeoutSeconds": 0}


def waits(builder: WorldBuilder, name: str, now: datetime = NOW) -> Wait:
    return allocated(builder, now).waits[job_key("team", name)]


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
