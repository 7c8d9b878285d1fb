"""What does a stage that needs no GPU do now: start, go on, or wait for another attempt or for other jobs?"""

from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.claims import owner_of, trainer_pods
from sluice_operator.facts.nodes import find_pool, unreachable
from sluice_operator.facts.outcomes import done
from sluice_operator.facts.retries import refusal_reason
from sluice_operator.observe.views import StageJobView
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.job.situation import CONDITION, JobDecision, Situation, Start, ended_by_us, in_pause
from sluice_operator.plan.missing_pods import PODS_WITHIN
from sluice_operator.plan.obstacle import Obstacle, earliest
from sluice_operator.plan.pool.refusals import begins_with
from sluice_operator.plan.preflight import suspended_by_other


def runs_stage(s: Situation, stage: Stage, reason: Reason, message: str) -> JobDecision | None:
    """Start a CPU stage, wait for it, or try it again after a failure that may pass; None once it is done.

    `reason` and `message` are shown while nothing is wrong.
    """
    if done(s.outcomes, stage):
        return None
    running = s.unfinished(stage)
    if running:
        away = unreachable(s.world, (pod for j in running for pod in trainer_pods(s.world, j)))
        if away:
            return JobDecision(CONDITION[stage], Reason.NODE_NOT_READY, away)
        stuck = next((why for j in running if (why := _not_started(s, j))), None)
        again_at = earliest((at for j in running for at in _moments(s, j)), s.now)
        if stuck is None:
            return JobDecision(CONDITION[stage], reason, message, again_at=again_at)
        found, text, over = stuck
        return JobDecision(
            CONDITION[stage],
            found,
            text,
            record=s.outcomes.with_attempt(ended_by_us(s, running[0], found, text)) if over else s.outcomes,
            delete=tuple(running) if over else (),
            again_at=again_at,
        )
    if paused := in_pause(s, stage):
        wakes = begins_with(s.job, in_pause=True) if stage is Stage.PREPARE else ()
        return JobDecision(CONDITION[stage], paused.reason, paused.message, again_at=paused.until, ends_with=wakes)
    return JobDecision(CONDITION[stage], reason, message, start=Start(stage, s.next_attempt(stage)))


def _not_started(s: Situation, stage_job: StageJobView) -> tuple[Reason, str, bool] | None:
    """Why a stage's pod does not start: reason, message, and whether its time is over; None if nothing is wrong."""
    over = s.now >= stage_job.created + s.limits.start
    if stage_job.suspended:
        return Reason.SUSPENDED_BY_OTHER, suspended_by_other(stage_job), over
    pods = trainer_pods(s.world, stage_job)
    if not pods:
        text = s.refused_pod or "No pod was made."
        late = s.now >= stage_job.created + PODS_WITHIN
        return (refusal_reason(text), f"The pod is refused: {text}", over) if late else None
    pod = pods[-1]
    if pod.waits_for_image:
        return Reason.IMAGE_NOT_PULLED, f"Pod {pod.key.name}: {pod.waiting_message or pod.waiting_reason}", over
    if pod.starts and over:
        why = pod.unschedulable or pod.waiting_message or pod.waiting_reason or "it has not started"
        return Reason.POD_NOT_STARTED, f"Pod {pod.key.name}: {why}", True
    return None


def _moments(s: Situation, stage_job: StageJobView) -> tuple[datetime, ...]:
    """When to look at a stage's Job again: when its pod is overdue, often after that, and when it must have started."""
    pods_due = stage_job.created + PODS_WITHIN
    overdue = not trainer_pods(s.world, stage_job) and s.now >= pods_due
    return (pods_due, stage_job.created + s.limits.start, *([s.now + PODS_WITHIN] if overdue else []))


def preparing_obstacle(world: World, job: FineTuneJob) -> Obstacle | None:
    """Why a job does not begin to prepare its data now; None if it may."""
    name, namespace = job.spec.resources.pool, job.metadata.namespace
    pool = find_pool(world, name)
    if pool is None:  # without a pool there is no limit
        return None
    limits = pool.spec.prepare
    others = [other for other in _preparing(world, name) if other.metadata.uid != job.metadata.uid]
    message = ""
    if len(others) >= limits.at_once:
        message = f"{len(others)} jobs of pool {name} prepare their data, as many as its spec.prepare.atOnce allows."
    elif (beside := sum(other.metadata.namespace == namespace for other in others)) >= limits.per_namespace:
        message = (
            f"{beside} jobs of namespace {namespace} prepare their data in pool {name}, as many as its "
            "spec.prepare.perNamespace allows."
        )
    if not message:
        return None
    return Obstacle(Reason.WAITING_TO_PREPARE, f"{message} It begins when one of them has ended.")


def next_to_prepare(world: World, pool: str) -> list[FineTuneJob]:
    """Jobs of a pool that wait to prepare their data and may begin now: at most the oldest one of each namespace.

    One job for each namespace, because users of a namespace may write its jobs' status, by which they wait.
    """
    oldest: dict[str, FineTuneJob] = {}
    for job in world.to_prepare.get(pool, {}).values():
        if job.metadata.deletion_timestamp or job.spec.managed_by:
            continue
        known = oldest.get(job.metadata.namespace)
        if known is None or _age(job) < _age(known):
            oldest[job.metadata.namespace] = job
    return [job for job in sorted(oldest.values(), key=_age) if not preparing_obstacle(world, job)]


def _age(job: FineTuneJob) -> tuple[str, str]:
    created = job.metadata.creation_timestamp
    return (created.isoformat() if created else "", job.metadata.name)


def _preparing(world: World, pool: str) -> list[FineTuneJob]:
    """Jobs of a pool that prepare their data, or are about to."""
    owners = (owner_of(world, stage_job) for stage_job in world.preparing.values())
    known = {key_of(job): job for job in owners if job is not None}
    known |= {key: world.jobs[key] for key in world.starting if key in world.jobs}
    return [job for job in known.values() if job.spec.resources.pool == pool]
