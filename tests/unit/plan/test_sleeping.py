"""Engines of policy Sleep: a lent slot keeps its pod, sleeps before the trainer comes and wakes when it is gone."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.inferenceengine import (
    InferenceEngine,
    InferenceEngineStatus,
    LendingPolicy,
    Reclaim,
    SlotState,
    SlotStatus,
)
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.sleeping import can_sleep
from sluice_operator.facts.slots import template_of
from sluice_operator.observe.world import job_key
from sluice_operator.plan.pool.allocate import allocate_fenced
from sluice_operator.reconcile.give_back import missing
from sluice_operator.settings import Limits
from tests.unit.plan.test_claim_cycle import Loan, states
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, allocated, describe

SERVING, DRAINING, SLEEPING, LENT = SlotState.SERVING, SlotState.DRAINING, SlotState.SLEEPING, SlotState.LENT
RECLAIMING, STARTING = SlotState.RECLAIMING, SlotState.STARTING


class SleepingLoan(Loan):
    """The same engine of two replicas, of which the second goes to sleep for the job."""

    def __init__(self, terms: dict[str, Any] | None = None, **job: Any) -> None:
        super().__init__(**job)
        self.builder.dra_pool()
        assert self.stage_job.claim
        self.put(self.stage_job, claim=self.stage_job.claim.model_copy(update={"resource": self.builder.counted_as}))
        self.stage_job = self.builder.world.stage_jobs[self.stage_job.key]
        preemption = self.engine.spec.preemption.model_copy(update={"policy": LendingPolicy.SLEEP, **(terms or {})})
        self.respec(preemption=preemption)
        for slot in list(self.builder.world.slots.values()):
            self.put_slot(slot.index, template=template_of(self.engine))

    def respec(self, **spec: Any) -> None:
        parsed = InferenceEngine.model_validate(
            self.engine.model_copy(update={"spec": self.engine.spec.model_copy(update=spec)}).model_dump(by_alias=True)
        )
        self._write(parsed)

    def says(self, state: SlotState, after: float = 0, pod: str = "chat-1-x") -> None:
        """What the engine's status says of the lent slot."""
        at = NOW + timedelta(seconds=after)
        slots = (SlotStatus(index=1, state=state, pod=pod, lent_to="team/a", since=at),)
        self._write(self.engine.model_copy(update={"status": InferenceEngineStatus(slots=slots)}))

    def _write(self, engine: InferenceEngine) -> None:
        self.builder.version += 1
        metadata = engine.metadata.model_copy(update={"resource_version": str(self.builder.version)})
        self.builder.put(engine.model_copy(update={"metadata": metadata}))

    def put_slot(self, index: int, **changes: Any) -> None:
        slot = next(slot for slot in self.builder.world.slots.values() if slot.index == index)
        self.builder.version += 1
        self.builder.put(replace(slot, resource_version=self.builder.version, **changes))

    def sleep(self) -> None:
        """It has drained, its agent has put vLLM to sleep and says so, and the engine knows."""
        self.drain()
        self.engine_says(self.status(1))
        self.builder.report(self.lent_pod(), 0, draining=True, quiet=5, at=NOW + timedelta(seconds=2), asleep=True)
        self.engine_says(self.status(2))

    def train(self) -> None:
        """The trainer's pod is on its node."""
        self.sleep()
        self.put(self.pod, gates=(), node="n1", nominated_node="n1", running=True)
        self.pod = self.builder.world.pods[self.pod.key]
        self.engine_says(self.status(3))

    def stop(self) -> None:
        """The job is suspended: its Job is being deleted, its pod saves its state."""
        self.put(self.stage_job, deleting=True)
        self.put(self.pod, deleting=True)


def test_slot_drains_sleeps_and_is_lent_with_its_pod() -> None:
    loan = SleepingLoan()
    loan.builder.trainer_pod(loan.stage_job)
    assert states(loan.plan_engine()) == [SERVING, DRAINING]
    loan.drain()
    assert states(loan.plan_engine(1)) == [SERVING, SLEEPING]
    loan.engine_says(loan.status(1))
    step = loan.plan_job(1)
    assert (step.reason, step.message, step.bind) == (Reason.WAITING_FOR_SLEEP, "chat/1 goes to sleep.", ())
    loan.builder.report(loan.lent_pod(), 0, draining=True, quiet=5, at=NOW + timedelta(seconds=2), asleep=True)
    assert loan.plan_job(2).reason is Reason.BINDING
    decision = loan.plan_engine(2)
    assert states(decision) == [SERVING, LENT]
    status = loan.status(2)
    assert (status.lent, status.lent_to, status.ready) == (1, ("team/a",), "1/2")


def test_sleeping_loan_keeps_the_size_and_has_no_placeholder() -> None:
    loan = SleepingLoan()
    for step in (loan.drain, loan.sleep, loan.train, loan.stop):
        step()
        decision = loan.plan_engine(3)
        assert (decision.stop, decision.apply, decision.remove, decision.placeholders.make) == ((), (), (), ()), step


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("its agent has not said anything", None),
        ("its agent says that it does not", {"asleep": False}),
        ("what it says is of the last loan", {"asleep": True, "at": NOW - timedelta(seconds=60)}),
    ],
)
def test_trainer_is_not_bound_before_the_slot_sleeps(case: str, told: dict[str, Any] | None) -> None:
    loan = SleepingLoan()
    loan.builder.trainer_pod(loan.stage_job)
    loan.engine_says(loan.status())
    loan.put(loan.lent_pod(), ready=False)
    loan.engine_says(loan.status(31))  # its drain timeout is over
    if told:
        loan.builder.report(loan.lent_pod(), 0, draining=True, quiet=5, **told)
    assert loan.plan_job(60).bind == ()
    assert states(loan.plan_engine(60)) == [SERVING, SLEEPING]


def test_engine_does_not_sleep_ends_the_claim_and_slot_wakes() -> None:
    loan = SleepingLoan()
    loan.drain()
    loan.engine_says(loan.status(1))
    why = "vLLM sleeps, but 16.0 of 80.0 GiB of GPU 0 are in use; at most 14.4 may be."
    loan.builder.report(loan.lent_pod(), 0, draining=True, quiet=5, at=NOW + timedelta(seconds=30), message=why)
    late = 1 + Limits().sleep.total_seconds()
    assert not loan.plan_job(late - 1).delete
    decision = loan.plan_job(late)
    assert decision.reason is Reason.ENGINE_DOES_NOT_SLEEP
    assert decision.message == f"chat/1 did not free its GPUs within 90 s: {why}"
    assert decision.delete == (loan.stage_job,)
    assert decision.record is not None
    loan.put(loan.stage_job, deleting=True)  # its pod is still gated: it has nothing
    assert states(loan.plan_engine(late)) == [SERVING, STARTING]


def test_node_is_avoided_after_engine_does_not_sleep() -> None:
    ended = AttemptOutcome(
        stage=Stage.TRAIN,
        attempt=1,
        reason=Reason.ENGINE_DOES_NOT_SLEEP,
        started_at=NOW - timedelta(minutes=3),
        ended_at=NOW - timedelta(minutes=2),
        node="n1",
    )
    builder = WorldBuilder()
    builder.dra_pool()
    for node in (builder.node(1), builder.node(1)):
        engine = builder.engine(f"on-{node.key.name}", 1, preemption={"policy": "Sleep", "minReplicas": 0})
        builder.slot(engine, 0, node.key.name)
    builder.job("a", outcomes=(PREPARED, ended))
    assert describe(allocated(builder)) == "a takes on-n2/0"
    assert describe(allocated(builder, NOW - timedelta(seconds=90))) == ""  # after a minute's pause


def test_slot_wakes_when_the_last_training_pod_is_gone() -> None:
    loan = SleepingLoan()
    loan.train()
    assert states(loan.plan_engine(4)) == [SERVING, LENT]
    loan.stop()
    decision = loan.plan_engine(5)
    assert (states(decision), loan.status(5).lent_to, decision.woken) == ([SERVING, LENT], ("team/a",), ())
    loan.put(loan.builder.world.pods[loan.pod.key], ended=True)
    decision = loan.plan_engine(6)
    assert states(decision) == [SERVING, STARTING]
    assert [slot.index for slot in decision.woken] == [1]
    loan.engine_says(loan.status(6))
    assert not loan.plan_engine(7).woken


@pytest.mark.parametrize("case", ["the Job is gone", "the FineTuneJob is gone", "the status is lost"])
def test_trainer_without_an_owner_keeps_the_slot_asleep(case: str) -> None:
    loan = SleepingLoan()
    loan.train()
    loan.stop()
    match case:
        case "the Job is gone":
            loan.builder.store.remove(loan.stage_job.key, loan.stage_job.uid)
        case "the FineTuneJob is gone":
            loan.builder.store.remove(job_key("team", "a"), loan.job.metadata.uid)
        case _:
            loan._write(loan.engine.model_copy(update={"status": InferenceEngineStatus()}))
    assert states(loan.plan_engine(5)) == [SERVING, LENT]
    pod = loan.builder.world.pods[loan.pod.key]
    loan.builder.store.remove(pod.key, pod.uid)
    assert states(loan.plan_engine(6)) == [SERVING, STARTING]


def test_uninstall_waits_until_the_slot_is_awake() -> None:
    """Afterwards no operator tells its agent to wake."""
    loan = SleepingLoan()
    loan.train()
    loan.builder.store.remove(loan.stage_job.key, loan.stage_job.uid)
    loan.engine_says(loan.status(5))
    assert missing(loan.builder.world)["engines"]
    loan.builder.store.remove(loan.pod.key, loan.pod.uid)
    loan.engine_says(loan.status(6))
    assert "engines" not in missing(loan.builder.world)


def test_trainer_without_an_owner_stops_no_serving_slot() -> None:
    loan = SleepingLoan()
    loan.train()
    loan.stop()
    loan.builder.store.remove(loan.stage_job.key, loan.stage_job.uid)
    assert states(loan.plan_engine(5))[0] is SERVING


@pytest.mark.parametrize("state", [SLEEPING, LENT, RECLAIMING])
def test_slot_stays_lent_beside_its_trainer_whatever_the_status(state: SlotState) -> None:
    loan = SleepingLoan()
    loan.train()
    loan.says(state, pod="another")
    loan.builder.report(loan.lent_pod(), 0, at=NOW + timedelta(seconds=4))
    assert states(loan.plan_engine(5)) == [SERVING, LENT]


def test_new_pod_of_a_lent_slot_stays_lent() -> None:
    """Its vLLM does not start while the status says Lent."""
    loan = SleepingLoan()
    loan.train()
    loan.put(loan.lent_pod(), deleting=True)
    new = loan.builder.slot(loan.engine, 1, "n1", ready=False)
    assert new is not None
    decision = loan.plan_engine(5)
    assert (states(decision), loan.status(5).slots[1].pod) == ([SERVING, LENT], new.key.name)


def test_next_job_takes_over_the_sleeping_slot() -> None:
    loan = SleepingLoan()
    loan.train()
    loan.put(loan.pod, ended=True, running=False)
    loan.put(loan.stage_job, finished="Complete", finished_at=NOW + timedelta(seconds=4))
    done = AttemptOutcome(stage=Stage.TRAIN, attempt=1, reason=Reason.DONE, ended_at=NOW + timedelta(seconds=4))
    loan.builder.version += 1
    metadata = loan.job.metadata.model_copy(
        update={
            "resource_version": str(loan.builder.version),
            "annotations": {"sluice.dev/outcomes": _outcomes(PREPARED, done)},
        }
    )
    loan.builder.put(loan.job.model_copy(update={"metadata": metadata}))
    loan.builder.job("b")
    at = NOW + timedelta(seconds=5)
    assert describe(allocated(loan.builder, at)) == "b takes chat/1"
    decision = loan.plan_engine(5)
    assert (states(decision), loan.status(5).lent_to, decision.woken) == ([SERVING, LENT], ("team/b",), ())
    pool = find_pool(loan.builder.world, "default")
    assert pool
    claim = allocate_fenced(loan.builder.world, pool, at).claims[job_key("team", "b")]
    stage_job = loan.builder.stage_job(loan.builder.world.jobs[job_key("team", "b")], claim=claim, created=at)
    assert states(loan.plan_engine(6)) == [SERVING, LENT]  # proving: it sleeps on
    loan.builder.trainer_pod(stage_job)
    assert states(loan.plan_engine(7)) == [SERVING, LENT]


def _outcomes(*attempts: AttemptOutcome) -> str:
    return Outcomes(attempts=attempts).to_json()


def test_slot_that_a_trainer_still_uses_is_not_lent_on() -> None:
    loan = SleepingLoan()
    loan.train()
    loan.stop()
    loan.builder.job("b", scheduling={"policy": "Preempt", "priority": 5})
    assert "b waits" in describe(allocated(loan.builder, NOW + timedelta(seconds=5)))
    assert not can_sleep(loan.builder.world, loan.engine, 1)
    loan.put(loan.builder.world.pods[loan.pod.key], ended=True)
    assert can_sleep(loan.builder.world, loan.engine, 1)


def test_cool_down_holds_for_policy_sleep() -> None:
    builder = WorldBuilder()
    builder.dra_pool()
    builder.node(1)
    engine = builder.engine("chat", 1, preemption={"policy": "Sleep", "minReplicas": 0})
    builder.slot(engine, 0, "n1")
    (slot,) = builder.world.slots.values()
    builder.version += 1
    builder.put(replace(slot, resource_version=builder.version, restarted_at=NOW - timedelta(seconds=10)))
    builder.job("a")
    assert describe(allocated(builder)) == "a waits EngineCoolsDown"
    assert describe(allocated(builder, NOW + timedelta(seconds=51))) == "a takes chat/0"


def test_reclaim_on_demand_takes_a_sleeping_slot_back() -> None:
    loan = SleepingLoan(terms={"reclaim": Reclaim.ON_DEMAND, "reclaim_above": 4})
    loan.train()
    chat_0 = loan.serving[0]
    assert chat_0
    loan.builder.report(chat_0, 50)
    loan.builder.store.findings.report(chat_0.uid, replace(loan.builder.world.reports[chat_0.uid], load=50.0))
    decision = loan.plan_engine(5)
    assert states(decision) == [SERVING, RECLAIMING]
    assert loan.status(5).lent == 1
    loan.engine_says(loan.status(5))
    step = loan.plan_job(6)
    assert (step.reason, step.delete) == (Reason.RECLAIMED, (loan.stage_job,))
    assert states(loan.plan_engine(6)) == [SERVING, RECLAIMING]


def test_rollout_waits_for_return_of_a_sleeping_slot() -> None:
    loan = SleepingLoan()
    loan.train()
    loan.respec(serving=loan.engine.spec.serving.model_copy(update={"dtype": "float16"}))
    loan.put_slot(0, template=template_of(loan.engine))
    decision = loan.plan_engine(5)
    assert not decision.apply
    assert loan.status(5).conditions[0].reason == Reason.ROLLOUT_WAITS_FOR_RETURN
    loan.stop()
    loan.put(loan.builder.world.pods[loan.pod.key], ended=True)
    assert [plan.index for plan in loan.plan_engine(6).apply] == [1]
