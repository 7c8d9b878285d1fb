"""The five steps of a claim, each read off what is there: prove, drain, bind, train, give back."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.claim import AttemptOutcome, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus, SlotState, SlotStatus
from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode, Stage, StageOutcome, TrainResult
from sluice_operator.observe.views import NodeView, PodView, StageJobView, Termination
from sluice_operator.observe.world import engine_key, job_key
from sluice_operator.plan.engine.decide import EngineDecision, plan_engine
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.settings import Limits
from tests.unit.plan.worlds import GPU, NOW, PREPARED, WorldBuilder, allocated, describe, planned_status

CHAT_1 = SlotRef(namespace="team", engine="chat", index=1)


class Loan:
    """An engine of two replicas on a node of two GPUs, and a job that has claimed the second."""

    def __init__(self, **job: Any) -> None:
        self.builder = WorldBuilder()
        self.builder.node(2)
        self.engine_ = self.builder.engine(
            "chat", 2, preemption={"policy": "ScaleDown", "minReplicas": 1, "drainTimeoutSeconds": 30}
        )
        self.serving = [self.builder.slot(self.engine_, index, "n1") for index in (0, 1)]
        self.builder.job("a", **job)
        self.stage_job = self.builder.stage_job(
            self.job, claim=self.builder.claim("n1", CHAT_1), created=NOW - timedelta(seconds=1)
        )

    @property
    def job(self) -> FineTuneJob:
        return self.builder.world.jobs[job_key("team", "a")]

    @property
    def engine(self) -> InferenceEngine:
        return self.builder.world.engines[engine_key("team", "chat")]

    def lent_pod(self) -> PodView:
        pod = self.serving[1]
        assert pod is not None
        return pod

    def plan_job(self, after: float = 0, refused: str = "") -> JobDecision:
        return plan_job(self.builder.world, self.job, NOW + timedelta(seconds=after), Limits(), None, refused)

    def plan_engine(self, after: float = 0) -> EngineDecision:
        return plan_engine(self.builder.world, self.engine, NOW + timedelta(seconds=after))

    def status(self, after: float = 0) -> InferenceEngineStatus:
        return planned_status(self.builder.world, self.engine, NOW + timedelta(seconds=after))

    def put(self, view: PodView | StageJobView, **changes: Any) -> None:
        self.builder.version += 1
        self.builder.put(replace(view, resource_version=self.builder.version, **changes))

    def engine_says(self, status: InferenceEngineStatus) -> None:
        """The engine's status as the API server has it once the decision is written."""
        self.builder.version += 1
        metadata = self.engine.metadata.model_copy(update={"resource_version": str(self.builder.version)})
        self.builder.put(self.engine.model_copy(update={"status": status, "metadata": metadata}))

    def drain(self) -> None:
        """The trainer's pod is gated, the engine has been told, the slot is out of the endpoints and idle."""
        self.pod = self.builder.trainer_pod(self.stage_job)
        self.engine_says(self.status())
        self.put(self.lent_pod(), ready=False)
        self.builder.report(self.lent_pod(), 0, draining=True, quiet=5)


def _removed(loan: Loan, node: NodeView) -> None:
    loan.builder.store.remove(node.key, node.uid)


def states(decision: EngineDecision) -> list[SlotState]:
    return [slot.state for slot in decision.slots]


def test_drain_waits_for_the_training_pod() -> None:
    loan = Loan()
    assert loan.plan_job().reason is Reason.CLAIMED
    assert states(loan.plan_engine()) == [SlotState.SERVING, SlotState.SERVING]


def test_claim_with_a_refused_pod_ends_without_drain() -> None:
    loan = Loan()
    decision = loan.plan_job(after=5, refused="exceeded quota: team, requested: memory=8Gi")
    assert decision.reason is Reason.QUOTA_EXCEEDED
    assert "exceeded quota: team" in decision.message
    assert states(loan.plan_engine(after=5)) == [SlotState.SERVING, SlotState.SERVING]
    assert decision.delete == (loan.stage_job,), "others may have the GPUs as soon as the refusal is known"
    assert not loan.plan_job(after=5).delete, "nobody has said yet why there is no pod"
    assert loan.plan_job(after=70).delete == (loan.stage_job,)


@pytest.mark.parametrize(
    ("case", "break_it"),
    [
        ("another queueing system suspended the Job", lambda loan: loan.put(loan.stage_job, suspended=True)),
        ("the node is short of memory", lambda loan: loan.builder.stranger("n1", 0, memory=63 << 30)),
        ("an older claim has the GPU", lambda loan: _rival(loan, term=2)),
    ],
)  # fmt: skip
def test_claim_that_fails_preflight_stops_no_slot(case: str, break_it: Callable[[Loan], object]) -> None:
    loan = Loan()
    loan.builder.trainer_pod(loan.stage_job)
    assert states(loan.plan_engine()) == [SlotState.SERVING, SlotState.DRAINING]
    break_it(loan)
    assert loan.plan_job().reason is not Reason.DRAINING, case
    assert not loan.plan_job().bind, case
    assert loan.plan_engine().stop == (), case


def test_drain_waits_until_the_watch_has_seen_the_claim() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 2, preemption={"policy": "ScaleDown", "minReplicas": 1})
    for index in (0, 1):
        builder.slot(engine, index, "n1")
    stage_job = builder.stage_job(builder.job("a"), claim=builder.claim("n1", CHAT_1), seen=False)
    builder.trainer_pod(stage_job)
    assert states(plan_engine(builder.world, engine, NOW)) == [SlotState.SERVING, SlotState.SERVING]
    builder.put(stage_job)
    assert states(plan_engine(builder.world, engine, NOW)) == [SlotState.SERVING, SlotState.DRAINING]


def _rival(loan: Loan, term: int) -> StageJobView:
    """A claim on the same slot by the leader of another term."""
    other = loan.builder.job("rival")
    loan.builder.store.findings.term = max(loan.builder.store.findings.term, term)
    return loan.builder.stage_job(other, claim=loan.builder.claim("n1", CHAT_1, term=term), created=NOW)


def test_overlapping_claim_of_the_older_term_is_deleted() -> None:
    loan = Loan()
    loan.builder.trainer_pod(loan.stage_job)
    _rival(loan, term=2)
    assert loan.plan_job().delete == (loan.stage_job,)


def test_overlapping_claim_of_the_newer_term_stays() -> None:
    loan = Loan()
    loan.builder.trainer_pod(loan.stage_job)
    _rival(loan, term=0)
    assert loan.plan_job().delete == ()
    assert loan.plan_job().reason is Reason.DRAINING


def test_proven_claim_drains_its_own_slot_only() -> None:
    loan = Loan()
    loan.builder.trainer_pod(loan.stage_job)
    decision = loan.plan_engine()
    assert states(decision) == [SlotState.SERVING, SlotState.DRAINING]
    assert decision.stop == ()
    assert loan.plan_job().reason is Reason.DRAINING
    assert "chat/1" in loan.plan_job().message


@pytest.mark.parametrize(
    ("case", "ready", "in_flight", "told", "quiet", "seconds", "binds"),
    [
        ("idle, out of the endpoints and told", False, 0, True, 5.0, 1, True),
        ("still in the endpoints", True, 0, True, 5.0, 1, False),
        ("a request in flight", False, 1, True, 5.0, 1, False),
        ("its agent has not seen the order", False, 0, False, 5.0, 1, False),
        ("a request began a moment ago", False, 0, True, 0.2, 1, False),
        ("its time is over", True, 7, True, 0.0, 31, True),
    ],
)
def test_drain_ends_when_idle_or_after_drain_timeout_seconds(
    case: str, ready: bool, in_flight: int, told: bool, quiet: float, seconds: float, binds: bool
) -> None:
    loan = Loan()
    loan.builder.trainer_pod(loan.stage_job)
    loan.engine_says(loan.status())
    loan.put(loan.lent_pod(), ready=ready)
    loan.builder.report(loan.lent_pod(), in_flight, draining=told, quiet=quiet)
    assert bool(loan.plan_job(after=seconds).bind) is binds, case


def test_drain_that_began_in_the_future_begins_now() -> None:
    """A clock was ahead. Until then no report would be newer than the order, and the drain would not time out."""
    loan = Loan()
    loan.builder.trainer_pod(loan.stage_job)
    loan.engine_says(loan.status(after=3600))
    loan.engine_says(loan.status(after=1))
    assert {slot.since for slot in loan.engine.status.slots} == {NOW + timedelta(seconds=1)}
    assert loan.plan_job(after=32).bind


def test_slot_stops_after_the_trainer_is_ungated_and_nominated() -> None:
    loan = Loan()
    loan.drain()
    decision = loan.plan_job()
    assert (decision.reason, decision.bind) == (Reason.BINDING, ((loan.pod, "n1"),))
    assert loan.plan_engine().stop == ()
    loan.put(loan.pod, gates=(), bound_at=NOW)
    assert loan.plan_engine().stop == (), "ungated but not nominated: strangers would win the GPU"
    assert loan.plan_job().bind, "the nomination is made up for after a crash between the two writes"
    loan.put(loan.pod, gates=(), bound_at=NOW, nominated_node="n1")
    assert [slot.index for slot in loan.plan_engine().stop] == [1]
    assert loan.plan_job().reason is Reason.BINDING


def test_not_bound_ends_the_claim_and_the_node_is_avoided() -> None:
    loan = Loan()
    loan.drain()
    loan.put(loan.pod, gates=(), bound_at=NOW, nominated_node="n1", unschedulable="0/1 nodes: too many pods")
    decision = loan.plan_job(after=61)
    assert decision.delete == (loan.stage_job,)
    assert "too many pods" in decision.message
    assert decision.record is not None
    assert decision.record.of(Stage.TRAIN)[-1].reason == Reason.NOT_BOUND
    again = WorldBuilder()
    again.node(1)
    again.job("a", outcomes=decision.record.attempts)
    later = NOW + timedelta(seconds=61 + 15)
    assert describe(allocated(again, later)) == "a waits NodeAvoided"
    assert describe(allocated(again, NOW + timedelta(minutes=7))) == "a takes n1"


def training(loan: Loan) -> PodView:
    loan.put(loan.lent_pod(), ended=True, ready=False)
    slot = next(s for s in loan.builder.world.slots.values() if s.index == 1)
    loan.builder.version += 1
    loan.builder.put(replace(slot, size=0, resource_version=loan.builder.version))
    return loan.builder.trainer_pod(loan.stage_job, "n1")


def test_replica_is_lent_while_its_borrower_trains() -> None:
    loan = Loan()
    training(loan)
    status = loan.status()
    assert (status.lent, status.ready) == (1, "1/2")
    assert loan.plan_job().reason is Reason.TRAINING


@pytest.mark.parametrize(
    ("case", "end"),
    [
        ("it is complete", lambda loan, pod: _end(loan, pod, 0, StageOutcome(
            reason="Done", train=TrainResult(step=30, total_steps=30)))),
        ("it ran out of memory", lambda loan, pod: _end(loan, pod, 65, StageOutcome(reason="OutOfMemory"))),
        ("it was suspended", lambda loan, pod: _respec(loan, suspend=True)),
        ("it was deleted", lambda loan, pod: loan.builder.store.remove(job_key("team", "a"), loan.job.metadata.uid)),
        ("its node is gone", lambda loan, pod: _removed(loan, loan.builder.nodes[0])),
    ],
)  # fmt: skip
def test_loan_ends_with_its_attempt_job_or_node(case: str, end: Callable[[Loan, PodView], object]) -> None:
    loan = Loan()
    pod = training(loan)
    end(loan, pod)
    assert loan.status(after=1).lent == 0, case


def _respec(loan: Loan, **spec: Any) -> None:
    loan.builder.version += 1
    metadata = loan.job.metadata.model_copy(update={"resource_version": str(loan.builder.version)})
    loan.builder.put(loan.job.model_copy(update={"spec": loan.job.spec.model_copy(update=spec), "metadata": metadata}))


def _end(loan: Loan, pod: PodView, code: int, told: StageOutcome | None) -> None:
    ended_at = NOW + timedelta(seconds=1)
    loan.put(
        pod, ended=True, running=False, termination=Termination(code, "", told.to_json() if told else "", ended_at)
    )
    loan.put(loan.stage_job, finished="Failed" if code else "Complete", finished_at=ended_at)


def test_requeued_attempt_hands_its_claim_to_the_next() -> None:
    loan = Loan()
    pod = training(loan)
    told = StageOutcome(reason="Requeued", train=TrainResult(step=12, total_steps=30, checkpoint_step=12))
    _end(loan, pod, ExitCode.REQUEUE, told)
    decision = loan.plan_job(after=2)
    assert decision.start is not None
    assert (decision.start.attempt, decision.start.claim) == (2, loan.stage_job.claim)
    assert decision.record is not None
    assert decision.record.of(Stage.TRAIN)[-1].checkpoint_step == 12
    assert loan.status(after=2).lent == 1, "the engine does not grow in between"
    assert describe(allocated(loan.builder)) == "", "and nobody else is given the GPU"


def test_claim_stays_until_the_outcome_is_read() -> None:
    loan = Loan()
    training(loan)
    loan.put(loan.stage_job, finished="Failed", finished_at=NOW)
    assert loan.plan_job(after=1).start is None
    assert loan.status(after=1).lent == 1


def test_vanished_trainer_is_pod_lost_and_tried_again() -> None:
    loan = Loan()
    pod = training(loan)
    loan.builder.store.remove(pod.key, pod.uid)
    loan.put(loan.stage_job, finished="Failed", finished_at=NOW)
    decision = loan.plan_job(after=1)
    assert decision.start is not None
    assert decision.record is not None
    assert decision.record.of(Stage.TRAIN)[-1].reason == Reason.POD_LOST


def test_vanished_trainer_with_exit_code_75_is_requeued() -> None:
    """It was told to stop while no operator ran. Its pod is gone; the Job's condition has the exit code."""
    loan = Loan()
    pod = training(loan)
    loan.builder.store.remove(pod.key, pod.uid)
    words = "PodFailurePolicy: Container trainer for pod team/a-1 failed with exit code 75 matching FailJob rule"
    loan.put(loan.stage_job, finished="Failed", finished_at=NOW, failure=words)
    decision = loan.plan_job(after=1)
    assert decision.start is not None
    assert decision.record is not None
    assert decision.record.of(Stage.TRAIN)[-1].reason == Reason.REQUEUED


def test_attempts_exhausted_fails_the_job() -> None:
    lost = [
        AttemptOutcome(stage=Stage.TRAIN, attempt=n, reason="PodLost", message="Gone.", ended_at=NOW, started_at=NOW)
        for n in (1, 2)
    ]
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=(PREPARED, *lost), retry={"attempts": 2})
    decision = plan_job(builder.world, job, NOW, Limits())
    assert (decision.failed, decision.reason) == (True, Reason.ATTEMPTS_EXHAUSTED)
    assert decision.message == (
        "Train has failed 2 times, as often as spec.retry.attempts allows. The last time: PodLost: Gone. Mend that, "
        "and create the job again."
    )
    assert describe(allocated(builder)) == ""


def test_terminating_trainer_keeps_its_gpu() -> None:
    loan = Loan()
    pod = training(loan)
    _respec(loan, suspend=True)
    loan.put(pod, deleting=True)
    decision = loan.plan_engine()
    assert [slot.state for slot in decision.slots] == [SlotState.SERVING, SlotState.WAITING]
    assert decision.apply == ()
    loan.put(pod, ended=True)
    assert [plan.index for plan in loan.plan_engine().apply] == [1]


@pytest.mark.parametrize(
    ("case", "replicas", "lent", "expected"),
    [
        ("an autoscaler that asks for more gets what GPUs allow", 3, 1, {0: 1, 1: 0, 2: 0}),
        ("who scales down keeps the one that serves", 1, 1, {0: 1, 1: 0}),
        ("who scales down keeps the one that serves, whatever its index", 1, 0, {0: 0, 1: 1}),
    ],
)
def test_replicas_are_changed_during_a_loan(case: str, replicas: int, lent: int, expected: dict[int, int]) -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", replicas, preemption={"policy": "ScaleDown", "minReplicas": 1})
    for index in (0, 1):
        builder.slot(engine, index, "" if index == lent else "n1", size=0 if index == lent else 1)
    job = builder.job("a")
    borrowed = SlotRef(namespace="team", engine="chat", index=lent)
    builder.trainer_pod(builder.stage_job(job, claim=builder.claim("n1", borrowed)), "n1")
    decision = plan_engine(builder.world, engine, NOW)
    sizes = {slot.index: int(slot.state in {SlotState.SERVING, SlotState.STARTING}) for slot in decision.slots}
    assert sizes == expected, case
    assert decision.stop == ()
    assert all(slot.index == lent or slot.index in expected for slot in decision.remove)


def test_lost_engine_status_changes_no_decision() -> None:
    loan = Loan()
    training(loan)
    loan.engine_says(loan.status())
    before = loan.plan_engine()
    loan.builder.version += 1
    blank = loan.engine.model_copy(
        update={
            "status": type(loan.engine.status)(slots=(SlotStatus(index=1, state=SlotState.SERVING),)),
            "metadata": loan.engine.metadata.model_copy(update={"resource_version": str(loan.builder.version)}),
        }
    )
    loan.builder.put(blank)
    after = loan.plan_engine()
    assert (before.apply, before.stop, before.remove) == (after.apply, after.stop, after.remove)
    assert loan.plan_job().reason is Reason.TRAINING


def test_gpu_of_a_claim_and_its_slot_counts_once() -> None:
    loan = Loan()
    loan.builder.trainer_pod(loan.stage_job)
    loan.builder.job("b", scheduling={"policy": "Queue"})
    assert describe(allocated(loan.builder)) == "b waits WaitingForGPUs"
    assert loan.builder.nodes[0].allocatable[GPU] == 2
