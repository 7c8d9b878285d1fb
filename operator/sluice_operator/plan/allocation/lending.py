"""Whether an engine lends to a job now, from when on it will, and whether it needs its replicas itself."""

from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine, LendingPolicy, Reclaim
from sluice_api.reasons import Reason
from sluice_operator.observe.world import LOAD_SECONDS, World
from sluice_operator.plan.allocation.inventory import Stock
from sluice_operator.plan.facts.belief import lends_to
from sluice_operator.plan.facts.sleeping import sleep_refusal
from sluice_operator.plan.facts.slots import existing, pod_of, serves, sleeps

LOOK_AT_LOAD = timedelta(seconds=5)
"""How often what depends on an engine's load is decided again."""

_STARTS_WITHIN = timedelta(minutes=10)
"""How long a replica that is back may take to serve before its engine lends again all the same."""

PASSING = frozenset({Reason.ENGINE_COOLS_DOWN, Reason.ENGINE_IN_DEMAND, Reason.ENGINE_LENDS_LATER})
"""Refusals that end by themselves."""


def lending_refusal(
    world: World, stock: Stock, engine: InferenceEngine, job: FineTuneJob, now: datetime
) -> Reason | None:
    """Why an engine does not lend to a job now, whatever is in use; None when it may."""
    terms = engine.spec.preemption
    if terms.policy is LendingPolicy.NEVER or engine.metadata.deletion_timestamp:
        return Reason.ENGINE_NEVER_LENDS
    if no_way := _no_way(engine, stock.pool, job):
        return no_way
    if not lends_to(world, engine, job.metadata.namespace):
        return Reason.ENGINE_LENDS_ELSEWHERE
    if terms.priority > job.spec.scheduling.priority:
        return Reason.ENGINE_OUTRANKS
    if terms.borrow_windows and not any(window.is_open(now) for window in terms.borrow_windows):
        return Reason.ENGINE_LENDS_LATER if window_opens(engine, now) else Reason.TIME_ZONE_UNKNOWN
    if (cooled := cooled_down(world, engine)) and now < cooled:
        return Reason.ENGINE_COOLS_DOWN
    if lacking(world, stock, engine) or is_unknown(world, engine, now) or is_busy(world, engine, fewer=1):
        return Reason.ENGINE_IN_DEMAND
    return None


def lends_next(world: World, engine: InferenceEngine, now: datetime) -> datetime | None:
    """When the passing of time alone may end an engine's refusal: a window opens, a pause ends, load falls."""
    moments = (
        window_opens(engine, now),
        cooled_down(world, engine),
        now + LOOK_AT_LOAD if engine.spec.preemption.reclaim_above else None,
    )
    return min((moment for moment in moments if moment and moment > now), default=None)


def window_opens(engine: InferenceEngine, now: datetime) -> datetime | None:
    """When the engine's next borrow window opens; None when it has none that ever does."""
    openings = (window.opens_after(now) for window in engine.spec.preemption.borrow_windows)
    return min((opening for opening in openings if opening), default=None)


def cooled_down(world: World, engine: InferenceEngine) -> datetime | None:
    """When the pause after the last return is over at the latest; None for an engine without one.

    It is not over before the replica serves: lent again while it starts, it would never have served at all.
    """
    pause = timedelta(seconds=engine.spec.preemption.cool_down_seconds)
    if not pause:
        return None
    moments = (
        slot.restarted_at + (pause if serves(pod_of(world, engine, index)) else max(pause, _STARTS_WITHIN))
        for index, slot in existing(world, engine).items()
        if slot.restarted_at and slot.size
    )
    return max(moments, default=None)


def lacking(world: World, stock: Stock, engine: InferenceEngine) -> bool:
    """Whether an engine, which takes loans back on demand, should have replicas that it finds no GPU for."""
    if engine.spec.preemption.reclaim is not Reclaim.ON_DEMAND:
        return False
    here = (engine.metadata.namespace, engine.metadata.name)
    waiting = {slot.index for slot in stock.waiting_slots if (slot.namespace, slot.engine) == here}
    return bool(waiting - being_left(world, engine))


def being_left(world: World, engine: InferenceEngine) -> set[int]:
    """Slots whose loan is over, but whose borrower's pod is not gone yet."""
    here = (engine.metadata.namespace, engine.metadata.name)
    return {
        slot.index
        for stage_job in world.claims_from.get(here, {}).values()
        if stage_job.claim and stage_job.deleting and lends_to(world, engine, stage_job.key.namespace)
        for slot in stage_job.claim.borrowed
        if (slot.namespace, slot.engine) == here
    }


def is_unknown(world: World, engine: InferenceEngine, now: datetime) -> bool:
    """Whether this term is too young to know the load of an engine's replicas, and its terms ask for that."""
    asks = engine.spec.preemption.reclaim_above is not None
    return asks and world.since is not None and now < world.since + timedelta(seconds=LOAD_SECONDS)


def is_busy(world: World, engine: InferenceEngine, fewer: int = 0) -> bool:
    """Whether the replicas that serve have more to do than reclaimAbove says, or would have if some were lent."""
    limit = engine.spec.preemption.reclaim_above
    if limit is None:
        return False
    serving = [pod for index in existing(world, engine) if (pod := pod_of(world, engine, index)) and serves(pod)]
    told = [world.reports[pod.uid].load for pod in serving if pod.uid in world.reports]
    return sum(told) > limit * max(0, len(serving) - fewer)


def _no_way(engine: InferenceEngine, pool: GPUPool, job: FineTuneJob) -> Reason | None:
    """Why an engine's replicas make no room for a job in its pool, neither by stopping nor by sleeping.

    Where DRA serves the GPUs no nomination keeps a device that is given back for a pod, so a slot that stops could lose
    it to anybody. One that sleeps keeps it: the trainer uses the slot's own ResourceClaim. That one is its namespace's,
    and one pod's of a job: all pods of a group are made from the same template.
    """
    if sleep_refusal(engine, pool):
        return Reason.ENGINE_CANNOT_SLEEP
    if not pool.spec.by_dra:
        return None
    if not sleeps(engine):
        return Reason.ENGINE_MUST_SLEEP
    if engine.metadata.namespace != job.metadata.namespace:
        return Reason.ENGINE_LENDS_ELSEWHERE
    return Reason.GROUP_BORROWS_NONE if job.spec.resources.nodes > 1 else None
