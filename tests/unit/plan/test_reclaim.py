"""Training that gives way to the engine that lent the GPUs."""

from datetime import timedelta
from typing import Any

import pytest

from sluice_api.claim import SlotRef
from sluice_api.inferenceengine import SlotState
from sluice_api.reasons import Reason
from sluice_api.reports import EngineReport
from sluice_operator.observe.world import Reported, engine_key
from sluice_operator.plan.engine.decide import plan_engine
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, change, decide, describe, parse, planned_status

CHAT_1 = SlotRef(namespace="team", engine="chat", index=1)
RECLAIMS = {"policy": "ScaleDown", "minReplicas": 1, "reclaim": "OnDemand"}


class Lent:
    """An engine of two replicas on a node of two GPUs, of which the second is lent to `a`."""

    def __init__(self, **terms: Any) -> None:
        self.builder = WorldBuilder()
        self.builder.node(2)
        self.job = self.builder.job("a")
        self.stage_job = self.builder.stage_job(self.job, claim=self.builder.claim("n1", CHAT_1))
        self.trainer = self.builder.trainer_pod(self.stage_job, "n1")
        self.builder.engine("chat", 2, preemption={**RECLAIMS, **terms})
        pod = self.builder.slot(self.engine, 0, "n1")
        assert pod is not None
        self.serving = pod
        self.builder.slot(self.engine, 1, size=0)

    @property
    def engine(self) -> Any:
        return self.builder.world.engines[engine_key("team", "chat")]

    def resize(self, replicas: int) -> None:
        self._update(spec=self.engine.spec.model_copy(update={"replicas": replicas}))

    def load(self, in_flight: float) -> None:
        report = EngineReport(sequence=1, serving=True, draining=False, in_flight=int(in_flight))
        self.builder.store.findings.report(self.serving.uid, Reported(report, NOW, load=in_flight))

    def decides(self) -> list[SlotState]:
        """The engine's decision, which is then its status."""
        status = planned_status(self.builder.world, self.engine, NOW)
        self._update(status=status)
        return [slot.state for slot in status.slots]

    def _update(self, **parts: Any) -> None:
        self.builder.version += 1
        metadata = self.engine.metadata.model_copy(update={"resource_version": str(self.builder.version)})
        self.builder.put(self.engine.model_copy(update={**parts, "metadata": metadata}))


SERVING, LENT, RECLAIMING, WAITING = SlotState.SERVING, SlotState.LENT, SlotState.RECLAIMING, SlotState.WAITING


def test_raised_replicas_reclaim_the_loan() -> None:
    scene = Lent()
    assert scene.decides() == [SERVING, LENT]
    scene.resize(3)
    assert scene.decides() == [SERVING, RECLAIMING, WAITING]
    decision = decide(scene.builder, "a")
    assert (decision.reason, decision.delete) == (Reason.RECLAIMED, (scene.stage_job,))
    assert "Engine team/chat needs its replica 1 back." in decision.message


class TwiceLent(Lent):
    """The same engine, of which a third replica is lent to `b`."""

    def __init__(self, **terms: Any) -> None:
        super().__init__(**terms)
        self.builder.node(1)
        self.second = self.builder.stage_job(
            self.builder.job("b"), claim=self.builder.claim("n2", replace_index(CHAT_1, 2))
        )
        self.second_pod = self.builder.trainer_pod(self.second, "n2")
        self.builder.slot(self.engine, 2, size=0)
        self.resize(3)


def test_raised_replicas_reclaim_all_loans() -> None:
    scene = TwiceLent()
    assert scene.decides() == [SERVING, LENT, LENT]
    scene.resize(4)
    assert scene.decides() == [SERVING, RECLAIMING, RECLAIMING, WAITING]


def test_load_over_reclaim_above_reclaims_the_newest_loan_first() -> None:
    scene = TwiceLent(reclaimAbove=4)
    scene.load(5)
    assert scene.decides() == [SERVING, LENT, RECLAIMING]


def test_reclaim_waits_while_a_borrower_leaves() -> None:
    scene = TwiceLent(reclaimAbove=4)
    scene.load(5)
    change(scene.builder, scene.second, deleting=True)
    change(scene.builder, scene.second_pod, deleting=True)
    assert scene.decides() == [SERVING, LENT, WAITING]


def replace_index(slot: SlotRef, index: int) -> SlotRef:
    return slot.model_copy(update={"index": index})


def test_reclaim_leaves_a_loan_that_has_not_begun() -> None:
    scene = Lent()
    scene.builder.store.remove(scene.trainer.key, scene.trainer.uid)
    scene.builder.slot(scene.engine, 1, "n1")
    scene.resize(3)
    assert scene.decides() == [SERVING, SERVING, WAITING]


def test_reclaim_never_waits_for_the_job() -> None:
    scene = Lent(reclaim="Never")
    scene.resize(3)
    assert scene.decides() == [SERVING, LENT, WAITING]
    assert decide(scene.builder, "a").reason is Reason.TRAINING


@pytest.mark.parametrize(("load", "expected"), [(4.0, [SERVING, LENT]), (4.1, [SERVING, RECLAIMING])])
def test_load_over_reclaim_above_reclaims_the_loan(load: float, expected: list[SlotState]) -> None:
    scene = Lent(reclaimAbove=4)
    scene.load(load)
    assert scene.decides() == expected


def test_reclaim_from_an_earlier_borrower_does_not_count() -> None:
    scene = Lent()
    scene.resize(3)
    scene.decides()
    change(scene.builder, scene.stage_job, created=NOW + timedelta(seconds=1))
    assert decide(scene.builder, "a").reason is Reason.TRAINING


@pytest.mark.parametrize(
    ("rule", "load", "expected"),
    [
        ("an engine lends when the rest can do the work", 4.0, "a takes chat/1"),
        ("an engine does not lend what it would ask back", 4.1, "a waits EngineInDemand"),
    ],
)
def test_load_over_reclaim_above_prevents_a_loan(rule: str, load: float, expected: str) -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2, preemption={**RECLAIMS, "reclaimAbove": 4})
    for index in (0, 1):
        pod = builder.slot(engine, index, "n1")
        assert pod is not None
        report = EngineReport(sequence=1, serving=True, draining=False, in_flight=2)
        builder.store.findings.report(pod.uid, Reported(report, NOW, load=load / 2))
    builder.job("a")
    assert describe(allocated(builder)) == expected, rule


@pytest.mark.parametrize(("led", "expected"), [(29, "a waits EngineInDemand"), (31, "a takes chat/1")])
def test_engine_lends_nothing_before_its_load_is_known(led: float, expected: str) -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2, preemption={**RECLAIMS, "reclaimAbove": 4})
    for index in (0, 1):
        builder.slot(engine, index, "n1")
    builder.job("a")
    builder.store.findings.since = NOW - timedelta(seconds=led)
    assert describe(allocated(builder)) == expected


def test_engine_that_would_reclaim_at_once_lends_nothing() -> None:
    builder = parse("pool: 2 gpus | chat: 3 replicas, floor 1 | a: needs 1")
    assert describe(allocated(builder)) == "a takes chat/1"
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 3, preemption=RECLAIMS)
    for index in (0, 1):
        builder.slot(engine, index, "n1")
    builder.job("a")
    assert describe(allocated(builder)) == "a waits EngineInDemand"


def test_returned_slot_records_restarted_at() -> None:
    scene = Lent()
    scene.builder.store.remove(scene.stage_job.key, scene.stage_job.uid)
    scene.builder.store.remove(scene.trainer.key, scene.trainer.uid)
    assert [(plan.index, plan.restarted_at) for plan in plan_engine(scene.builder.world, scene.engine, NOW).apply] == [
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
