"""Who gets GPUs now: all pending jobs of a pool at once, in order, each with its claim or its reason to wait."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, NamespaceQuota
from sluice_api.stages import Stage
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import World, identity, key_of
from sluice_operator.plan.allocation.avoided import avoided_until
from sluice_operator.plan.allocation.borrowing import (
    FREE_ONLY,
    Market,
    Terms,
    has_reached,
    is_full,
    within_own,
)
from sluice_operator.plan.allocation.guests import contend, is_guest
from sluice_operator.plan.allocation.interruption import next_to_give_way
from sluice_operator.plan.allocation.inventory import engines_of, take_stock
from sluice_operator.plan.allocation.kept import Kept
from sluice_operator.plan.allocation.lending import lends_next
from sluice_operator.plan.allocation.placement import place, stock_after
from sluice_operator.plan.allocation.refusals import refusal
from sluice_operator.plan.allocation.scale_up import MOST, asks, asks_until
from sluice_operator.plan.allocation.waiting import (
    EXPLAINED,
    Wait,
    Waiting,
    explain,
    far_behind,
    over_quota,
    scaling_up,
)
from sluice_operator.plan.facts.alike import alike
from sluice_operator.plan.facts.claims import live_claims_of
from sluice_operator.plan.facts.outcomes import done, recorded, waits_since
from sluice_operator.plan.facts.readiness import readiness
from sluice_operator.plan.facts.tenants import Held, quota_of
from sluice_operator.plan.fence import behind_a_fence, each, looking_at


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a pool's pending jobs get, and why the others wait."""

    claims: Mapping[Key, Claim] = field(default_factory=dict)
    waits: Mapping[Key, Wait] = field(default_factory=dict)
    asking: tuple[FineTuneJob, ...] = ()
    """Jobs that ask for nodes now."""
    again_at: datetime | None = None
    """When training gives way to the job in front, if it still waits."""


def allocate(world: World, pool: GPUPool, now: datetime, refused: Collection[Key] = ()) -> Allocation:
    """What `handed_out` says of the jobs that are at no fault."""
    return behind_a_fence(world, key_of(pool), lambda seen: handed_out(seen, pool, now, refused))


def next_change(world: World, pool: GPUPool, now: datetime) -> datetime | None:
    """What `next_turn` says of the jobs and engines that are at no fault."""
    return behind_a_fence(world, key_of(pool), lambda seen: next_turn(seen, pool, now))


def handed_out(world: World, pool: GPUPool, now: datetime, refused: Collection[Key] = ()) -> Allocation:
    """Give each pending job its claim, or the reason why it waits.

    Nothing overtakes a job that waits, unless it provably can't delay it: what the waiting job could
    use, the free GPUs of every node that is large enough and so much else of it, every slot that may be
    lent to it and its part of a quota, is out of reach for those behind it. A job that its namespace's
    quota holds back can use none of it, so it holds back its namespace's other jobs only. One that asks
    for nodes may use free GPUs only, but in a while the others too: they are kept for it meanwhile. A
    guest can use no GPUs, only the slots of its namespace, so it holds back guests and borrowers there.

    Args:
        refused: jobs whose claim the API server has just refused to make: what they would get is the next one's.
    """
    stock = take_stock(world, pool)
    market = Market(world, stock, now)
    held = dict(stock.held)
    quotas: dict[str, NamespaceQuota] = {}
    claims: dict[Key, Claim] = {}
    waits: dict[Key, Wait] = {}
    waiting: list[FineTuneJob] = []
    kept = Kept()
    hopeless: dict[object, Terms] = {}
    again_at: datetime | None = None
    for job in (one for one in pending(world, pool, now) if key_of(one) not in refused):
        with looking_at(key_of(job)):
            namespace = job.metadata.namespace
            if namespace not in quotas:
                quotas[namespace] = quota_of(world, pool, namespace)
            mine, quota, theirs = held.get(namespace, Held()), quotas[namespace], kept.of(namespace)
            if has_reached(quota, mine.plus(theirs.gpus), job):
                waits[key_of(job)] = over_quota(world, job, quota, mine, theirs)
                kept.keep_quota(job)
                continue
            kind = alike(world, job)
            if len(waiting) >= EXPLAINED and (terms := hopeless.get(kind)):  # what is left has only become less
                waits[key_of(job)] = far_behind(world, job, len(waiting))
                waiting.append(job)
                kept.keep(stock, job, terms)
                continue
            terms = market.terms(job, quota, mine.plus(borrowed=theirs.borrowed))
            full = is_full(quota, mine.plus(theirs.gpus), job)
            if full:
                terms = Terms() if is_guest(pool, job) or asks(job, now) else within_own(world, terms, namespace)
            ways = FREE_ONLY if asks(job, now) and not full else replace(terms, lenders=terms.lenders - kept.lenders)
            claim = place(world, stock, job, ways, kept, now)
            if claim is not None:
                claims[key_of(job)] = claim
                held[namespace] = mine.with_claim(world, claim, namespace)
                stock = stock_after(world, stock, job, claim)
            elif full:
                waits[key_of(job)] = over_quota(world, job, quota, mine, theirs)
                kept.keep_own(job, terms)
            else:
                gives_way = next_to_give_way(
                    world, stock.staying if ways.displaces and not kept.nodes else (), job, now
                )
                again_at = again_at or (gives_way.at if gives_way else None)
                waits[key_of(job)] = _why_it_waits(Waiting(world, stock, job, terms, waiting, gives_way, now))
                waiting.append(job)
                kept.keep(stock, job, terms)
                if job.spec.scheduling.scale_up_first is None:  # those that ask for nodes do so until their own time
                    hopeless[kind] = terms
    oversized = waiting_for_larger_nodes(world, pool, now)
    waits.update(
        each(
            oversized, key_of, lambda job: (key_of(job), scaling_up(world, stock, job, [], now, _too_large(world, job)))
        )
    )
    asking = [job for job in (*waiting[:EXPLAINED], *oversized) if asks(job, now)]
    return Allocation(claims, waits, tuple(asking[:MOST]), again_at)


def _why_it_waits(w: Waiting) -> Wait:
    """What is said of a job, given those that wait in front."""
    if len(w.ahead) >= EXPLAINED:
        return far_behind(w.world, w.job, len(w.ahead))
    if asks(w.job, w.now):
        return scaling_up(w.world, w.stock, w.job, w.ahead, w.now)
    return explain(replace(w, ahead=[other for other in w.ahead if contend(w.stock.pool, other, w.job)]))


def _too_large(world: World, job: FineTuneJob) -> str:
    found = refusal(world, job)
    return found[1] if found else ""


def waiting_for_larger_nodes(world: World, pool: GPUPool, now: datetime) -> list[FineTuneJob]:
    """Jobs that ask for nodes and fit none that exists, in their order. What is there is of no use to them.

    So they are not in the queue, and hold nobody back, until a node has come.
    """

    def waits(job: FineTuneJob) -> bool:
        larger = asks(job, now) and refusal(world, job) and is_pending(world, job, now, nodes_may_come=True)
        return bool(larger) and not live_claims_of(world, job)

    return _in_order(world, pool, now, waits)


def pending(world: World, pool: GPUPool, now: datetime) -> list[FineTuneJob]:
    """Jobs that are ready for GPUs and hold none, in their order: priority, then age."""
    return _in_order(world, pool, now, lambda job: is_pending(world, job, now) and not live_claims_of(world, job))


def _in_order(world: World, pool: GPUPool, now: datetime, belongs: Callable[[FineTuneJob], bool]) -> list[FineTuneJob]:
    """Those of a pool's unfinished jobs that belong in a queue, in their order."""
    jobs = world.unfinished.get(pool.metadata.name, {}).values()
    places = each(jobs, key_of, lambda job: (place_in_queue(pool, job, now), job) if belongs(job) else None)
    return [job for _, job in sorted((found for found in places if found), key=lambda found: found[0])]


def place_in_queue(pool: GPUPool, job: FineTuneJob, now: datetime) -> tuple[int, str, str]:
    """Sort key: higher priority first, then the older one. Waiting raises a job, if the pool says so."""
    priority = job.spec.scheduling.priority
    if pool.spec.ageing_seconds and (since := waits_since(job)):
        priority += int((now - since).total_seconds() // pool.spec.ageing_seconds)
    return (-priority, str(job.metadata.creation_timestamp), job.metadata.uid)


def is_pending(world: World, job: FineTuneJob, now: datetime, *, nodes_may_come: bool = False) -> bool:
    """Whether a job without a claim should get GPUs as soon as there are any.

    Args:
        nodes_may_come: even if it is larger than what exists.
    """
    if any(_trains(stage_job) for stage_job in world.stage_jobs_of.get(identity(job), {}).values()):
        return False
    return readiness(world, job).at(now) and refusal(world, job, nodes_may_come=nodes_may_come) is None


def ready_since(job: FineTuneJob) -> datetime | None:
    """When a job that was never given GPUs became ready for them; None for a later attempt."""
    outcomes = recorded(job)
    prepared = done(outcomes, Stage.PREPARE)
    return prepared.ended_at if prepared and not outcomes.of(Stage.TRAIN) else None


def _trains(stage_job: StageJobView) -> bool:
    return stage_job.stage is Stage.TRAIN and not stage_job.finished


def _turns(world: World, job: FineTuneJob) -> tuple[datetime | None, ...]:
    """When the passing of time alone may change what is decided about a job."""
    return (readiness(world, job).begins, asks_until(job), *avoided_until(job))


def next_turn(world: World, pool: GPUPool, now: datetime) -> datetime | None:
    """When the passing of time alone will change a decision: a pause ends, a job's time comes, an engine lends."""
    jobs = world.unfinished.get(pool.metadata.name, {}).values()
    moments = (
        *(at for found in each(jobs, key_of, lambda job: _turns(world, job)) for at in found),
        now + timedelta(seconds=pool.spec.ageing_seconds) if pool.spec.ageing_seconds and jobs else None,
        *each(engines_of(world, pool) if jobs else (), key_of, lambda engine: lends_next(world, engine, now)),
    )
    return min((moment for moment in moments if moment and moment > now), default=None)
