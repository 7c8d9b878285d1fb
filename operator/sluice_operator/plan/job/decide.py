"""What one job needs now: an ordered list of small rules, of which the first that has something to say wins."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from sluice_api.conditions import JobCondition
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import ExportResult, Stage
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import World, adapter_key, identity, oldest_first
from sluice_operator.plan.allocation import refusals
from sluice_operator.plan.allocation.waiting import Wait
from sluice_operator.plan.facts import readiness
from sluice_operator.plan.facts.after import after
from sluice_operator.plan.facts.attempts import heir_of, made_after, trainer_pods
from sluice_operator.plan.facts.belief import believed
from sluice_operator.plan.facts.claims import LiveClaim, is_live, live_claims_of
from sluice_operator.plan.facts.deadlines import time_ends, warning
from sluice_operator.plan.facts.estimate import ends_at
from sluice_operator.plan.facts.failure import final_failure
from sluice_operator.plan.facts.outcomes import all_outcomes, compact, done, recorded
from sluice_operator.plan.facts.preparing import no_room_to_prepare
from sluice_operator.plan.facts.publishing import name_taken
from sluice_operator.plan.facts.unreachable import unreachable
from sluice_operator.plan.job.holding import Limits, Step, advance
from sluice_operator.plan.job.situation import (
    CONDITION,
    JobDecision,
    Situation,
    Start,
    ended_by_us,
    in_pause,
)
from sluice_operator.plan.job.stages import runs_stage
from sluice_operator.plan.obstacle import earliest

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
        wait: the verdict of the pool's allocation, when the job waits for GPUs.
        refused_pod: what the API server said when it refused the training pod, if it did.
    """
    outcomes = all_outcomes(world, job)
    stage_jobs = tuple(oldest_first(world.stage_jobs_of.get(identity(job), {}).values()))
    situation = Situation(world, job, now, outcomes, wait, refused_pod, limits, stage_jobs)
    decision = next(found for rule in RULES if (found := rule(situation)))
    fresh = compact(decision.record or outcomes)
    strays = (stray for stray in _strays(situation) if stray not in decision.delete)
    decision = replace(decision, record=fresh if fresh != recorded(job) else None, delete=(*decision.delete, *strays))
    end = None if decision.failed else time_ends(job, outcomes, _training_since(situation))
    again_at = earliest((decision.again_at, end.at if end else None), now)
    return _in_time(job, replace(decision, again_at=again_at), now)


def _strays(s: Situation) -> list[StageJobView]:
    """Jobs of attempts that had ended before: a leader that had been stopped has made them anew when it woke."""
    ended = {(outcome.stage, outcome.attempt): outcome.ended_at or s.now for outcome in s.outcomes.attempts}
    return [j for j in s.running() if (at := ended.get((j.stage, j.attempt))) and made_after(s.world, j, at)]


def _in_time(job: FineTuneJob, decision: JobDecision, now: datetime) -> JobDecision:
    """A job that is over is deleted when its time to live is over."""
    keep, over = job.spec.ttl_seconds_after_finished, decision.failed or decision.reason is Reason.SUCCEEDED
    if keep is None or not over or job.metadata.deletion_timestamp:
        return decision
    ends = (job.status.finished_at or now) + timedelta(seconds=keep)
    return replace(decision, again_at=ends, remove=job.status.finished_at is not None and now >= ends)


def managed_elsewhere(s: Situation) -> JobDecision | None:
    """Another controller runs this job: hands off."""
    found = readiness.managed_elsewhere(s.job, s.outcomes)
    return JobDecision(JobCondition.PREPARED, found.reason, found.message) if found else None


def deleted(s: Situation) -> JobDecision | None:
    """It is being deleted and somebody's finalizer keeps it: what runs for it is ended, and nothing new begins.

    One that is over goes on saying what it came to.
    """
    found = readiness.being_deleted(s.job, s.outcomes)
    if found is None or s.job.status.finished_at is not None:
        return None
    return JobDecision(_current(s), found.reason, found.message, delete=s.running())


def failed(s: Situation) -> JobDecision | None:
    """It has failed for good; whatever still runs for it ends."""
    failure = final_failure(s.job, s.outcomes, s.now, _training_since(s))
    if failure is None:
        return None
    stage, reason, message = failure
    record = s.outcomes
    for stage_job in (running for running in s.running() if running.stage is stage):
        record = record.with_attempt(ended_by_us(s, stage_job, reason, message))
    return JobDecision(CONDITION[stage], reason, message, failed=True, delete=s.running(), record=record)


def _training_since(s: Situation) -> datetime | None:
    """Since when it trains."""
    trains = (j for j in s.unfinished(Stage.TRAIN) if not s.outcomes.has(j.stage, j.attempt))
    return min((j.created for j in trains if not _has_ended(s, j)), default=None)


def suspended(s: Situation) -> JobDecision | None:
    """The user wants it to stop: what runs is ended, a trainer saves its state on the way out."""
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
    """Something is missing or wrong that others can mend: it waits, and has taken nothing."""
    if s.unfinished() or done(s.outcomes, Stage.TRAIN):
        return None
    found = refusals.refusal_at(s.world, s.job, s.now)
    if found is None:
        return None
    return JobDecision(_current(s), found.reason, found.message, ends_with=found.ends_with)


def prepares(s: Situation) -> JobDecision | None:
    """Its data is validated and tokenised on a CPU before anything takes a GPU."""
    decision = runs_stage(s, Stage.PREPARE, Reason.PREPARING, "A CPU pod checks and tokenises the dataset.")
    if decision is not None and decision.start is not None and (full := no_room_to_prepare(s.world, s.job)):
        return JobDecision(JobCondition.PREPARED, Reason.WAITING_TO_PREPARE, full)
    return decision


def holds(s: Situation) -> JobDecision | None:
    """It has a claim: prove it, drain, bind, train, or hand the claim to the next attempt."""
    if done(s.outcomes, Stage.TRAIN):
        return None
    for live in live_claims_of(s.world, s.job):
        if not live.stage_job.finished:
            step = advance(s.world, live, s.now, s.limits, s.refused_pod)
            if step.reason is Reason.TRAINING:
                late = warning(s.job, s.outcomes, live.stage_job.created, ends_at(live))
                step = replace(step, message=step.message + late)
            return _decision(s, live, step)
    leaving = s.unfinished(Stage.TRAIN)
    if leaving:
        record = s.outcomes
        lost = tuple(stage_job for stage_job in leaving if not stage_job.deleting and not heir_of(s.world, stage_job))
        for stage_job in lost:  # unfinished, of a job that is wanted, and yet its claim is over
            record = record.with_attempt(ended_by_us(s, stage_job, *_why_it_is_over(s, stage_job)))
        away = unreachable(s.world, (pod for stage_job in leaving for pod in trainer_pods(s.world, stage_job)))
        reason = Reason.NODE_NOT_READY if away else Reason.REQUEUED
        message = away or "Its last training pod is still going; the next attempt follows."
        return JobDecision(JobCondition.ADMITTED, reason, message, record=record, delete=lost)
    return _takes_over(s)


def _why_it_is_over(s: Situation, stage_job: StageJobView) -> tuple[Reason, str]:
    if believed(s.world, s.job, stage_job) is None:
        return Reason.CLAIMED, "Its annotation claims other GPUs than the job asks for; the claim is made anew."
    if not stage_job.readable:
        return Reason.POD_LOST, "Its Job has been changed and can't be read any more, and its pods are over."
    return Reason.NODE_LOST, "Its node is gone."


def _decision(s: Situation, live: LiveClaim, step: Step) -> JobDecision:
    at = JobCondition.TRAINED if step.admitted else JobCondition.ADMITTED
    record = s.outcomes
    if step.give_up:
        record = record.with_attempt(ended_by_us(s, live.stage_job, step.reason, step.message, step.by, step.node))
    return JobDecision(
        at,
        step.reason,
        step.message,
        record=record,
        delete=(live.stage_job,) if step.give_up else (),
        bind=step.bind,
        again_at=step.again_at,
    )


def _takes_over(s: Situation) -> JobDecision | None:
    """The next attempt takes the claim of the one that just ended, before any engine grows."""
    for stage_job in reversed([j for j in s.stage_jobs if j.stage is Stage.TRAIN and j.claim]):
        held = believed(s.world, s.job, stage_job)
        if held is None or not is_live(s.world, s.job, stage_job):
            continue
        last = s.outcomes.of(Stage.TRAIN)[-1:]
        if not last or last[0].attempt != stage_job.attempt or not after(last[0].reason).keeps_claim:
            return JobDecision(
                JobCondition.TRAINED, Reason.TRAINING, "The last pod has ended; waiting for its last words."
            )
        claim = held.model_copy(update={"term": s.world.term})
        start = Start(Stage.TRAIN, s.next_attempt(Stage.TRAIN), claim)
        return JobDecision(
            JobCondition.ADMITTED,
            Reason.CLAIMED,
            f"Attempt {start.attempt} takes the GPUs over. {last[0].message}",
            start=start,
        )
    return None


def waits(s: Situation) -> JobDecision | None:
    """It is ready and has no GPUs."""
    if done(s.outcomes, Stage.TRAIN):
        return None
    for pause in readiness.pauses(s.job, s.outcomes):
        if pause.until and s.now < pause.until:
            return JobDecision(JobCondition.ADMITTED, pause.reason, pause.message, again_at=pause.until)
    wait = s.wait or Wait(Reason.PENDING, "Ready; its turn in the pool is being decided.")
    return JobDecision(JobCondition.ADMITTED, wait.reason, wait.message, wait=wait)


def exports(s: Situation) -> JobDecision | None:
    """The GPUs are free already; the adapter is written and checked on a CPU."""
    return runs_stage(s, Stage.EXPORT, Reason.EXPORTING, "A CPU pod writes the adapter; the GPUs are given back.")


def publishes(s: Situation) -> JobDecision | None:
    """Its Adapter is written once and followed until every ready replica answers with it."""
    result = _export(s)
    if s.job.spec.publish is None or result is None or s.outcomes.published == result.digest:
        return None
    key = adapter_key(s.job.metadata.namespace, s.job.spec.publish.name)
    if taken := name_taken(s.world, s.job):
        return JobDecision(JobCondition.PUBLISHED, Reason.NAME_TAKEN, taken, ends_with=(key,))
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
    """Everything that the spec asks for is done."""
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


def _has_ended(s: Situation, stage_job: StageJobView) -> bool:
    """Whether an attempt's pods have ended, though its Job does not say so yet."""
    pods = trainer_pods(s.world, stage_job)
    return bool(pods) and all(pod.ended for pod in pods)


def _current(s: Situation) -> JobCondition:
    """The first step that is not done."""
    if not done(s.outcomes, Stage.PREPARE):
        return JobCondition.PREPARED
    if not done(s.outcomes, Stage.TRAIN):
        return JobCondition.ADMITTED
    return JobCondition.EXPORTED


def _export(s: Situation) -> ExportResult | None:
    outcome = done(s.outcomes, Stage.EXPORT)
    return outcome.export if outcome else None


def job_of(world: World, key: Key) -> FineTuneJob | None:
    """The job of a key; None once it is deleted or about to be."""
    job = world.jobs.get(key)
    return None if job is None or job.metadata.deletion_timestamp else job
