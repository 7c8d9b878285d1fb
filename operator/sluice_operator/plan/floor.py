"""How many replicas can an engine spare: by its floor (minReplicas), its PodDisruptionBudgets and its load?"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_operator.facts.slots import floor_of
from sluice_operator.observe.world import key_of
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.stock import PlacedSlot, Stock


def replicas_kept(stock: Stock, engine: InferenceEngine) -> list[PlacedSlot]:
    """The engine's slots that it still wants, without those on their way out."""
    return [slot for slot in stock.slots_of(engine) if slot.stays]


def spare_obstacle(
    stock: Stock, taken: Sequence[PlacedSlot], engine: InferenceEngine, now: datetime
) -> Obstacle | None:
    """Why an engine can't spare these slots together; None if it can.

    Its floor forbids it, or a PodDisruptionBudget, or the requests in flight (preemption.reclaimAbove). The floor holds
    twice: for the slots that the engine has, and for those that serve.
    """
    mine = [victim for victim in taken if victim.engine.metadata.uid == engine.metadata.uid]
    gone = {victim.slot.index for victim in mine}
    has = replicas_kept(stock, engine)
    left, floor = [slot for slot in has if slot.slot.index not in gone], floor_of(engine)
    if len(left) < floor:
        return _at_floor(engine, len(has), len(left), f"{len(has)} of {engine.spec.replicas} replicas are left")
    stopped = sum(1 for victim in mine if victim.serving)
    # Without a PodDisruptionBudget it may lose any number.
    if stopped > stock.may_lose.get(engine.metadata.uid, stopped):
        name = engine.metadata.full_name
        message = f"A PodDisruptionBudget lets none of the replicas of {name} go now."
        if may_lose := stock.may_lose[engine.metadata.uid]:
            message = f"PodDisruptionBudgets let {may_lose} of the replicas of {name} go now, {stopped} are needed."
        return Obstacle(Reason.ENGINE_PROTECTED, message, ends_with=(key_of(engine),))
    serving = sum(1 for slot in left if slot.serving)
    if stopped and serving < floor:
        return _at_floor(engine, serving + stopped, serving, f"{serving + stopped} replicas serve")
    limit = engine.spec.preemption.reclaim_above
    if stopped and limit is not None and stock.load.get(engine.metadata.uid, 0) > limit * serving:
        return in_demand(engine, now)
    return None


def _at_floor(engine: InferenceEngine, has: int, left: int, which: str) -> Obstacle:
    """The obstacle that an engine is at its floor.

    Args:
        has: replicas that count.
        left: replicas of these that would stay if the job had what it needs.
        which: what was counted, for the message.
    """
    name, floor, needed = engine.metadata.full_name, floor_of(engine), has - left
    more = max(0, has - floor)
    can = f"{name} can lend {more} of the {needed} that are needed" if more else f"{name} can lend no more"
    lower = Remedy(
        f"lower preemption.minReplicas of {name} to {left}", key_of(engine), "preemption.minReplicas", max(0, left)
    )
    return Obstacle(
        Reason.ENGINE_AT_FLOOR, f"{can}: {which}, its floor is {floor}.", ends_with=(key_of(engine),), remedies=(lower,)
    )


LOOK_AT_LOAD = timedelta(seconds=5)
"""How often a decision that depends on an engine's load is made again."""


def in_demand(engine: InferenceEngine, now: datetime) -> Obstacle:
    """The obstacle that the replicas left would have too much to do."""
    name, limit = engine.metadata.full_name, engine.spec.preemption.reclaim_above
    message = f"{name} would have more than {limit} requests in flight for each replica (preemption.reclaimAbove)."
    key = key_of(engine)
    less = Remedy(f"wait until {name} has less to do", key)
    return Obstacle(Reason.ENGINE_IN_DEMAND, message, again=now + LOOK_AT_LOAD, ends_with=(key,), remedies=(less,))


def is_held_by_load(stock: Stock, engine: InferenceEngine) -> bool:
    """Whether the engine could lend more replicas above its floor if it had less to do."""
    limit, floor = engine.spec.preemption.reclaim_above, floor_of(engine)
    serving = sum(1 for slot in replicas_kept(stock, engine) if slot.serving)
    return limit is not None and serving > floor and stock.load.get(engine.metadata.uid, 0) > limit * floor
