"""When does a job want GPUs? Not while it is paused, suspended or not prepared, and never after it has failed.

The answers follow from the job's spec and its own past. Both the job's rules and the pool's decision ask for them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.outcomes import all_outcomes, done, recorded, waits_since
from sluice_operator.facts.retries import failures, is_final, next_attempt_at
from sluice_operator.observe.memo import once_a_record
from sluice_operator.observe.world import World
from sluice_operator.plan.deadlines import BEFORE_ALL, time_ends, waiting_ends
from sluice_operator.plan.obstacle import Obstacle


class Failure(NamedTuple):
    """Why a job has failed for good, and in which stage."""

    stage: Stage
    why: Obstacle


def final_failure(
    job: FineTuneJob, outcomes: Outcomes, now: datetime, training_since: datetime | None = None
) -> Failure | None:
    """Why a job has failed for good: a final end, too many failures, or a deadline; None if it has not."""
    for stage in Stage:
        ended = outcomes.of(stage)
        if not ended or any(outcome.reason == Reason.DONE for outcome in ended):
            continue
        last = ended[-1]
        if is_final(last):
            return Failure(stage, Obstacle(_reason(last), last.message))
        if failures(ended) >= job.spec.retry.attempts:
            times = failures(ended)
            message = (
                f"{stage} has failed {f'{times} times' if times > 1 else 'once'}, as often as spec.retry.attempts "
                f"allows. The last time: {last.reason}: {last.message} Mend that, and create the job again."
            )
            return Failure(stage, Obstacle(Reason.ATTEMPTS_EXHAUSTED, message))
    end = time_ends(job, outcomes, training_since)
    return Failure(Stage.TRAIN, Obstacle(end.reason, end.message)) if end and now >= end.at else None


def _reason(outcome: AttemptOutcome) -> Reason:
    """The outcome's reason if it is in the closed list; else TrainerFailed."""
    return Reason.known(outcome.reason) or Reason.TRAINER_FAILED


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a job wants GPUs, from when on, and until when."""

    obstacles: tuple[Obstacle, ...] = ()
    """Why it wants none, for good or until a moment."""
    ends: datetime | None = None
    """When the job fails for want of GPUs (spec.scheduling.queueDeadlineSeconds); None if it never does."""

    @property
    def begins(self) -> datetime | None:
        """When the last obstacle that ends by time is over; None if no obstacle does."""
        return max((obstacle.until for obstacle in self.obstacles if obstacle.until), default=None)

    def at(self, now: datetime) -> bool:
        """Whether the job wants GPUs at a moment."""
        held = any(obstacle.until is None or now < obstacle.until for obstacle in self.obstacles)
        return not held and (not self.ends or now < self.ends)


@once_a_record
def readiness(world: World, job: FineTuneJob) -> Readiness:
    """When a job wants GPUs."""
    outcomes = all_outcomes(world, job)
    found = next((obstacle for check in _CHECKS if (obstacle := check(job, outcomes))), None)
    if found is not None:
        return Readiness((found,))
    return Readiness(tuple(pauses(job, outcomes)), waiting_ends(job, outcomes))


def pauses(job: FineTuneJob, outcomes: Outcomes) -> Iterator[Obstacle]:
    """The obstacles that time alone ends: the pause after an attempt to train, and the job's notBefore."""
    if obstacle := pause(job, outcomes, Stage.TRAIN):
        yield obstacle
    if begins := job.spec.scheduling.not_before:
        message = f"Prepared. It asks for GPUs from {begins:%Y-%m-%d %H:%M:%S} UTC on (scheduling.notBefore)."
        yield Obstacle(Reason.NOT_BEFORE, message, begins)


def pause(job: FineTuneJob, outcomes: Outcomes, stage: Stage) -> Obstacle | None:
    """Why the next attempt of a stage does not follow the last one at once; None if it does, or is the first."""
    at = next_attempt_at(job, outcomes, stage)
    if at is None:
        return None
    last = outcomes.of(stage)[-1]
    message = (
        f"Attempt {last.attempt} ended: {last.message} The next one follows at {at:%H:%M:%S} UTC, or at once when "
        "spec.suspend has been true for a moment."
    )
    return Obstacle(Reason.known(last.reason) or Reason.TRAINER_FAILED, message, at)


def managed_elsewhere(job: FineTuneJob, _outcomes: Outcomes) -> Obstacle | None:
    """An obstacle if another controller runs the job (spec.managedBy)."""
    if not job.spec.managed_by:
        return None
    return Obstacle(Reason.MANAGED_ELSEWHERE, f"spec.managedBy is {job.spec.managed_by}.")


def being_deleted(job: FineTuneJob, _outcomes: Outcomes) -> Obstacle | None:
    """An obstacle if the job is being deleted, and a finalizer still keeps it."""
    if job.metadata.deletion_timestamp is None:
        return None
    message = "The job is being deleted; what ran for it is ended. A finalizer keeps it here."
    return Obstacle(Reason.DELETED, message)


def suspended(job: FineTuneJob, outcomes: Outcomes) -> Obstacle | None:
    """An obstacle if the user wants the job to stop (spec.suspend)."""
    if not job.spec.suspend:
        return None
    on = " from the checkpoint." if outcomes.of(Stage.TRAIN) else "."
    return Obstacle(Reason.SUSPENDED, f"spec.suspend is true. Set it to false to go on{on}")


def _not_prepared(_job: FineTuneJob, outcomes: Outcomes) -> Obstacle | None:
    if done(outcomes, Stage.PREPARE):
        return None
    return Obstacle(Reason.PREPARING, "Its data is not prepared yet.")


def _trained(_job: FineTuneJob, outcomes: Outcomes) -> Obstacle | None:
    return Obstacle(Reason.DONE, "It is trained.") if done(outcomes, Stage.TRAIN) else None


def _failed(job: FineTuneJob, outcomes: Outcomes) -> Obstacle | None:
    failure = final_failure(job, outcomes, BEFORE_ALL)  # at that moment no queue deadline is over: `ends` has it
    return failure.why if failure else None


_CHECKS: tuple[Callable[[FineTuneJob, Outcomes], Obstacle | None], ...] = (
    managed_elsewhere,
    being_deleted,
    suspended,
    _not_prepared,
    _trained,
    _failed,
)


MOST = 10
"""At most this many jobs of a pool ask for nodes at once, the first of the queue."""


def asks_until(job: FineTuneJob) -> datetime | None:
    """Until when a job asks for nodes and borrows nothing (scaleUpFirst); None if it does not, or is not prepared yet.

    A claim that was given up, because of a quota for example, does not restart that time.
    """
    terms = job.spec.scheduling.scale_up_first
    if terms is None:
        return None
    ready = waits_since(job) if done(recorded(job), Stage.PREPARE) else None
    return ready + timedelta(seconds=terms.wait_seconds) if ready else None


def asks(job: FineTuneJob, now: datetime) -> bool:
    """Whether a prepared job asks for nodes now, and takes only free GPUs meanwhile."""
    until = asks_until(job)
    return until is not None and now < until


def may_ask(job: FineTuneJob, now: datetime) -> bool:
    """Whether a job asks for nodes now, or will once it is prepared. Then nodes may come that are large enough."""
    until = asks_until(job)
    return job.spec.scheduling.scale_up_first is not None and (until is None or now < until)
