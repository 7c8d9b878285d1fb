"""Training that gives way: to a job of higher priority, or to the engine that lent the GPUs."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from sluice_api.claim import AttemptRef, Claim, Place, SlotRef
from sluice_api.inferenceengine import SlotState
from sluice_api.reasons import Reason
from sluice_api.reports import EngineReport
from sluice_api.stages import Stage, StageOutcome, TrainResult
from sluice_operator.observe.views import PodView, StageJobView, Termination
from sluice_operator.observe.world import Reported, engine_key, job_key, key_of
from sluice_operator.plan.allocation.inventory import take_stock
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.facts.claims import live_claims, overlapped_by
from sluice_operator.plan.facts.pools import find_pool
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.holding import Limits
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.plan.job.status import job_status
from tests.unit.plan.worlds import GPU, NOW, YIELDS, Town, allocated, describe, parse

CHAT_1 = SlotRef(namespace="team", engine="chat", index=1)
RECLAIMS = {"policy": "ScaleDown", "minReplicas": 1, "reclaim": "OnDemand"}


def decide(town: Town, name: str, now: datetime = NOW) -> JobDecision:
    return plan_job(town.world, town.world.jobs[job_key("team", name)], now, Limits())


def change(town: Town, view: PodView | StageJobView, **changes: Any) -> None:
    town.version += 1
    town.put(replace(view, resource_version=town.version, **changes))


# To a job of higher priority


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
    pool = find_pool(town.world, "default")
    assert pool is not None
    node = take_stock(town.world, pool).nodes["n1"]
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
    for pod in list(town.world.pods_of.get(low.stage_job.uid, {}).values()):
        town.store.remove(pod.key, pod.uid)
    town.store.remove(key_of(low.job), low.job.metadata.uid)
    assert describe(allocated(town)) == "a takes n1"


# To the engine that lent the GPUs


class Lent:
    """An engine of two replicas on a node of two GPUs, of which the second is lent to `a`."""

    def __init__(self, **terms: Any) -> None:
        self.town = Town()
        self.town.node(2)
        self.job = self.town.job("a")
        self.stage_job = self.town.stage_job(self.job, claim=self.town.claim("n1", CHAT_1))
        self.trainer = self.town.trainer_pod(self.stage_job, "n1")
        self.town.engine("chat", 2, preemption={**RECLAIMS, **terms})
        pod = self.town.slot(self.engine, 0, "n1")
        assert pod is not None
        self.serving = pod
        self.town.slot(self.engine, 1, size=0)

    @property
    def engine(self) -> Any:
        return self.town.world.engines[engine_key("team", "chat")]

    def resize(self, replicas: int) -> None:
        self._update(spec=self.engine.spec.model_copy(update={"replicas": replicas}))

    def load(self, in_flight: float) -> None:
        report = EngineReport(sequence=1, serving=True, draining=False, in_flight=int(in_flight))
        self.town.store.report(self.serving.uid, Reported(report, NOW, load=in_flight))

    def decides(self) -> list[SlotState]:
        """The engine's decision, which is then its status."""
        status = plan_engine(self.town.world, self.engine, NOW).status
        self._update(status=status)
        return [slot.state for slot in status.slots]

    def _update(self, **parts: Any) -> None:
        self.town.version += 1
        metadata = self.engine.metadata.model_copy(update={"resource_version": str(self.town.version)})
        self.town.put(self.engine.model_copy(update={**parts, "metadata": metadata}))


SERVING, LENT, RECLAIMING, WAITING = SlotState.SERVING, SlotState.LENT, SlotState.RECLAIMING, SlotState.WAITING


def test_an_engine_that_is_raised_above_its_gpus_asks_its_loan_back() -> None:
    scene = Lent()
    assert scene.decides() == [SERVING, LENT]
    scene.resize(3)
    assert scene.decides() == [SERVING, RECLAIMING, WAITING]
    decision = decide(scene.town, "a")
    assert (decision.reason, decision.delete) == (Reason.RECLAIMED, (scene.stage_job,))
    assert "Engine team/chat needs its replica 1 back." in decision.message


class TwiceLent(Lent):
    """The same engine, of which a third replica is lent to `b`."""

    def __init__(self, **terms: Any) -> None:
        super().__init__(**terms)
        self.town.node(1)
        self.second = self.town.stage_job(self.town.job("b"), claim=self.town.claim("n2", replace_index(CHAT_1, 2)))
        self.second_pod = self.town.trainer_pod(self.second, "n2")
        self.town.slot(self.engine, 2, size=0)
        self.resize(3)


def test_an_engine_that_lacks_replicas_asks_all_its_loans_back() -> None:
    scene = TwiceLent()
    assert scene.decides() == [SERVING, LENT, LENT]
    scene.resize(4)
    assert scene.decides() == [SERVING, RECLAIMING, RECLAIMING, WAITING]


def test_an_engine_with_too_much_to_answer_asks_for_the_newest_loan_first() -> None:
    scene = TwiceLent(reclaimAbove=4)
    scene.load(5)
    assert scene.decides() == [SERVING, LENT, RECLAIMING]


def test_no_other_loan_is_asked_back_while_a_borrower_leaves() -> None:
    scene = TwiceLent(reclaimAbove=4)
    scene.load(5)
    change(scene.town, scene.second, deleting=True)
    change(scene.town, scene.second_pod, deleting=True)
    assert scene.decides() == [SERVING, LENT, WAITING]


def replace_index(slot: SlotRef, index: int) -> SlotRef:
    return slot.model_copy(update={"index": index})


def test_a_loan_that_has_not_begun_is_not_asked_back() -> None:
    scene = Lent()
    scene.town.store.remove(scene.trainer.key, scene.trainer.uid)
    scene.town.slot(scene.engine, 1, "n1")
    scene.resize(3)
    assert scene.decides() == [SERVING, SERVING, WAITING]


def test_an_engine_that_never_reclaims_waits_for_the_job() -> None:
    scene = Lent(reclaim="Never")
    scene.resize(3)
    assert scene.decides() == [SERVING, LENT, WAITING]
    assert decide(scene.town, "a").reason is Reason.TRAINING


@pytest.mark.parametrize(("load", "expected"), [(4.0, [SERVING, LENT]), (4.1, [SERVING, RECLAIMING])])
def test_an_engine_with_too_much_to_answer_asks_its_loan_back(load: float, expected: list[SlotState]) -> None:
    scene = Lent(reclaimAbove=4)
    scene.load(load)
    assert scene.decides() == expected


def test_a_word_said_to_an_earlier_borrower_is_not_meant_for_this_one() -> None:
    scene = Lent()
    scene.resize(3)
    scene.decides()
    change(scene.town, scene.stage_job, created=NOW + timedelta(seconds=1))
    assert decide(scene.town, "a").reason is Reason.TRAINING


@pytest.mark.parametrize(
    ("rule", "load", "expected"),
    [
        ("an engine lends when the rest can do the work", 4.0, "a takes chat/1"),
        ("an engine does not lend what it would ask back", 4.1, "a waits EngineInDemand"),
    ],
)
def test_an_engine_lends_what_its_load_allows(rule: str, load: float, expected: str) -> None:
    town = Town()
    town.node(2)
    engine = town.engine("chat", 2, preemption={**RECLAIMS, "reclaimAbove": 4})
    for index in (0, 1):
        pod = town.slot(engine, index, "n1")
        assert pod is not None
        report = EngineReport(sequence=1, serving=True, draining=False, in_flight=2)
        town.store.report(pod.uid, Reported(report, NOW, load=load / 2))
    town.job("a")
    assert describe(allocated(town)) == expected, rule


def test_an_engine_that_lacks_replicas_and_would_ask_them_back_lends_none() -> None:
    town = parse("pool: 2 gpus | chat: 3 replicas, floor 1 | a: needs 1")
    assert describe(allocated(town)) == "a takes chat/1"
    town = Town()
    town.node(2)
    engine = town.engine("chat", 3, preemption=RECLAIMS)
    for index in (0, 1):
        town.slot(engine, index, "n1")
    town.job("a")
    assert describe(allocated(town)) == "a waits EngineInDemand"


def test_a_slot_that_starts_again_says_when() -> None:
    scene = Lent()
    scene.town.store.remove(scene.stage_job.key, scene.stage_job.uid)
    scene.town.store.remove(scene.trainer.key, scene.trainer.uid)
    assert [(plan.index, plan.restarted_at) for plan in plan_engine(scene.town.world, scene.engine, NOW).apply] == [
        (1, NOW)
    ]


def test_a_load_is_an_average_over_half_a_minute() -> None:
    def report(in_flight: int) -> EngineReport:
        return EngineReport(sequence=1, serving=True, draining=False, in_flight=in_flight)

    told = Reported(report(0), NOW)
    told = told.then(report(10), NOW + timedelta(seconds=5))
    assert told.load == 0, "nothing was in flight until now"
    for second in range(6, 36):
        told = told.then(report(10), NOW + timedelta(seconds=second))
    assert 6 < told.load < 7
    told = told.then(report(0), NOW + timedelta(minutes=5))
    assert 9.9 < told.load < 10
