"""Who gets GPUs now: all pending jobs of a pool at once, in order, each with its claim or its reason to wait."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sluice_api.claim import Claim, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.access import denial, lends_next, quota_of
from sluice_operator.plan.borrowing import Held, Market, Terms, has_reached, held_by_namespace, with_claim
from sluice_operator.plan.claims import live_claims
from sluice_operator.plan.fit import lack_on
from sluice_operator.plan.inventory import NodeStock, PlacedSlot, Stock, engines_of, take_stock
from sluice_operator.plan.outcomes import all_outcomes, done, next_attempt_at, recorded
from sluice_operator.plan.pools import find_pool
from sluice_operator.plan.refusals import final_failure
from sluice_operator.plan.victims import choose_victims
from sluice_operator.plan.waiting import Wait, explain, over_quota

_AVOIDED_FOR = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a pool's pending jobs get, and why the others wait."""

    claims: Mapping[Key, Claim] = field(default_factory=dict)
    waits: Mapping[Key, Wait] = field(default_factory=dict)


def allocate(world: World, pool: GPUPool, now: datetime) -> Allocation:
    """Give each pending job its claim, or the reason why it waits.

    Nothing overtakes a job that waits, unless it provably can't delay it: what the waiting job could
    use, free GPUs and every slot that may be lent to it, is out of reach for those behind it. A job
    that its namespace's quota holds back can use neither, so it holds nobody back.
    """
    stock = take_stock(world, pool)
    market = Market(world, stock, now)
    held = held_by_namespace(world, stock)
    claims: dict[Key, Claim] = {}
    waits: dict[Key, Wait] = {}
    waiting: list[FineTuneJob] = []
    promised: frozenset[str] = frozenset()
    for job in pending(world, pool, now):
        namespace = job.metadata.namespace
        mine, quota = held.get(namespace, Held()), quota_of(world, pool, namespace)
        if has_reached(quota, mine, job):
            waits[key_of(job)] = over_quota(pool, job, quota, mine)
            continue
        terms = market.terms(job, quota, mine)
        claim = _place(world, stock, job, replace(terms, lenders=terms.lenders - promised), bool(waiting), now)
        if claim is not None:
            claims[key_of(job)] = claim
            held[namespace] = with_claim(world, mine, claim)
            stock = _with_claim(stock, job, claim)
        else:
            waits[key_of(job)] = explain(world, stock, job, terms, waiting, now)
            waiting.append(job)
            promised |= terms.lenders
    return Allocation(claims, waits)


def pending(world: World, pool: GPUPool, now: datetime) -> list[FineTuneJob]:
    """Jobs that are ready for GPUs and hold none, in their order: priority, then age."""
    holding = {live.job.metadata.uid for live in live_claims(world)}
    found = [
        job
        for job in world.jobs.values()
        if job.spec.resources.pool == pool.metadata.name
        and job.metadata.uid not in holding
        and is_pending(world, job, now)
    ]
    return sorted(found, key=place_in_queue)


def place_in_queue(job: FineTuneJob) -> tuple[int, str, str]:
    """Sort key: higher priority first, then the older one."""
    return (-job.spec.scheduling.priority, str(job.metadata.creation_timestamp), job.metadata.uid)


def is_pending(world: World, job: FineTuneJob, now: datetime) -> bool:
    """Whether a job without a claim should get GPUs as soon as there are any."""
    if job.spec.suspend or job.spec.managed_by or job.metadata.deletion_timestamp:
        return False
    if job.spec.scheduling.not_before and now < job.spec.scheduling.not_before:
        return False
    pool = find_pool(world, job.spec.resources.pool)
    if pool is None or denial(world, pool, job):
        return False
    outcomes = all_outcomes(world, job)
    if done(outcomes, Stage.PREPARE) is None or done(outcomes, Stage.TRAIN) is not None:
        return False
    if final_failure(job, outcomes, now) is not None or any(_trains(s) for s in _stage_jobs(world, job)):
        return False
    not_before = next_attempt_at(outcomes.of(Stage.TRAIN))
    return not_before is None or now >= not_before


def ready_since(job: FineTuneJob) -> datetime | None:
    """When a job that was never given GPUs became ready for them; None for a later attempt."""
    outcomes = recorded(job)
    prepared = done(outcomes, Stage.PREPARE)
    return prepared.ended_at if prepared and not outcomes.of(Stage.TRAIN) else None


def _stage_jobs(world: World, job: FineTuneJob) -> list[StageJobView]:
    return list(world.stage_jobs_of.get(job.metadata.uid, {}).values())


def _trains(stage_job: StageJobView) -> bool:
    return stage_job.stage is Stage.TRAIN and not stage_job.finished


def _place(
    world: World, stock: Stock, job: FineTuneJob, terms: Terms, others_wait: bool, now: datetime
) -> Claim | None:
    """The best node: free GPUs before borrowed ones, fewest victims, the tightest fit."""
    avoided = _avoided(world, job, now)
    options = []
    for node in stock.nodes.values():
        if node.refusal or node.name in avoided:
            continue
        victims = _victims(stock, node, job, terms, 0 if others_wait else node.free)
        if victims is None or lack_on(world, node, job, victims):
            continue
        cost = sum(victim.in_flight for victim in victims)
        options.append(((len(victims), cost, node.free, node.name), node, victims))
    if not options:
        return None
    _, node, victims = min(options, key=lambda option: option[0])
    return Claim(
        pool=stock.pool.metadata.name,
        resource=stock.pool.spec.resource_name,
        node=node.name,
        gpus=job.spec.resources.gpus,
        borrowed=tuple(victim.slot for victim in victims),
        term=world.term,
    )


def _victims(stock: Stock, node: NodeStock, job: FineTuneJob, terms: Terms, free: int) -> tuple[PlacedSlot, ...] | None:
    """Slots to borrow on this node so that the job fits; () when none is needed, None when it can't fit."""
    lacking = job.spec.resources.gpus - free
    if lacking <= 0:
        return ()
    return choose_victims(stock, node, lacking, terms.lenders) if lacking <= terms.most else None


def _avoided(world: World, job: FineTuneJob, now: datetime) -> set[str]:
    """Nodes on which the job could not be bound a moment ago."""
    return {
        outcome.node
        for outcome in all_outcomes(world, job).of(Stage.TRAIN)
        if outcome.reason == Reason.NOT_BOUND and outcome.ended_at and now < outcome.ended_at + _AVOIDED_FOR
    }


def _with_claim(stock: Stock, job: FineTuneJob, claim: Claim) -> Stock:
    """The stock once a claim is made: later jobs see its GPUs as taken and its slots as lent."""
    node = stock.nodes[claim.node]
    borrowed: set[SlotRef] = set(claim.borrowed)
    return stock.with_node(
        replace(
            node,
            claimed=node.claimed + max(claim.gpus, sum(s.gpus for s in node.slots if s.slot in borrowed)),
            slots=tuple(slot for slot in node.slots if slot.slot not in borrowed),
        )
    ).with_granted(job)


def next_change(world: World, pool: GPUPool, now: datetime) -> datetime | None:
    """When the passing of time alone will change a decision: a pause ends, a job's time comes, an engine lends."""
    jobs = [
        job
        for job in world.jobs.values()
        if job.spec.resources.pool == pool.metadata.name and not job.status.finished_at
    ]
    moments = (
        *(next_attempt_at(all_outcomes(world, job).of(Stage.TRAIN)) for job in jobs),
        *(job.spec.scheduling.not_before for job in jobs),
        *(lends_next(engine, now) for engine in engines_of(world, pool)),
    )
    return min((moment for moment in moments if moment and moment > now), default=None)
