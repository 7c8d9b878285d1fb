"""When a job wants GPUs, as far as that follows from its own past and its spec: its own rules and the pool ask this."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from sluice_api.claim import Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.observe.world import World, identity
from sluice_operator.plan.facts.deadlines import waiting_ends
from sluice_operator.plan.facts.failure import final_failure
from sluice_operator.plan.facts.outcomes import all_outcomes, done, next_attempt_at
from sluice_operator.plan.obstacle import Obstacle

_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a job wants GPUs, from when on, and until when."""

    obstacles: tuple[Obstacle, ...] = ()
    """What keeps it from them, for good or until a moment."""
    ends: datetime | None = None
    """Once it is over, the job has failed (spec.scheduling.queueDeadlineSeconds)."""

    @property
    def begins(self) -> datetime | None:
        """From when on it wants them, if nothing but time keeps it from them."""
        return max((obstacle.until for obstacle in self.obstacles if obstacle.until), default=None)

    def at(self, now: datetime) -> bool:
        """Whether it wants them at a moment."""
        held = any(obstacle.until is None or now < obstacle.until for obstacle in self.obstacles)
        return not held and (not self.ends or now < self.ends)


def readiness(world: World, job: FineTuneJob) -> Readiness:
    """When a job wants GPUs. Without Jobs of its own that is in its record alone, and asked of thousands that wait."""
    if world.stage_jobs_of.get(identity(job)):
        return _readiness(job, all_outcomes(world, job))
    noted = world.noted(job)
    if readiness not in noted:
        noted[readiness] = _readiness(job, all_outcomes(world, job))
    found: Readiness = noted[readiness]
    return found


def _readiness(job: FineTuneJob, outcomes: Outcomes) -> Readiness:
    found = next((obstacle for check in _CHECKS if (obstacle := check(job, outcomes))), None)
    if found is not None:
        return Readiness((found,))
    return Readiness(tuple(pauses(job, outcomes)), waiting_ends(job, outcomes))


def pauses(job: FineTuneJob, outcomes: Outcomes) -> Iterator[Obstacle]:
    """What time alone ends: the pause after an attempt, and the job's own wish."""
    if obstacle := pause(job, outcomes, Stage.TRAIN):
        yield obstacle
    if begins := job.spec.scheduling.not_before:
        message = f"Prepared. It asks for GPUs from {begins:%Y-%m-%d %H:%M:%S} UTC on (scheduling.notBefore)."
        yield Obstacle(Reason.NOT_BEFORE, message, begins)


def pause(job: FineTuneJob, outcomes: Outcomes, stage: Stage) -> Obstacle | None:
    """Why the next attempt of a stage does not begin at once; None if it does, or if there has been none."""
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
    """Another controller runs this job."""
    if not job.spec.managed_by:
        return None
    return Obstacle(Reason.MANAGED_ELSEWHERE, f"spec.managedBy is {job.spec.managed_by}.")


def being_deleted(job: FineTuneJob, _outcomes: Outcomes) -> Obstacle | None:
    """It is being deleted, and somebody's finalizer keeps it."""
    if job.metadata.deletion_timestamp is None:
        return None
    message = "The job is being deleted; what ran for it is ended. A finalizer keeps it here."
    return Obstacle(Reason.DELETED, message)


def suspended(job: FineTuneJob, outcomes: Outcomes) -> Obstacle | None:
    """The user wants it to stop."""
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
    failure = final_failure(job, outcomes, _BEFORE_ALL)
    return Obstacle(failure[1], failure[2]) if failure else None


_CHECKS: tuple[Callable[[FineTuneJob, Outcomes], Obstacle | None], ...] = (
    managed_elsewhere,
    being_deleted,
    suspended,
    _not_prepared,
    _trained,
    _failed,
)
