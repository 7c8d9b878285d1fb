"""When is a job's time to train, or to wait for GPUs, over (activeDeadlineSeconds, queueDeadlineSeconds)?"""

from datetime import UTC, datetime, timedelta
from math import ceil
from typing import NamedTuple

from sluice_api.claim import Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.outcomes import deadline_of, done
from sluice_operator.facts.retries import attempts_that_ran


def training_ends(job: FineTuneJob, outcomes: Outcomes, since: datetime) -> datetime:
    """When spec.activeDeadlineSeconds are over for a running attempt, less what earlier attempts have used of them.

    Args:
        since: when the attempt was given its GPUs.
    """
    return since + timedelta(seconds=job.spec.active_deadline_seconds) - _spent(outcomes)


BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


GRACE = timedelta(seconds=60)
"""How much later a training Job's own deadline is than its job's: a running operator ends it first, and says why."""


def job_deadline(job: FineTuneJob, outcomes: Outcomes, stage: Stage) -> int:
    """activeDeadlineSeconds of a batch/v1 Job that is about to be made. It ends the Job even if no operator runs.

    The Job controller counts from the Job's start, the time that pods wait at their gate included. It starts again from
    zero when the Job is suspended and resumed.
    """
    if stage is not Stage.TRAIN:
        return job.spec.stage_deadline_seconds
    left = timedelta(seconds=job.spec.active_deadline_seconds) - _spent(outcomes) + GRACE
    return max(1, ceil(left.total_seconds()))


def _spent(outcomes: Outcomes) -> timedelta:
    """How long all ended attempts together have trained."""
    trained = attempts_that_ran(outcomes.of(Stage.TRAIN))
    return sum((a.ended_at - a.started_at for a in trained if a.started_at and a.ended_at), start=timedelta())


def waiting_ends(job: FineTuneJob, outcomes: Outcomes) -> datetime | None:
    """When queueDeadlineSeconds are over; None if the job has no such limit, is not prepared, or has had GPUs."""
    limit, prepared = job.spec.scheduling.queue_deadline_seconds, done(outcomes, Stage.PREPARE)
    if limit is None or prepared is None or prepared.ended_at is None or attempts_that_ran(outcomes.of(Stage.TRAIN)):
        return None
    begins = max(prepared.ended_at, job.spec.scheduling.not_before or prepared.ended_at)
    return begins + timedelta(seconds=limit)


def warning(job: FineTuneJob, outcomes: Outcomes, since: datetime, expected: datetime | None) -> str:
    """What to add to the message if training is expected to end after its deadline; empty if it is in time.

    Args:
        expected: when training ends by the trainer's last report; None if that is not known.
    """
    end = training_ends(job, outcomes, since)
    if expected is None or expected <= end:
        return ""
    return (
        f" At this pace it is not done when spec.activeDeadlineSeconds ({job.spec.active_deadline_seconds}) are over "
        f"and it is stopped, {end:%Y-%m-%d %H:%M} UTC. Create it again with more, or have it train less."
    )


class End(NamedTuple):
    """When a job's time is over, and with what reason and message it then fails."""

    at: datetime
    reason: Reason
    message: str


def time_ends(job: FineTuneJob, outcomes: Outcomes, since: datetime | None) -> End | None:
    """When a job's time to train, or to wait for GPUs, is over; None if no such limit applies now.

    Args:
        since: when the attempt that runs now was given its GPUs; None if none runs.
    """
    if done(outcomes, Stage.TRAIN):
        return None
    if since:
        return End(training_ends(job, outcomes, since), Reason.DEADLINE_EXCEEDED, deadline_of(job, Stage.TRAIN))
    if _spent(outcomes) >= timedelta(seconds=job.spec.active_deadline_seconds):
        return End(BEFORE_ALL, Reason.DEADLINE_EXCEEDED, deadline_of(job, Stage.TRAIN))
    end = waiting_ends(job, outcomes)
    if end is None:
        return None
    return End(
        end,
        Reason.QUEUE_DEADLINE_EXCEEDED,
        f"No GPUs for {job.spec.scheduling.queue_deadline_seconds} s (spec.scheduling.queueDeadlineSeconds). Raise "
        "it, and the job waits on.",
    )
