"""Training that gives way to a job of higher priority."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.claim import AttemptRef, Claim, NodeAllocation
from sluice_api.reasons import Reason
from sluice_api.stages import Stage, StageOutcome, TrainResult
from sluice_operator.facts.live_claims import live_claims
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.overlap import overlapped_by
from sluice_operator.observe.views import PodView, Termination
from sluice_operator.observe.world import identity, job_key, key_of
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.stock import NodeStock
from sluice_operator.status.job import job_status
from tests.unit.plan.worlds import GPU, NOW, YIELDS, WorldBuilder, allocated, change, decide, describe, parse


def first_node(builder: WorldBuilder) -> NodeStock:
    pool = find_pool(builder.world, "default")
    assert pool is not None
    return take_stock(builder.world, pool).nodes["n1"]


class Displacing:
    """On a node of one GPU `low` trains, since a minute; `high` has a claim in its place."""

    def __init__(self, gpus: int = 1, **interruption: Any) -> None:
        self.builder = WorldBuilder()
        self.builder.node(gpus)
        low = self.builder.job("low", scheduling={"interruption": {**YIELDS, **interruption}})
        self.low = self.builder.stage_job(low, claim=self.builder.claim("n1"))
        self.low_pod = self.builder.trainer_pod(self.low, "n1", bound_at=NOW - timedelta(seconds=60))
        self.high = self.builder.job("high", scheduling={"policy": "Queue", "priority": 5})

    def claim(self) -> PodView:
        """What the pool decides, and the pod of it."""
        (claim,) = allocated(self.builder).claims.values()
        stage_job = self.builder.stage_job(self.high, claim=claim)
        return self.builder.trainer_pod(stage_job)


def test_preempted_job_trains_until_the_preemptor_is_bound() -> None:
    scene = Displacing()
    pod = scene.claim()
    assert decide(scene.builder, "low").reason is Reason.TRAINING
    high = decide(scene.builder, "high")
    assert (high.reason, high.bind) == (Reason.BINDING, ((pod, "n1"),))
    assert decide(scene.builder, "low").delete == ()

    change(scene.builder, pod, gates=(), nominated_node="n1", bound_at=NOW)
    low = decide(scene.builder, "low")
    assert (low.reason, low.delete) == (Reason.PREEMPTED, (scene.low,))
    assert "team/high, of priority 5, has its GPUs" in low.message
    job = scene.builder.world.jobs[job_key("team", "low")]
    (interruption,) = job_status(scene.builder.world, job, low, NOW).interruptions
    assert (interruption.by, interruption.reason, interruption.at) == ("team/high", "Preempted", NOW)


def test_claim_is_preempted_by_one_job_only() -> None:
    scene = Displacing()
    scene.claim()
    scene.builder.job("higher", scheduling={"policy": "Queue", "priority": 9})
    assert describe(allocated(scene.builder)) == "higher waits WaitingForGPUs"


def test_preemptor_that_fails_preflight_stops_no_training() -> None:
    scene = Displacing()
    change(scene.builder, scene.claim(), gates=("sluice.dev/claim",))
    scene.builder.stranger("n1", 0, memory=64 << 30)
    assert decide(scene.builder, "high").reason is Reason.UNSCHEDULABLE
    assert decide(scene.builder, "low").reason is Reason.TRAINING


def test_preemptor_on_a_free_gpu_stops_no_training() -> None:
    scene = Displacing(gpus=2)
    low = AttemptRef(namespace="team", job="low", uid=scene.low.uid, gpus=1)
    claim = Claim(pool="default", resource=GPU, gpus=1, places=(NodeAllocation(node="n1", preempted=(low,)),), term=1)
    scene.builder.trainer_pod(scene.builder.stage_job(scene.high, claim=claim), "n1")
    assert decide(scene.builder, "low").reason is Reason.TRAINING
    assert counted(scene.builder) == (2, 0)


def test_preemptor_on_a_spare_gpu_of_a_lent_slot_still_preempts() -> None:
    """Seen in the soak: it was bound there before training had stopped, and the replica could not have come back."""
    jobs = "third: needs 1, takes chat/0 on n1 | low: needs 1, yields, on n1"
    builder = parse(f"pool: 3 gpus | {jobs} | chat: 1 replicas, gpus 2")
    high = builder.job("high", scheduling={"policy": "Queue", "priority": 5})
    allocation = allocated(builder)
    assert describe(allocation) == "high takes n1 from low"
    builder.trainer_pod(builder.stage_job(high, claim=allocation.claims[key_of(high)]), "n1")
    assert decide(builder, "low").reason is Reason.PREEMPTED


@pytest.mark.parametrize("gpus", [2, 3])
def test_preemptor_on_a_free_gpu_preempts_nothing_if_crowded_later(gpus: int) -> None:
    """On the node of three GPUs a stranger gets one that is claimed, on the one of two a GPU has been lost."""
    builder = parse(f"pool: {gpus} gpus | low: needs 1, yields, on n1")
    low = next(live for live in live_claims(builder.world) if live.name == "team/low")
    ref = AttemptRef(namespace="team", job="low", uid=low.stage_job.uid, gpus=1)
    place = NodeAllocation(node="n1", preempted=(ref,))
    claim = Claim(pool="default", resource=GPU, gpus=1, places=(place,), term=1)
    high = builder.job("high", scheduling={"policy": "Queue", "priority": 5})
    builder.trainer_pod(builder.stage_job(high, claim=claim), "n1")
    if gpus == 3:
        builder.stage_job(builder.job("other"), claim=builder.claim("n1"))
        builder.stranger("n1", 1)
    else:
        node = builder.nodes[0]
        builder.put(
            replace(node, resource_version=node.resource_version + 99, allocatable={**node.allocatable, GPU: 1})
        )
    assert first_node(builder).is_crowded
    assert decide(builder, "low").reason is Reason.TRAINING


def test_preemption_costs_no_attempt() -> None:
    scene = Displacing()
    change(scene.builder, scene.claim(), gates=(), nominated_node="n1", bound_at=NOW)
    outcomes = decide(scene.builder, "low").record
    assert outcomes is not None
    scene.builder.store.remove(scene.low.key, scene.low.uid)
    scene.builder.store.remove(scene.low_pod.key, scene.low_pod.uid)
    scene.builder.job("low", outcomes=outcomes.attempts, scheduling={"interruption": YIELDS}, retry={"attempts": 1})
    assert describe(allocated(scene.builder)) == "low waits WaitingForGPUs"
    assert not decide(scene.builder, "low").failed


def test_preempted_job_that_ends_first_does_not_take_its_gpu_back() -> None:
    """Seen in the soak: its pod had ended, its Job not yet, and both claims had the node."""
    scene = Displacing()
    pod = scene.claim()
    change(scene.builder, pod, gates=(), nominated_node="n1", bound_at=NOW)
    told = StageOutcome(reason="Requeued", train=TrainResult(step=7, total_steps=30, checkpoint_step=7))
    ended = Termination(75, "", told.to_json(), NOW)
    change(scene.builder, scene.low_pod, ended=True, running=False, termination=ended)
    assert counted(scene.builder) == (1, 0)
    change(scene.builder, pod, gates=(), nominated_node="n1", node="n1", running=True)
    assert counted(scene.builder) == (1, 0)
    assert decide(scene.builder, "low").delete == (), "its last words are still to be read"
    change(scene.builder, scene.low, finished="Failed", finished_at=NOW)
    low = decide(scene.builder, "low")
    assert low.start is None
    assert low.record is not None
    last = low.record.of(Stage.TRAIN)[-1]
    assert (last.reason, last.by, last.checkpoint_step) == (Reason.PREEMPTED, "team/high", 7)
    assert describe(allocated(scene.builder)) == "low waits WaitingForGPUs"


@pytest.mark.parametrize(
    ("rule", "interruption", "seconds", "expected"),
    [
        ("training that has run for a minute may be interrupted", {"minRunSeconds": 60}, 0, "high takes n1 from low"),
        ("training that has run for less may not", {"minRunSeconds": 90}, 0, "high waits WaitingForGPUs"),
        ("it may a little later", {"minRunSeconds": 90}, 30, "high takes n1 from low"),
        ("graceSeconds are waited, in case it ends by itself", {"graceSeconds": 600}, 0, "high waits WaitingForGPUs"),
        ("no longer than graceSeconds", {"graceSeconds": 600}, 360, "high takes n1 from low"),
    ],
)  # fmt: skip
def test_min_run_seconds_and_grace_seconds_delay_preemption(
    rule: str, interruption: dict[str, int], seconds: int, expected: str
) -> None:
    scene = Displacing(**interruption)
    now = NOW + timedelta(seconds=seconds)
    allocation = allocated(scene.builder, now)
    assert describe(allocation) == expected, rule
    if expected.endswith("WaitingForGPUs"):
        assert allocation.again_at
        assert describe(allocated(scene.builder, allocation.again_at)) == "high takes n1 from low"
        message = allocation.waits[job_key("team", "high")].message
        assert f"low gives way at {allocation.again_at:%H:%M:%S} UTC" in message


def counted(builder: WorldBuilder) -> tuple[int, int]:
    """GPUs of the first node that claims have, and that are free."""
    node = first_node(builder)
    return node.claimed, node.free


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("while both claims live", {}),
        ("while the one is on its way out", {"deleting": True}),
    ],
)
def test_gpu_of_a_preempted_claim_is_counted_once(rule: str, changes: dict[str, bool]) -> None:
    scene = Displacing(gpus=4)
    scene.builder.stranger("n1", 2)
    scene.builder.job("third", scheduling={"policy": "Queue"})
    claim = allocated(scene.builder).claims[job_key("team", "high")]
    assert not claim.preempted, "one GPU is free"
    scene.builder.stranger("n1", 1)
    claim = allocated(scene.builder).claims[job_key("team", "high")]
    scene.builder.trainer_pod(scene.builder.stage_job(scene.high, claim=claim))
    if changes:
        change(scene.builder, scene.low, **changes)
        change(scene.builder, scene.low_pod, **changes)
    assert counted(scene.builder) == (1, 0), rule


def test_preemptor_and_preempted_do_not_overlap_a_later_claim() -> None:
    scene = Displacing(gpus=2)
    scene.builder.stranger("n1", 1)
    scene.claim()
    scene.builder.store.remove(
        *next((p.key, p.uid) for p in scene.builder.world.pods.values() if p.key.namespace == "others")
    )
    third = scene.builder.job("third")
    scene.builder.stage_job(third, claim=scene.builder.claim("n1"))
    claims = live_claims(scene.builder.world)
    assert [overlapped_by(scene.builder.world, live) for live in claims] == [None, None, None]


def test_spare_gpu_of_a_preempted_claim_is_not_free_until_it_ends() -> None:
    """Seen in the soak: the preemptor was deleted before it was bound, so the preempted job stayed, beside a third."""
    builder = parse("pool: 2 gpus | low: needs 2, yields, on n1 | high: needs 1, queue, priority 5 | a: needs 1, queue")
    allocation = allocated(builder)
    assert describe(allocation) == "a waits WaitingForGPUs; high takes n1 from low"
    (claim,) = allocation.claims.values()
    builder.trainer_pod(builder.stage_job(builder.world.jobs[job_key("team", "high")], claim=claim, created=NOW), "n1")
    assert describe(allocated(builder)) == "a waits WaitingForGPUs"
    low = next(live for live in live_claims(builder.world) if live.name == "team/low")
    builder.store.remove(low.stage_job.key, low.stage_job.uid)
    for pod in list(builder.world.pods_of.get(identity(low.stage_job), {}).values()):
        builder.store.remove(pod.key, pod.uid)
    builder.store.remove(key_of(low.job), low.job.metadata.uid)
    assert describe(allocated(builder)) == "a takes n1"
