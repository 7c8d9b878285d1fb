"""How long a job may train, and how long it may wait for its first GPUs."""

from datetime import UTC, datetime, timedelta
from math import ceil
from typing import NamedTuple

from sluice_api.claim import Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.plan.facts.outcomes import deadline_of, done, had_theirs


def training_ends(job: FineTuneJob, outcomes: Outcomes, since: datetime) -> datetime:
    """When activeDeadlineSeconds are over for an attempt that was given its GPUs at a moment, and runs."""
    return since + timedelta(seconds=job.spec.active_deadline_seconds) - _spent(outcomes)


_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)
GRACE = timedelta(seconds=60)
"""So much longer a training Job's own deadline is than the job's: an operator that runs ends it first, in its words."""


def job_deadline(job: FineTuneJob, outcomes: Outcomes, stage: Stage) -> int:
    """activeDeadlineSeconds of a batch/v1 Job that is about to be made: it ends though no operator runs.

    The Job controller counts from when it begins, with the time that pods wait at their gate, and anew if somebody
    suspends the Job and resumes it.
    """
    if stage is not Stage.TRAIN:
        return job.spec.stage_deadline_seconds
    left = timedelta(seconds=job.spec.active_deadline_seconds) - _spent(outcomes) + GRACE
    return max(1, ceil(left.total_seconds()))


def _spent(outcomes: Outcomes) -> timedelta:
    """How long all attempts that have ended have trained."""
    trained = had_theirs(outcomes.of(Stage.TRAIN))
    return sum((a.ended_at - a.started_at for a in trained if a.started_at and a.ended_at), start=timedelta())


def waiting_ends(job: FineTuneJob, outcomes: Outcomes) -> datetime | None:
    """When queueDeadlineSeconds are over; None for a job that has no such limit, is not ready, or has had GPUs."""
    limit, prepared = job.spec.scheduling.queue_deadline_seconds, done(outcomes, Stage.PREPARE)
    if limit is None or prepared is None or prepared.ended_at is None or had_theirs(outcomes.of(Stage.TRAIN)):
        return None
    begins = max(prepared.ended_at, job.spec.scheduling.not_before or prepared.ended_at)
    return begins + timedelta(seconds=limit)


def warning(job: FineTuneJob, outcomes: Outcomes, since: datetime, expected: datetime | None) -> str:
    """What to say of training that is expected to end after its deadline; empty while it is in time."""
    end = training_ends(job, outcomes, since)
    if expected is None or expected <= end:
        return ""
    return (
        f" At this pace it is not done when spec.activeDeadlineSeconds ({job.spec.active_deadline_seconds}) are over "
        f"and it is stopped, {end:%Y-%m-%d %H:%M} UTC. Create it anew with more, or have it train less."
    )


class End(NamedTuple):
    """When a job's time is over, and what is said then."""

    at: datetime
    reason: Reason
    message: str


def time_ends(job: FineTuneJob, outcomes: Outcomes, since: datetime | None) -> End | None:
    """When a job's time is over; None for one that is trained, or waits without a limit.

    Args:
        since: when the attempt that runs now was given its GPUs.
    """
    if done(outcomes, Stage.TRAIN):
        return None
    if since:
        return End(training_ends(job, outcomes, since), Reason.DEADLINE_EXCEEDED, deadline_of(job, Stage.TRAIN))
    if _spent(outcomes) >= timedelta(seconds=job.spec.active_deadline_seconds):
        return End(_BEFORE_ALL, Reason.DEADLINE_EXCEEDED, deadline_of(job, Stage.TRAIN))
    end = waiting_ends(job, outcomes)
    if end is None:
        return None
    return End(
        end,
        Reason.QUEUE_DEADLINE_EXCEEDED,
        f"No GPUs for {job.spec.scheduling.queue_deadline_seconds} s (spec.scheduling.queueDeadlineSeconds). Raise "
        "it, raise scheduling.priority, or set scheduling.policy: Preempt.",
    )
