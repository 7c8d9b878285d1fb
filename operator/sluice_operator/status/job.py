"""A job's status, made from the decision about it: conditions say its state, the rest repeats details for readers."""

from datetime import datetime

from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.conditions import Condition, ConditionStatus, JobCondition, condition
from sluice_api.data_summary import Data
from sluice_api.finetunejob import (
    MOST_ATTEMPTS,
    Allocation,
    AttemptRecord,
    BorrowedSlot,
    FineTuneJob,
    FineTuneJobStatus,
    InterruptionRecord,
    QueuePlace,
    Result,
)
from sluice_api.quantity import decimal, readable
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.claims import LiveClaim, ends_at
from sluice_operator.facts.live_claims import live_claims_of
from sluice_operator.facts.outcomes import all_outcomes, done, waits_since
from sluice_operator.facts.retries import after, attempts_that_ran
from sluice_operator.observe.world import World
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.plan.obstacle import Wait
from sluice_operator.plan.pool.waiting import settled

_ORDER = tuple(JobCondition)


def job_status(world: World, job: FineTuneJob, decision: JobDecision, now: datetime) -> FineTuneJobStatus:
    """The status that follows from a decision. It leaves out progress, which has another writer."""
    outcomes = decision.record or all_outcomes(world, job)
    trained = outcomes.of(Stage.TRAIN)
    over = decision.failed or decision.reason is Reason.SUCCEEDED
    started = min((a.started_at for a in trained if a.started_at), default=None)
    live = next(iter(live_claims_of(world, job)), None)
    attempts = tuple(_record(trained, index) for index in range(len(trained)))
    return FineTuneJobStatus(
        observed_generation=job.metadata.generation,
        conditions=_conditions(job, decision, outcomes, now),
        summary=decision.reason,
        attempt=max([a.attempt for a in trained] + ([live.stage_job.attempt] if live else []), default=0),
        attempts=attempts[-MOST_ATTEMPTS:],
        interruptions=tuple(
            _interruption(outcome, record)
            for outcome, record in zip(trained, attempts, strict=True)
            if after(outcome.reason).gave_way
        )[-MOST_ATTEMPTS:],
        queue=_queue(job, decision.wait, now),
        allocation=_allocation(job, live, now) if live and not over else None,
        data=_data(outcomes),
        result=_result(outcomes),
        started_at=job.status.started_at or started or (live.stage_job.created if live else None),
        finished_at=(job.status.finished_at or now) if over else None,
    )


def _queue(job: FineTuneJob, wait: Wait | None, now: datetime) -> QueuePlace | None:
    if wait is None or not wait.position:
        return None
    before = job.status.queue.estimated_start if job.status.queue else None
    return QueuePlace(
        position=wait.position, since=waits_since(job), estimated_start=settled(before, wait.starts_at, now)
    )


def _allocation(job: FineTuneJob, live: LiveClaim, now: datetime) -> Allocation:
    before = job.status.allocation.expected_return if job.status.allocation else None
    return Allocation(
        nodes=tuple(place.node for place in live.claim.places),
        gpus=live.claim.all_gpus,
        borrowed=tuple(BorrowedSlot(engine=f"{s.namespace}/{s.engine}", slot=s.index) for s in live.claim.borrowed),
        beside=f"{host.engine}/{host.index}" if (host := live.claim.host) else "",
        expected_return=settled(before, ends_at(live), now),
    )


def _conditions(job: FineTuneJob, decision: JobDecision, outcomes: Outcomes, now: datetime) -> tuple[Condition, ...]:
    """Conditions before the decision's `at` are True, that one says what is going on, and those after it are Unknown.

    A condition that is True has nothing to say, but for Prepared: it has the first problems of the data.

    Succeeded always shows the decision's reason and message, so that one condition tells how the job is.
    """
    place = _ORDER.index(decision.at)
    found = []
    for index, kind in enumerate(_ORDER):
        if kind is JobCondition.PUBLISHED and job.spec.publish is None:
            continue
        status: ConditionStatus
        if decision.reason is Reason.SUCCEEDED or index < place:
            status, reason, message = "True", Reason.DONE, _problems(outcomes) if kind is JobCondition.PREPARED else ""
        elif index == place or (kind is JobCondition.SUCCEEDED and decision.failed):
            status, reason, message = "False", decision.reason, decision.message
        else:
            status, reason, message = "Unknown", Reason.PENDING, ""
        if kind is JobCondition.SUCCEEDED and not decision.failed:
            status = "True" if decision.reason is Reason.SUCCEEDED else "Unknown"
            reason, message = decision.reason, decision.message
        found.append(condition(job.status.conditions, kind, status, reason, message, job.metadata.generation, now))
    return tuple(found)


def _record(attempts: tuple[AttemptOutcome, ...], index: int) -> AttemptRecord:
    attempt = attempts[index]
    return AttemptRecord(
        attempt=attempt.attempt,
        reason=attempt.reason[:256],
        message=attempt.message[:1024],
        step=attempt.step,
        resumed_from=attempt.train.resumed_from if attempt.train else None,
        lost_steps=_lost_steps(attempt, next(iter(attempts_that_ran(attempts[index + 1 :])), None)),
    )


def _lost_steps(attempt: AttemptOutcome, following: AttemptOutcome | None) -> int | None:
    """Steps of an attempt that were not saved; None while that is not known.

    An attempt that Sluice stops is recorded first, and saves its state after that. What it had saved by then is no
    answer: the next attempt says from which step it went on.

    Args:
        following: the next attempt that had its GPUs.
    """
    if attempt.reason == Reason.DONE or not attempt.step:
        return 0
    if following and following.train:
        return max(0, attempt.step - (following.train.resumed_from or 0))
    if attempt.train is None and after(attempt.reason).stopped:
        return None
    return max(0, attempt.step - (attempt.checkpoint_step or 0))


def _interruption(outcome: AttemptOutcome, record: AttemptRecord) -> InterruptionRecord:
    return InterruptionRecord(
        attempt=outcome.attempt,
        reason=record.reason,
        by=outcome.by[:256],
        at=outcome.ended_at,
        lost_steps=record.lost_steps,
    )


def _problems(outcomes: Outcomes) -> str:
    """The first problems that Prepare found in the data, which did not keep it from being trained on; may be empty."""
    outcome = done(outcomes, Stage.PREPARE)
    problems = outcome.prepare.problems if outcome and outcome.prepare else ()
    return "\n".join(problems)


def _data(outcomes: Outcomes) -> Data | None:
    outcome = done(outcomes, Stage.PREPARE)
    found = outcome.prepare if outcome else None
    if found is None:
        return None
    return Data(
        rows=found.rows,
        validation_rows=found.validation_rows,
        refused_rows=found.refused_rows,
        overlong_rows=found.overlong_rows,
        dropped_rows=found.dropped_rows,
        duplicate_rows=found.duplicate_rows,
        conflicting_questions=found.conflicting_questions,
        tokens=found.tokens,
        loss_tokens=found.loss_tokens,
        longest_row=found.longest_row,
        steps=found.steps,
        estimated_gpu_memory=readable("memory", memory) if (memory := found.estimated_gpu_memory_bytes) else "",
        estimated_seconds=found.estimated_seconds,
        estimated_price=found.estimated_price,
    )


def _result(outcomes: Outcomes) -> Result | None:
    trained, exported = done(outcomes, Stage.TRAIN), done(outcomes, Stage.EXPORT)
    before = trained.train.evaluation_loss_before if trained and trained.train else None
    after = trained.train.evaluation_loss_after if trained and trained.train else None
    if trained is None:
        return None
    export = exported.export if exported else None
    return Result(
        uri=export.uri if export else "",
        digest=export.digest if export else "",
        evaluation_loss_before=decimal(before, 4) if before is not None else "",
        evaluation_loss_after=decimal(after, 4) if after is not None else "",
    )
