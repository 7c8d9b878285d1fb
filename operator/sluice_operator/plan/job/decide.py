"""What does one job need now? RULES is an ordered list of small rules. The first one that returns a decision wins."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from sluice_api.conditions import JobCondition
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import ExportResult, Stage
from sluice_operator.facts.outcomes import all_outcomes, compact, done, recorded
from sluice_operator.observe.world import World, adapter_key, identity, oldest_first
from sluice_operator.plan import readiness
from sluice_operator.plan.deadlines import time_ends
from sluice_operator.plan.job.situation import CONDITION, JobDecision, Situation, ended_by_us, in_pause
from sluice_operator.plan.job.stages import preparing_obstacle, runs_stage
from sluice_operator.plan.job.training import holds, waits
from sluice_operator.plan.obstacle import Wait, earliest
from sluice_operator.plan.pool import refusals
from sluice_operator.plan.pool.refusals import name_taken
from sluice_operator.plan.readiness import final_failure
from sluice_operator.settings import Limits

_UNDECIDED = Wait(Reason.PENDING, "Ready; its turn in the pool is being decided.")


Rule = Callable[[Situation], JobDecision | None]


def plan_job(
    world: World,
    job: FineTuneJob,
    now: datetime,
    limits: Limits,
    wait: Wait | None = None,
    refused_pod: str = "",
) -> JobDecision:
    """Decide what one job needs now.

    Args:
        wait: why the pool's decision gives the job no GPUs; None if that is not decided, or the job does not wait.
        refused_pod: what the API server said when it refused the job's pod; empty if it did not.
    """
    outcomes = all_outcomes(world, job)
    stage_jobs = tuple(oldest_first(world.stage_jobs_of.get(identity(job), {}).values()))
    situation = Situation(world, job, now, outcomes, wait or _UNDECIDED, refused_pod, limits, stage_jobs)
    decision = next(found for rule in RULES if (found := rule(situation)))
    fresh = compact(decision.record or outcomes)
    strays = (stray for stray in situation.strays() if stray not in decision.delete)
    decision = replace(decision, record=fresh if fresh != recorded(job) else None, delete=(*decision.delete, *strays))
    end = None if decision.failed else time_ends(job, outcomes, situation.training_since())
    again_at = earliest((decision.again_at, end.at if end else None), now)
    return _in_time(job, replace(decision, again_at=again_at), now)


def _in_time(job: FineTuneJob, decision: JobDecision, now: datetime) -> JobDecision:
    """The decision, with the deletion of a job that is over and has outlived ttlSecondsAfterFinished."""
    keep, over = job.spec.ttl_seconds_after_finished, decision.failed or decision.reason is Reason.SUCCEEDED
    if keep is None or not over or job.metadata.deletion_timestamp:
        return decision
    ends = (job.status.finished_at or now) + timedelta(seconds=keep)
    return replace(decision, again_at=ends, remove=job.status.finished_at is not None and now >= ends)


def managed_elsewhere(s: Situation) -> JobDecision | None:
    """Another controller runs this job (spec.managedBy). Sluice does nothing for it."""
    found = readiness.managed_elsewhere(s.job, s.outcomes)
    return JobDecision(JobCondition.PREPARED, found.reason, found.message) if found else None


def deleted(s: Situation) -> JobDecision | None:
    """The job is being deleted, and a finalizer keeps it. What runs for it ends, and nothing new begins.

    A job that is over keeps the condition that says how it ended.
    """
    found = readiness.being_deleted(s.job, s.outcomes)
    if found is None or s.job.status.finished_at is not None:
        return None
    return JobDecision(_current(s), found.reason, found.message, delete=s.running())


def failed(s: Situation) -> JobDecision | None:
    """The job has failed for good. What still runs for it ends."""
    failure = final_failure(s.job, s.outcomes, s.now, s.training_since())
    if failure is None:
        return None
    stage, (reason, message) = failure.stage, (failure.why.reason, failure.why.message)
    record = s.outcomes
    for stage_job in (running for running in s.running() if running.stage is stage):
        record = record.with_attempt(ended_by_us(s, stage_job, reason, message))
    return JobDecision(CONDITION[stage], reason, message, failed=True, delete=s.running(), record=record)


def suspended(s: Situation) -> JobDecision | None:
    """The user wants the job to stop (spec.suspend). What runs is ended; a trainer saves its state on its way out."""
    found = readiness.suspended(s.job, s.outcomes)
    if found is None or done(s.outcomes, Stage.EXPORT):
        return None
    record = s.outcomes
    for stage_job in s.running():
        record = record.with_attempt(ended_by_us(s, stage_job, found.reason, "spec.suspend was set."))
    if any(in_pause(s, stage) for stage in Stage):
        record = record.model_copy(update={"suspended_at": s.now})
    return JobDecision(_current(s), found.reason, found.message, delete=s.running(), record=record)


def refused(s: Situation) -> JobDecision | None:
    """Something is missing or wrong that a person can mend. The job waits, and holds no GPUs."""
    if s.unfinished() or done(s.outcomes, Stage.TRAIN):
        return None
    found = refusals.refusal_at(s.world, s.job, s.now)
    if found is None:
        return None
    return JobDecision(_current(s), found.reason, found.message, ends_with=found.ends_with)


def prepares(s: Situation) -> JobDecision | None:
    """The dataset is checked and tokenised on a CPU before the job takes a GPU."""
    decision = runs_stage(s, Stage.PREPARE, Reason.PREPARING, "A CPU pod checks and tokenises the dataset.")
    if decision is not None and decision.start is not None and (full := preparing_obstacle(s.world, s.job)):
        return JobDecision(JobCondition.PREPARED, full.reason, full.message)
    return decision


def exports(s: Situation) -> JobDecision | None:
    """The adapter is written and checked on a CPU. The GPUs are free already."""
    return runs_stage(s, Stage.EXPORT, Reason.EXPORTING, "A CPU pod writes the adapter; the GPUs are given back.")


def publishes(s: Situation) -> JobDecision | None:
    """The job's Adapter is written once, and followed until every ready replica answers with it."""
    result = _export(s)
    if s.job.spec.publish is None or result is None or s.outcomes.published == result.digest:
        return None
    key = adapter_key(s.job.metadata.namespace, s.job.spec.publish.name)
    if taken := name_taken(s.world, s.job):
        return JobDecision(JobCondition.PUBLISHED, taken.reason, taken.message, ends_with=taken.ends_with)
    adapter = s.world.adapters.get(key)
    if adapter is None or adapter.spec.source.digest != result.digest or adapter.spec.source.uri != result.uri:
        return JobDecision(JobCondition.PUBLISHED, Reason.PUBLISHING, "The Adapter is being written.", publish=result)
    ready = next((c for c in adapter.status.conditions if c.type == "Ready"), None)
    current = ready is not None and ready.observed_generation >= adapter.metadata.generation
    if ready is None or not current or ready.status != "True":
        message = ready.message if ready and current else "The engine's replicas are about to load the adapter."
        reason = Reason.known(ready.reason) if ready and current else None
        return JobDecision(JobCondition.PUBLISHED, reason or Reason.PUBLISHING, message, ends_with=(key,))
    return None


def succeeds(s: Situation) -> JobDecision:
    """Everything that the spec asks for is done. As the last rule it always returns a decision."""
    result, publish = _export(s), s.job.spec.publish
    message = f"The adapter is at {result.uri} ({result.digest[:19]})." if result else ""
    if result is None or publish is None:
        return JobDecision(JobCondition.SUCCEEDED, Reason.SUCCEEDED, message)
    return JobDecision(
        JobCondition.SUCCEEDED,
        Reason.SUCCEEDED,
        f"{message} It answers as model {publish.name} at engine {publish.engine}.",
        record=s.outcomes.model_copy(update={"published": result.digest}),
    )


RULES: tuple[Rule, ...] = (
    managed_elsewhere,
    deleted,
    failed,
    suspended,
    refused,
    prepares,
    holds,
    waits,
    exports,
    publishes,
    succeeds,
)


def _current(s: Situation) -> JobCondition:
    """The condition of the first step that is not done."""
    if not done(s.outcomes, Stage.PREPARE):
        return JobCondition.PREPARED
    if not done(s.outcomes, Stage.TRAIN):
        return JobCondition.ADMITTED
    return JobCondition.EXPORTED


def _export(s: Situation) -> ExportResult | None:
    outcome = done(s.outcomes, Stage.EXPORT)
    return outcome.export if outcome else None
