"""Who is a victim: which engine slots a job may borrow, and the cheapest set of which none can be spared."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_operator.observe.world import key_of
from sluice_operator.plan.allocation.inventory import NodeStock, PlacedSlot, Stock
from sluice_operator.plan.facts.slots import floor_of
from sluice_operator.plan.obstacle import Obstacle, Remedy

Engines = Mapping[str, Obstacle | None]
"""By uid, why each engine does not lend to a job; None if it does."""


class Victims(NamedTuple):
    """Slots that free enough GPUs, and what keeps some of them from being lent."""

    slots: tuple[PlacedSlot, ...]
    obstacles: tuple[Obstacle, ...] = ()


def choose_victims(stock: Stock, node: NodeStock, gpus: int, engines: Engines, *, strict: bool) -> Victims | None:
    """Slots of one node that free so many GPUs; None when it does not suffice.

    Those that serve nobody first, then the lowest priority, the fewest requests in flight, the newest. The result is
    irreducible: giving any one back would make the job not fit.

    Args:
        strict: only slots that nothing keeps from being lent. Else others make up for what is missing, and the
            obstacles say what keeps those.
    """
    mine = [slot for slot in node.slots if slot.engine.metadata.uid in engines]
    taken: list[PlacedSlot] = []
    for slot in sorted((slot for slot in mine if _is_free_to_lend(slot, engines)), key=_price):
        if _gpus(taken) >= gpus:
            break
        if floor_obstacle(stock, [*taken, slot], slot.engine) is None:
            taken.append(slot)
    if strict or _gpus(taken) >= gpus:
        return Victims(_irreducible(taken, gpus)) if _gpus(taken) >= gpus else None
    others = sorted((s for s in mine if s not in taken), key=lambda s: (not _is_free_to_lend(s, engines), _price(s)))
    for slot in others:
        if _gpus(taken) < gpus:
            taken.append(slot)
    if _gpus(taken) < gpus:
        return None
    slots = _irreducible(taken, gpus)
    return Victims(slots, tuple(dict.fromkeys(_obstacles(stock, slots, engines))))


def staying(stock: Stock, engine: InferenceEngine) -> list[PlacedSlot]:
    """The slots that an engine has, and not only until they are gone."""
    return [slot for slot in stock.slots_of.get(engine.metadata.uid, ()) if slot.stays]


def floor_obstacle(stock: Stock, taken: Sequence[PlacedSlot], engine: InferenceEngine) -> Obstacle | None:
    """Why an engine can't spare some slots: of those that it has and of those that serve it keeps its floor.

    And its PodDisruptionBudgets hold.
    """
    gone = {victim.slot for victim in taken if victim.engine.metadata.uid == engine.metadata.uid}
    has = staying(stock, engine)
    left, floor = [slot for slot in has if slot.slot not in gone], floor_of(engine)
    if len(left) < floor:
        return _at_floor(engine, len(has), len(left), f"{len(has)} of {engine.spec.replicas} replicas are left")
    stopped = sum(1 for victim in taken if victim.serving and victim.slot in gone)
    if stopped > stock.may_lose.get(engine.metadata.uid, stopped):
        name = engine.metadata.name
        message = f"A PodDisruptionBudget lets none of the replicas of {name} go now."
        if may_lose := stock.may_lose[engine.metadata.uid]:
            message = f"PodDisruptionBudgets let {may_lose} of the replicas of {name} go now, {stopped} are needed."
        return Obstacle(Reason.ENGINE_PROTECTED, message, ends_with=(key_of(engine),))
    serving = sum(1 for slot in left if slot.serving)
    if stopped and serving < floor:
        return _at_floor(engine, serving + stopped, serving, f"{serving + stopped} replicas serve")
    return None


def _at_floor(engine: InferenceEngine, has: int, left: int, which: str) -> Obstacle:
    """That an engine is at its floor.

    Args:
        has: replicas that count.
        left: of these, if the job had what it needs.
    """
    name, floor, needed = engine.metadata.name, floor_of(engine), has - left
    more = max(0, has - floor)
    can = f"{name} can lend {more} of the {needed} that are needed" if more else f"{name} can lend no more"
    lower = Remedy(
        f"lower preemption.minReplicas of {name} to {left}", key_of(engine), "preemption.minReplicas", max(0, left)
    )
    return Obstacle(
        Reason.ENGINE_AT_FLOOR, f"{can}: {which}, its floor is {floor}.", ends_with=(key_of(engine),), remedies=(lower,)
    )


def _is_free_to_lend(slot: PlacedSlot, engines: Engines) -> bool:
    return slot.is_open and engines[slot.engine.metadata.uid] is None


def slot_obstacle(slot: PlacedSlot) -> Obstacle | None:
    """Why a slot is not lent, as far as it depends on itself."""
    name, key = slot.engine.metadata.name, key_of(slot.engine)
    if slot.shared:
        message = f"Jobs train beside each replica of {name} (scheduling.policy: Shared)."
        return Obstacle(Reason.ENGINE_HAS_GUESTS, message, ends_with=(key,))
    if not slot.lendable:
        return Obstacle(
            Reason.ENGINE_WAKES, f"No replica of {name} that could go to sleep serves now.", ends_with=(key,)
        )
    return None


def _obstacles(stock: Stock, slots: Sequence[PlacedSlot], engines: Engines) -> Iterable[Obstacle]:
    """What keeps slots from being lent together."""
    for engine in {slot.engine.metadata.uid: slot.engine for slot in slots}.values():
        uid = engine.metadata.uid
        if refusal := engines[uid]:
            yield refusal
        yield from filter(None, (slot_obstacle(slot) for slot in slots if slot.engine.metadata.uid == uid))
        if floor := floor_obstacle(stock, slots, engine):
            yield floor


def _gpus(slots: Iterable[PlacedSlot]) -> int:
    return sum(slot.gpus for slot in slots)


def _price(slot: PlacedSlot) -> tuple[bool, int, int, float, str]:
    newest_first = -slot.created.timestamp()
    return (slot.serving, slot.engine.spec.preemption.priority, slot.in_flight, newest_first, str(slot.slot))


def _irreducible(taken: list[PlacedSlot], gpus: int) -> tuple[PlacedSlot, ...]:
    """Give back whatever is not needed, the most precious first."""
    kept = list(taken)
    for slot in reversed(taken):
        rest = [victim for victim in kept if victim is not slot]
        if _gpus(rest) >= gpus:
            kept = rest
    return tuple(kept)
