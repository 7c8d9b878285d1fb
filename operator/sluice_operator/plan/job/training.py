"""What does a job's training need now, from its wait for GPUs to the end of its claim?"""

from dataclasses import replace

from sluice_api.conditions import JobCondition
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.claims import LiveClaim, believed, ends_at, preemptor_of, trainer_pods
from sluice_operator.facts.live_claims import is_live, live_claims_of
from sluice_operator.facts.nodes import unreachable
from sluice_operator.facts.outcomes import done
from sluice_operator.facts.retries import after
from sluice_operator.observe.views import StageJobView
from sluice_operator.plan import readiness
from sluice_operator.plan.deadlines import warning
from sluice_operator.plan.job.claim_steps import Step, advance
from sluice_operator.plan.job.situation import JobDecision, Situation, Start, ended_by_us
from sluice_operator.plan.pool.refusals import begins_with


def holds(s: Situation) -> JobDecision | None:
    """The job has a claim: prove it, drain, bind, train, or hand the claim to the next attempt."""
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
        lost = tuple(
            stage_job for stage_job in leaving if not stage_job.deleting and not preemptor_of(s.world, stage_job)
        )
        for stage_job in lost:  # not finished, and its job still wants to train, yet its claim is over
            record = record.with_attempt(ended_by_us(s, stage_job, *_why_it_is_over(s, stage_job)))
        away = unreachable(s.world, (pod for stage_job in leaving for pod in trainer_pods(s.world, stage_job)))
        reason = Reason.NODE_NOT_READY if away else Reason.REQUEUED
        message = away or "Its last training pod is still going; the next attempt follows."
        return JobDecision(JobCondition.ADMITTED, reason, message, record=record, delete=lost)
    return _takes_over(s)


def _why_it_is_over(s: Situation, stage_job: StageJobView) -> tuple[Reason, str]:
    if believed(s.world, s.job, stage_job) is None:
        return Reason.CLAIMED, "Its annotation claims other GPUs than the job asks for; the claim is made again."
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
    """Start the next attempt with the claim of the last one, before an engine takes the GPUs; None without a claim."""
    for stage_job in reversed([j for j in s.stage_jobs if j.stage is Stage.TRAIN and j.claim]):
        held = believed(s.world, s.job, stage_job)
        if held is None or not is_live(s.world, s.job, stage_job):
            continue
        last = s.outcomes.of(Stage.TRAIN)[-1:]
        # The claim is alive without an outcome that keeps it: the outcome is not known yet.
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
    """The job is prepared and has no GPUs: it is in a pause, or waits in the queue."""
    if done(s.outcomes, Stage.TRAIN):
        return None
    for pause in readiness.pauses(s.job, s.outcomes):
        if pause.until and s.now < pause.until:
            wakes = begins_with(s.job, in_pause=True)
            return JobDecision(
                JobCondition.ADMITTED, pause.reason, pause.message, again_at=pause.until, ends_with=wakes
            )
    wakes = begins_with(s.job, in_pause=False)
    return JobDecision(JobCondition.ADMITTED, s.wait.reason, s.wait.message, wait=s.wait, ends_with=wakes)
