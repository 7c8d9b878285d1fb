"""Does an engine need its replicas itself, and which lent ones does it ask back (preemption.reclaim, reclaimAbove)?"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sluice_api.claim import SlotRef
from sluice_api.inferenceengine import InferenceEngine, Reclaim
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import LiveClaim, least_first, lends_to
from sluice_operator.facts.live_claims import lent_by_index
from sluice_operator.facts.slots import SlotPlan, pod_of, serves
from sluice_operator.observe.world import LOAD_SECONDS, World, existing, key_of
from sluice_operator.plan.floor import LOOK_AT_LOAD
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.stock import Stock


def lacking(world: World, stock: Stock, engine: InferenceEngine) -> bool:
    """Whether an engine that reclaims on demand should have replicas for which there is no GPU."""
    if engine.spec.preemption.reclaim is not Reclaim.ON_DEMAND:
        return False
    here = (engine.metadata.namespace, engine.metadata.name)
    waiting = {slot.index for slot in stock.waiting_slots if (slot.namespace, slot.engine) == here}
    return bool(waiting - being_left(world, engine))


def being_left(world: World, engine: InferenceEngine) -> set[int]:
    """Indices of the engine's slots that a claim on its way out still borrows: the borrower's Job is being deleted."""
    here = (engine.metadata.namespace, engine.metadata.name)
    return {
        slot.index
        for stage_job in world.claims_from.get(here, {}).values()
        if stage_job.claim and stage_job.deleting and lends_to(world, engine, stage_job.key.namespace)
        for slot in stage_job.claim.borrowed
        if (slot.namespace, slot.engine) == here
    }


def is_busy(world: World, engine: InferenceEngine) -> bool:
    """Whether the serving replicas have more requests in flight than `reclaimAbove` allows."""
    limit = engine.spec.preemption.reclaim_above
    if limit is None:
        return False
    serving = sum(1 for index in existing(world, engine) if serves(pod_of(world, engine, index)))
    return load_of(world, engine) > limit * serving


def load_of(world: World, engine: InferenceEngine) -> float:
    """Requests in flight at all serving replicas together, as their agents report them."""
    serving = [pod for index in existing(world, engine) if (pod := pod_of(world, engine, index)) and serves(pod)]
    return sum(world.reports[pod.uid].load for pod in serving if pod.uid in world.reports)


def asked_back(
    world: World, engine: InferenceEngine, stock: Stock, lent: Mapping[SlotRef, LiveClaim]
) -> frozenset[int]:
    """Lent slots that the engine needs back: all while replicas lack GPUs, and one job's while the engine is busy.

    That job is the one of the lowest priority, then the newest. The next one follows once the returned slots serve.
    """
    mine = lent_by_index(lent, engine)
    if lacking(world, stock, engine):
        return frozenset(mine)
    here = [i for i, slot in existing(world, engine).items() if slot.size and i not in mine]
    starting = any(not serves(pod_of(world, engine, i)) for i in here)
    if starting or being_left(world, engine) or not is_busy(world, engine):
        return frozenset()
    loans: dict[str, list[int]] = {}
    for index in sorted(mine, key=lambda index: least_first(mine[index])):
        loans.setdefault(mine[index].stage_job.uid, []).append(index)
    return frozenset(next(iter(loans.values()), ()))


def next_look_at_load(engine: InferenceEngine, plans: Sequence[SlotPlan], now: datetime) -> datetime | None:
    """When the engine's load must be looked at again; None if nothing is lent, or no load makes the engine reclaim."""
    asks = engine.spec.preemption.reclaim_above is not None and any(plan.lent_to for plan in plans)
    return now + LOOK_AT_LOAD if asks else None


def own_need(world: World, stock: Stock, engine: InferenceEngine, now: datetime) -> Obstacle | None:
    """Why the engine needs all its replicas itself; None if it may spare some (`spare_obstacle` says how many)."""
    name, key = engine.metadata.full_name, key_of(engine)
    asks = engine.spec.preemption.reclaim_above is not None
    # The load is a mean of what this term has heard.
    if asks and world.since and now < (known := world.since + timedelta(seconds=LOAD_SECONDS)):
        message = f"{name} lends when its load is known: for half a minute, since another operator has led."
        return Obstacle(Reason.ENGINE_IN_DEMAND, message, known, ends_with=(key,))
    if lacking(world, stock, engine):
        message = f"{name} should have replicas that it finds no GPU for (preemption.reclaim: OnDemand)."
        also = "remove preemption.reclaimAbove and " if engine.spec.preemption.reclaim_above is not None else ""
        never = Remedy(f"{also}set preemption.reclaim: Never on {name}", key, "preemption.reclaim", "Never")
        return Obstacle(Reason.ENGINE_IN_DEMAND, message, ends_with=(key,), remedies=(never,))
    return None
