"""What do the rules read about one job, and what can they decide?"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sluice_api.claim import AttemptOutcome, Claim, Outcomes
from sluice_api.conditions import JobCondition
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import ExportResult, Stage
from sluice_operator.facts.claims import made_after, trainer_pods
from sluice_operator.facts.outcomes import all_outcomes, only_node
from sluice_operator.facts.retries import FIRST_PAUSE, LONGEST_PAUSE
from sluice_operator.observe.views import Key, PodView, StageJobView
from sluice_operator.observe.world import World, identity
from sluice_operator.plan.obstacle import Obstacle, Wait
from sluice_operator.plan.readiness import pause
from sluice_operator.settings import Limits

CONDITION = {
    Stage.PREPARE: JobCondition.PREPARED,
    Stage.TRAIN: JobCondition.TRAINED,
    Stage.EXPORT: JobCondition.EXPORTED,
}


@dataclass(frozen=True, slots=True)
class Start:
    """An attempt that begins: one batch/v1 Job to create."""

    stage: Stage
    attempt: int
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class JobDecision:
    """What a job needs now: its state, and what must be written to bring it on."""

    at: JobCondition
    """The condition that the reason and the message are about. It is not True yet, unless the job has succeeded."""
    reason: Reason
    message: str = ""
    failed: bool = False
    """Whether the job has failed for good."""
    start: Start | None = None
    record: Outcomes | None = None
    """The outcomes to record; None if the annotation stays as it is."""
    delete: tuple[StageJobView, ...] = ()
    bind: tuple[tuple[PodView, str], ...] = ()
    """Pods whose gate is removed, each with its node."""
    publish: ExportResult | None = None
    wait: Wait | None = None
    """Why the job waits for GPUs, and its place in the queue; None if it waits for none."""
    remove: bool = False
    """Whether the FineTuneJob itself is deleted, because its time to live is over."""
    again_at: datetime | None = None
    """When to look again even if nothing happens."""
    ends_with: tuple[Key, ...] = ()
    """Objects whose change may end the wait."""


@dataclass(frozen=True)
class Situation:
    """One job at one moment: all that a rule reads."""

    world: World
    job: FineTuneJob
    now: datetime
    outcomes: Outcomes
    """All ended attempts, those that are not recorded yet included."""
    wait: Wait
    refused_pod: str
    """What the API server said when it refused the job's pod; empty if it did not."""
    limits: Limits
    stage_jobs: tuple[StageJobView, ...] = field(default_factory=tuple)

    def unfinished(self, stage: Stage | None = None) -> list[StageJobView]:
        """Stage Jobs that have not finished, those that are being deleted included; of all stages without a `stage`."""
        return [j for j in self.stage_jobs if not j.finished and (stage is None or j.stage is stage)]

    def running(self) -> tuple[StageJobView, ...]:
        """Stage Jobs that have not finished and are not being deleted."""
        return tuple(j for j in self.unfinished() if not j.deleting)

    def strays(self) -> list[StageJobView]:
        """Stage Jobs made after their attempt had ended: a paused former leader woke up and made them a second time."""
        ended = {(outcome.stage, outcome.attempt): outcome.ended_at or self.now for outcome in self.outcomes.attempts}
        return [j for j in self.running() if (at := ended.get((j.stage, j.attempt))) and made_after(self.world, j, at)]

    def training_since(self) -> datetime | None:
        """When the Job that trains now was made; None if none does. Pods that have all ended train no longer."""
        trains = (j for j in self.unfinished(Stage.TRAIN) if not self.outcomes.has(j.stage, j.attempt))
        pods = ((j, trainer_pods(self.world, j)) for j in trains)
        return min((j.created for j, its in pods if not its or any(not pod.ended for pod in its)), default=None)

    def next_attempt(self, stage: Stage) -> int:
        """An attempt number that the stage has never had."""
        return _next_attempt(self.job, self.outcomes, self.stage_jobs, stage)


def ended_by_us(
    s: Situation, stage_job: StageJobView, reason: Reason, message: str, by: str = "", node: str = ""
) -> AttemptOutcome:
    """The outcome of an attempt that Sluice ends itself. An empty `node` stands for the attempt's only node."""
    progress = s.job.status.progress
    mine = progress if progress and stage_job.stage is Stage.TRAIN and progress.attempt == stage_job.attempt else None
    return AttemptOutcome(
        stage=stage_job.stage,
        attempt=stage_job.attempt,
        reason=reason,
        message=message[:2000],
        started_at=stage_job.created,
        ended_at=s.now,
        node=node or only_node(stage_job),
        by=by,
        step=mine.step if mine else 0,
        checkpoint_step=mine.checkpoint_step if mine else None,
    )


def in_pause(s: Situation, stage: Stage) -> Obstacle | None:
    """Why the next attempt of a stage does not begin yet; None if no pause holds it up."""
    found = pause(s.job, s.outcomes, stage)
    return found if found and found.until and s.now < found.until else None


def unmet_since(job: FineTuneJob, decision: JobDecision) -> datetime | None:
    """Since when the condition that a decision is about is False; None if it is not False."""
    found = next((c for c in job.status.conditions if c.type == decision.at and c.status == "False"), None)
    return found.last_transition_time if found else None


UNRECORDED_PAUSE = timedelta(minutes=1)
"""The longest pause before a refused start is tried again. The outcome of the attempt may have been refused as well, by
a webhook that is away, and no event tells when that is back."""


def refused(decision: JobDecision, reason: Reason, message: str, since: datetime | None, now: datetime) -> JobDecision:
    """The decision to show after the API server has refused a write of `decision`.

    The write is tried again when it has been refused for twice as long as now. A start may come later, by the pause
    that its recorded outcome asks for.

    Args:
        since: since when the write is refused; None if that has just begun.
    """
    longest = UNRECORDED_PAUSE if decision.start else LONGEST_PAUSE
    again_at = now + min(max(now - (since or now), FIRST_PAUSE), longest)
    return replace(decision, reason=reason, message=message, again_at=again_at)


def refused_attempt(start: Start, reason: Reason, message: str, now: datetime) -> AttemptOutcome:
    """The outcome of an attempt when the API server refuses to create its Job."""
    return AttemptOutcome(
        stage=start.stage, attempt=start.attempt, reason=reason, message=message[:2000], started_at=now, ended_at=now
    )


def next_training_attempt(world: World, job: FineTuneJob) -> int:
    """An attempt number that the job's training has never had."""
    stage_jobs = world.stage_jobs_of.get(identity(job), {}).values()
    return _next_attempt(job, all_outcomes(world, job), stage_jobs, Stage.TRAIN)


def _next_attempt(job: FineTuneJob, outcomes: Outcomes, stage_jobs: Iterable[StageJobView], stage: Stage) -> int:
    reported = job.status.progress.attempt if job.status.progress and stage is Stage.TRAIN else 0
    known = [outcome.attempt for outcome in outcomes.of(stage)]
    return max([reported, *known, *(j.attempt for j in stage_jobs if j.stage is stage)], default=0) + 1
