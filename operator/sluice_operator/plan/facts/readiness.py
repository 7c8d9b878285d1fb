"""When a job that has no GPUs is to get some, as far as that follows from its own past and its spec."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sluice_api.claim import Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.stages import Stage
from sluice_operator.observe.world import World, identity
from sluice_operator.plan.facts.deadlines import waiting_ends
from sluice_operator.plan.facts.failure import final_failure
from sluice_operator.plan.facts.outcomes import all_outcomes, done, next_attempt_at

_BEFORE_ALL = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a job wants GPUs, from when on, and until when."""

    wants: bool
    begins: datetime | None = None
    ends: datetime | None = None
    """Once it is over, the job has failed (spec.scheduling.queueDeadlineSeconds)."""

    def at(self, now: datetime) -> bool:
        """Whether it wants them at a moment."""
        return self.wants and (not self.begins or self.begins <= now) and (not self.ends or now < self.ends)


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
    if job.spec.suspend or job.spec.managed_by or job.metadata.deletion_timestamp:
        return Readiness(wants=False)
    if done(outcomes, Stage.PREPARE) is None or done(outcomes, Stage.TRAIN) is not None:
        return Readiness(wants=False)
    if final_failure(job, outcomes, _BEFORE_ALL) is not None:
        return Readiness(wants=False)
    moments = (job.spec.scheduling.not_before, next_attempt_at(job, outcomes, Stage.TRAIN))
    begins = max((moment for moment in moments if moment), default=None)
    return Readiness(True, begins, waiting_ends(job, outcomes))
