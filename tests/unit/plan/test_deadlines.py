"""Each batch/v1 Job has a deadline of its own, which ends it while no operator runs."""

from datetime import timedelta

import pytest

from sluice_api.claim import AttemptOutcome
from sluice_api.reasons import Reason
from sluice_api.stages import Stage, StageOutcome, TrainResult
from sluice_operator.facts.outcomes import recorded
from sluice_operator.observe.views import Termination
from sluice_operator.plan.deadlines import job_deadline
from sluice_operator.settings import Limits
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, change, decide

TRAINED = AttemptOutcome(stage=Stage.TRAIN, attempt=1, reason="Done", ended_at=NOW)


def trained(attempt: int, begin: float, end: float) -> AttemptOutcome:
    """An attempt that was told to stop."""
    return AttemptOutcome(
        stage=Stage.TRAIN,
        attempt=attempt,
        reason="Requeued",
        started_at=NOW + timedelta(seconds=begin),
        ended_at=NOW + timedelta(seconds=end),
    )


@pytest.mark.parametrize(
    ("rule", "stage", "outcomes", "seconds"),
    [
        ("all that it may train, and a moment in which the operator ends it itself", Stage.TRAIN, (), 160),
        ("what is left of it", Stage.TRAIN, (trained(1, 0, 40), trained(2, 50, 60)), 110),
        ("in whole seconds", Stage.TRAIN, (trained(1, 0, 39.5),), 121),
        ("preparing has a limit of its own", Stage.PREPARE, (trained(1, 0, 40),), 1800),
        ("and so has the export", Stage.EXPORT, (trained(1, 0, 40),), 1800),
    ],
)
def test_batch_job_has_active_or_stage_deadline_seconds(
    rule: str, stage: Stage, outcomes: tuple[AttemptOutcome, ...], seconds: int
) -> None:
    job = WorldBuilder().job("a", outcomes=outcomes, activeDeadlineSeconds=100, stageDeadlineSeconds=1800)
    assert job_deadline(job, recorded(job), stage) == seconds, rule


@pytest.mark.parametrize(
    ("rule", "stage", "told", "reason", "says"),
    [
        ("it says nothing", Stage.TRAIN, None, Reason.DEADLINE_EXCEEDED, "after 100 s (spec.activeDeadlineSeconds"),
        ("it was told to stop", Stage.TRAIN, Reason.REQUEUED, Reason.DEADLINE_EXCEEDED, "Training has not ended"),
        ("it was done all the same", Stage.TRAIN, Reason.DONE, None, ""),
        ("in Prepare", Stage.PREPARE, None, Reason.DEADLINE_EXCEEDED, "after 1800 s (spec.stageDeadlineSeconds)"),
    ],
)
def test_deadline_exceeded_by_the_job_controller_is_recorded(
    rule: str, stage: Stage, told: Reason | None, reason: Reason | None, says: str
) -> None:
    builder = WorldBuilder()
    builder.node(1)
    outcomes = (PREPARED,) if stage is Stage.TRAIN else ()
    job = builder.job("a", outcomes=outcomes, activeDeadlineSeconds=100, stageDeadlineSeconds=1800)
    claim = builder.claim("n1") if stage is Stage.TRAIN else None
    failure = "DeadlineExceeded: Job was active longer than specified deadline"
    stage_job = builder.stage_job(job, stage, claim=claim, finished="Failed", failure=failure, finished_at=NOW)
    if told:
        words = StageOutcome(reason=told, train=TrainResult(step=7, total_steps=9, checkpoint_step=7)).to_json()
        end = Termination(0 if told is Reason.DONE else 75, "", words, NOW)
        builder.trainer_pod(stage_job, "n1", ended=True, running=False, termination=end)
    decision = decide(builder, "a")
    assert (decision.reason if decision.failed else None) == reason, rule
    assert says in decision.message
    if told:
        assert decision.record is not None
        assert decision.record.of(stage)[-1].checkpoint_step == 7, "its last words count"


@pytest.mark.parametrize(("stage", "done"), [(Stage.PREPARE, ()), (Stage.EXPORT, (PREPARED, TRAINED))])
def test_cpu_stage_suspended_by_other_says_so(stage: Stage, done: tuple[AttemptOutcome, ...]) -> None:
    """Its Job's own deadline does not count meanwhile. Seen elsewhere: kueue#2277, kueue#7649."""
    builder = WorldBuilder()
    job = builder.job("a", outcomes=done)
    stage_job = builder.stage_job(job, stage, created=NOW - timedelta(seconds=30))
    change(builder, stage_job, suspended=True)
    told = decide(builder, "a")
    assert (told.reason, told.delete) == (Reason.SUSPENDED_BY_OTHER, ())
    assert stage_job.key.name in told.message
    late = decide(builder, "a", NOW + Limits().start)
    assert late.record is not None
    assert late.record.attempts[-1].reason == Reason.SUSPENDED_BY_OTHER
    assert late.delete == (builder.world.stage_jobs[stage_job.key],)
