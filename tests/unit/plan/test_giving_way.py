"""Training that gives way to a job of higher priority."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.claim import AttemptRef, Claim, Place
from sluice_api.reasons import Reason
from sluice_api.stages import Stage, StageOutcome, TrainResult
from sluice_operator.facts.liveness import live_claims, overlapped_by
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.stock import NodeStock
from sluice_operator.observe.views import PodView, Termination
from sluice_operator.observe.world import identity, job_key, key_of
from sluice_operator.plan.inventory import take_stock
from sluice_operator.status.job import job_status
from tests.unit.plan.worlds import GPU, NOW, YIELDS, Town, allocated, change, decide, describe, parse


def first_node(town: Town) -> NodeStock:
    pool = find_pool(town.world, "default")
    assert pool is not None
    return take_stock(town.world, pool).nodes["n1"]


class Displacing:
    """On a node of one GPU `low` trains, since a minute; `high` has a claim in its place."""

    def __init__(self, gpus: int = 1, **interruption: Any) -> None:
        self.town = Town()
        self.town.node(gpus)
        low = self.town.job("low", scheduling={"interruption": {**YIELDS, **interruption}})
        self.low = self.town.stage_job(low, claim=self.town.claim("n1"))
        self.low_pod = self.town.trainer_pod(self.low, "n1", bound_at=NOW - timedelta(seconds=60))
        self.high = self.town.job("high", scheduling={"policy": "Queue", "priority": 5})

    def claim(self) -> PodView:
        """What the pool decides, and the pod of it."""
        (claim,) = allocated(self.town).claims.values()
        stage_job = self.town.stage_job(self.high, claim=claim)
        return self.town.trainer_pod(stage_job)


def test_nobody_stops_before_the_job_that_comes_is_proven_and_bound() -> None:
    scene = Displacing()
    pod = scene.claim()
    assert decide(scene.town, "low").reason is Reason.TRAINING
    high = decide(scene.town, "high")
    assert (high.reason, high.bind) == (Reason.BINDING, ((pod, "n1"),))
    assert decide(scene.town, "low").delete == ()

    change(scene.town, pod, gates=(), nominated_node="n1", bound_at=NOW)
    low = decide(scene.town, "low")
    assert (low.reason, low.delete) == (Reason.PREEMPTED, (scene.low,))
    assert "team/high, of priority 5, has its GPUs" in low.message
    job = scene.town.world.jobs[job_key("team", "low")]
    (interruption,) = job_status(scene.town.world, job, low, NOW).interruptions
    assert (interruption.by, interruption.reason, interruption.at) == ("team/high", "Preempted", NOW)


def test_nobody_gives_way_to_two() -> None:
    scene = Displacing()
    scene.claim()
    scene.town.job("higher", scheduling={"policy": "Queue", "priority": 9})
    assert describe(allocated(scene.town)) == "higher waits WaitingForGPUs"


def test_a_job_that_can_not_run_interrupts_nobody() -> None:
    scene = Displacing()
    change(scene.town, scene.claim(), gates=("sluice.dev/claim",))
    scene.town.stranger("n1", 0, memory=64 << 30)
    assert decide(scene.town, "high").reason is Reason.UNSCHEDULABLE
    assert decide(scene.town, "low").reason is Reason.TRAINING


def test_a_job_that_found_another_gpu_meanwhile_interrupts_nobody() -> None:
    scene = Displacing(gpus=2)
    low = AttemptRef(namespace="team", job="low", uid=scene.low.uid, gpus=1)
    claim = Claim(pool="default", resource=GPU, gpus=1, places=(Place(node="n1", displaced=(low,)),), term=1)
    scene.town.trainer_pod(scene.town.stage_job(scene.high, claim=claim), "n1")
    assert decide(scene.town, "low").reason is Reason.TRAINING
    assert counted(scene.town) == (2, 0)


def test_a_job_that_found_what_another_leaves_of_a_replica_needs_its_place() -> None:
    """Seen in the soak: it was bound there before anybody had stopped, and the replica could not have come back."""
    jobs = "third: needs 1, takes chat/0 on n1 | low: needs 1, yields, on n1"
    town = parse(f"pool: 3 gpus | {jobs} | chat: 1 replicas, gpus 2")
    high = town.job("high", scheduling={"policy": "Queue", "priority": 5})
    allocation = allocated(town)
    assert describe(allocation) == "high takes n1 from low"
    town.trainer_pod(town.stage_job(high, claim=allocation.claims[key_of(high)]), "n1")
    assert decide(town, "low").reason is Reason.PREEMPTED


@pytest.mark.parametrize("gpus", [2, 3])
def test_who_found_a_free_gpu_needs_no_place_whatever_the_node_lacks_later(gpus: int) -> None:
    """On the node of three GPUs a stranger gets one that is claimed, on the one of two a GPU has been lost."""
    town = parse(f"pool: {gpus} gpus | low: needs 1, yields, on n1")
    low = next(live for live in live_claims(town.world) if live.name == "team/low")
    ref = AttemptRef(namespace="team", job="low", uid=low.stage_job.uid, gpus=1)
    place = Place(node="n1", displaced=(ref,))
    claim = Claim(pool="default", resource=GPU, gpus=1, places=(place,), term=1)
    high = town.job("high", scheduling={"policy": "Queue", "priority": 5})
    town.trainer_pod(town.stage_job(high, claim=claim), "n1")
    if gpus == 3:
        town.stage_job(town.job("other"), claim=town.claim("n1"))
        town.stranger("n1", 1)
    else:
        node = town.nodes[0]
        town.put(replace(node, resource_version=node.resource_version + 99, allocatable={**node.allocatable, GPU: 1}))
    assert first_node(town).is_crowded
    assert decide(town, "low").reason is Reason.TRAINING


def test_who_was_interrupted_waits_without_losing_an_attempt() -> None:
    scene = Displacing()
    change(scene.town, scene.claim(), gates=(), nominated_node="n1", bound_at=NOW)
    outcomes = decide(scene.town, "low").record
    assert outcomes is not None
    scene.town.store.remove(scene.low.key, scene.low.uid)
    scene.town.store.remove(scene.low_pod.key, scene.low_pod.uid)
    scene.town.job("low", outcomes=outcomes.attempts, scheduling={"interruption": YIELDS}, retry={"attempts": 1})
    assert describe(allocated(scene.town)) == "low waits WaitingForGPUs"
    assert not decide(scene.town, "low").failed


def test_who_ends_by_itself_while_another_comes_in_its_place_does_not_take_it_back() -> None:
    """Seen in the soak: its pod had ended, its Job not yet, and both claims had the node."""
    scene = Displacing()
    pod = scene.claim()
    change(scene.town, pod, gates=(), nominated_node="n1", bound_at=NOW)
    told = StageOutcome(reason="Requeued", train=TrainResult(step=7, total_steps=30, checkpoint_step=7))
    ended = Termination(75, "", told.to_json(), NOW)
    change(scene.town, scene.low_pod, ended=True, running=False, termination=ended)
    assert counted(scene.town) == (1, 0)
    change(scene.town, pod, gates=(), nominated_node="n1", node="n1", running=True)
    assert counted(scene.town) == (1, 0)
    assert decide(scene.town, "low").delete == (), "its last words are still to be read"
    change(scene.town, scene.low, finished="Failed", finished_at=NOW)
    low = decide(scene.town, "low")
    assert low.start is None
    assert low.record is not None
    last = low.record.of(Stage.TRAIN)[-1]
    assert (last.reason, last.by, last.checkpoint_step) == (Reason.PREEMPTED, "team/high", 7)
    assert describe(allocated(scene.town)) == "low waits WaitingForGPUs"


@pytest.mark.parametrize(
    ("rule", "interruption", "seconds", "expected"),
    [
        ("training that has run for a minute may be interrupted", {"minRunSeconds": 60}, 0, "high takes n1 from low"),
        ("training that has run for less may not", {"minRunSeconds": 90}, 0, "high waits WaitingForGPUs"),
        ("it may a little later", {"minRunSeconds": 90}, 30, "high takes n1 from low"),
        ("who comes waits first, in case it ends by itself", {"graceSeconds": 600}, 0, "high waits WaitingForGPUs"),
        ("but no longer", {"graceSeconds": 600}, 360, "high takes n1 from low"),
    ],
)  # fmt: skip
def test_when_training_gives_way(rule: str, interruption: dict[str, int], seconds: int, expected: str) -> None:
    scene = Displacing(**interruption)
    now = NOW + timedelta(seconds=seconds)
    allocation = allocated(scene.town, now)
    assert describe(allocation) == expected, rule
    if expected.endswith("WaitingForGPUs"):
        assert allocation.again_at
        assert describe(allocated(scene.town, allocation.again_at)) == "high takes n1 from low"
        message = allocation.waits[job_key("team", "high")].message
        assert f"low gives way at {allocation.again_at:%H:%M:%S} UTC" in message


def counted(town: Town) -> tuple[int, int]:
    """GPUs of the first node that claims have, and that are free."""
    node = first_node(town)
    return node.claimed, node.free


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("while both claims live", {}),
        ("while the one is on its way out", {"deleting": True}),
    ],
)
def test_gpus_that_change_hands_are_counted_once(rule: str, changes: dict[str, bool]) -> None:
    scene = Displacing(gpus=4)
    scene.town.stranger("n1", 2)
    scene.town.job("third", scheduling={"policy": "Queue"})
    claim = allocated(scene.town).claims[job_key("team", "high")]
    assert not claim.displaced, "one GPU is free"
    scene.town.stranger("n1", 1)
    claim = allocated(scene.town).claims[job_key("team", "high")]
    scene.town.trainer_pod(scene.town.stage_job(scene.high, claim=claim))
    if changes:
        change(scene.town, scene.low, **changes)
        change(scene.town, scene.low_pod, **changes)
    assert counted(scene.town) == (1, 0), rule


def test_a_later_claim_on_free_gpus_is_not_overlapped_by_two_that_share_theirs() -> None:
    scene = Displacing(gpus=2)
    scene.town.stranger("n1", 1)
    scene.claim()
    scene.town.store.remove(
        *next((p.key, p.uid) for p in scene.town.world.pods.values() if p.key.namespace == "others")
    )
    third = scene.town.job("third")
    scene.town.stage_job(third, claim=scene.town.claim("n1"))
    claims = live_claims(scene.town.world)
    assert [overlapped_by(scene.town.world, live) for live in claims] == [None, None, None]


def test_what_is_left_of_a_place_is_nobodys_until_who_had_it_is_gone() -> None:
    """Seen in the soak: who came was deleted before it was bound, so who had the place stayed, beside a third."""
    town = parse("pool: 2 gpus | low: needs 2, yields, on n1 | high: needs 1, queue, priority 5 | a: needs 1, queue")
    allocation = allocated(town)
    assert describe(allocation) == "a waits WaitingForGPUs; high takes n1 from low"
    (claim,) = allocation.claims.values()
    town.trainer_pod(town.stage_job(town.world.jobs[job_key("team", "high")], claim=claim, created=NOW), "n1")
    assert describe(allocated(town)) == "a waits WaitingForGPUs"
    low = next(live for live in live_claims(town.world) if live.name == "team/low")
    town.store.remove(low.stage_job.key, low.stage_job.uid)
    for pod in list(town.world.pods_of.get(identity(low.stage_job), {}).values()):
        town.store.remove(pod.key, pod.uid)
    town.store.remove(key_of(low.job), low.job.metadata.uid)
    assert describe(allocated(town)) == "a takes n1"
