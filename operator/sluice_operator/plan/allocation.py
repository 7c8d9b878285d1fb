"""Who gets GPUs now: all pending jobs of a pool at once, in order, each with its claim or its reason to wait."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, NamespaceQuota
from sluice_api.stages import Stage
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.access import quota_of
from sluice_operator.plan.borrowing import Held, Market, has_reached, held_by_namespace, with_claim
from sluice_operator.plan.claims import live_claims_of
from sluice_operator.plan.guests import contend, hosts, is_guest
from sluice_operator.plan.interruption import next_to_give_way
from sluice_operator.plan.inventory import engines_of, take_stock
from sluice_operator.plan.lending import lends_next
from sluice_operator.plan.outcomes import all_outcomes, done, next_attempt_at, recorded, waits_since
from sluice_operator.plan.placement import place, stock_after
from sluice_operator.plan.refusals import final_failure, refusal
from sluice_operator.plan.waiting import EXPLAINED, Wait, explain, far_behind, over_quota


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a pool's pending jobs get, and why the others wait."""

    claims: Mapping[Key, Claim] = field(default_factory=dict)
    waits: Mapping[Key, Wait] = field(default_factory=dict)
    again_at: datetime | None = None
    """When training gives way to the job in front, if it still waits."""


def allocate(world: World, pool: GPUPool, now: datetime) -> Allocation:
    """Give each pending job its claim, or the reason why it waits.

    Nothing overtakes a job that waits, unless it provably can't delay it: what the waiting job could
    use, free GPUs and every slot that may be lent to it, is out of reach for those behind it; a guest
    can use no GPUs, only the slots of its namespace, so it keeps back guests and borrowers alone. A job
    that its namespace's quota holds back can use neither, so it holds nobody back.
    """
    stock = take_stock(world, pool)
    market = Market(world, stock, now)
    held = held_by_namespace(world, stock)
    quotas: dict[str, NamespaceQuota] = {}
    claims: dict[Key, Claim] = {}
    waits: dict[Key, Wait] = {}
    waiting: list[FineTuneJob] = []
    waits_too = {False: False, True: False}  # whether a job is in front that wants GPUs; one that wants a share
    promised: frozenset[str] = frozenset()
    again_at: datetime | None = None
    for job in pending(world, pool, now):
        namespace = job.metadata.namespace
        if namespace not in quotas:
            quotas[namespace] = quota_of(world, pool, namespace)
        mine, quota = held.get(namespace, Held()), quotas[namespace]
        if has_reached(quota, mine, job):
            waits[key_of(job)] = over_quota(pool, job, quota, mine)
            continue
        terms = market.terms(job, quota, mine)
        guest = is_guest(pool, job)
        claim = place(world, stock, job, replace(terms, lenders=terms.lenders - promised), waits_too[guest], now)
        if claim is not None:
            claims[key_of(job)] = claim
            held[namespace] = with_claim(world, mine, claim)
            stock = stock_after(world, stock, job, claim)
        else:
            gives_way = None if guest or waits_too[guest] else next_to_give_way(world, stock.claims, job, now)
            again_at = again_at or (gives_way.at if gives_way else None)
            if len(waiting) < EXPLAINED:
                ahead = [other for other in waiting if contend(pool, other, job)]
                waits[key_of(job)] = explain(world, stock, job, terms, ahead, gives_way, now)
            else:
                waits[key_of(job)] = far_behind(pool, job, len(waiting))
            waiting.append(job)
            waits_too[guest] = True
            promised |= terms.lenders
            if guest:
                promised |= {engine.metadata.uid for engine in hosts(world, pool, job)}
    return Allocation(claims, waits, again_at)


def pending(world: World, pool: GPUPool, now: datetime) -> list[FineTuneJob]:
    """Jobs that are ready for GPUs and hold none, in their order: priority, then age."""
    jobs = world.unfinished.get(pool.metadata.name, {}).values()
    found = [job for job in jobs if is_pending(world, job, now) and not live_claims_of(world, job)]
    return sorted(found, key=lambda job: place_in_queue(pool, job, now))


def place_in_queue(pool: GPUPool, job: FineTuneJob, now: datetime) -> tuple[int, str, str]:
    """Sort key: higher priority first, then the older one. Waiting raises a job, if the pool says so."""
    priority = job.spec.scheduling.priority
    if pool.spec.ageing_seconds and (since := waits_since(job)):
        priority += int((now - since).total_seconds() // pool.spec.ageing_seconds)
    return (-priority, str(job.metadata.creation_timestamp), job.metadata.uid)


def is_pending(world: World, job: FineTuneJob, now: datetime) -> bool:
    """Whether a job without a claim should get GPUs as soon as there are any."""
    if job.spec.suspend or job.spec.managed_by or job.metadata.deletion_timestamp:
        return False
    if any(_trains(stage_job) for stage_job in world.stage_jobs_of.get(job.metadata.uid, {}).values()):
        return False
    if job.spec.scheduling.not_before and now < job.spec.scheduling.not_before:
        return False
    if refusal(world, job):
        return False
    outcomes = all_outcomes(world, job)
    if done(outcomes, Stage.PREPARE) is None or done(outcomes, Stage.TRAIN) is not None:
        return False
    if final_failure(job, outcomes, now) is not None:
        return False
    not_before = next_attempt_at(job, outcomes.of(Stage.TRAIN))
    return not_before is None or now >= not_before


def ready_since(job: FineTuneJob) -> datetime | None:
    """When a job that was never given GPUs became ready for them; None for a later attempt."""
    outcomes = recorded(job)
    prepared = done(outcomes, Stage.PREPARE)
    return prepared.ended_at if prepared and not outcomes.of(Stage.TRAIN) else None


def _trains(stage_job: StageJobView) -> bool:
    return stage_job.stage is Stage.TRAIN and not stage_job.finished


def next_change(world: World, pool: GPUPool, now: datetime) -> datetime | None:
    """When the passing of time alone will change a decision: a pause ends, a job's time comes, an engine lends."""
    jobs = world.unfinished.get(pool.metadata.name, {}).values()
    moments = (
        *(next_attempt_at(job, all_outcomes(world, job).of(Stage.TRAIN)) for job in jobs),
        *(job.spec.scheduling.not_before for job in jobs),
        now + timedelta(seconds=pool.spec.ageing_seconds) if pool.spec.ageing_seconds and jobs else None,
        *(lends_next(world, engine, now) for engine in engines_of(world, pool) if jobs),
    )
    return min((moment for moment in moments if moment and moment > now), default=None)
