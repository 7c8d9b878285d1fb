"""Which replicas are lent to a job (the victims)? Those whose loss costs the least."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sluice_api.reasons import Reason
from sluice_operator.observe.world import key_of
from sluice_operator.plan.floor import spare_obstacle
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.stock import UNBOUNDED, NodeStock, PlacedSlot, Stock

Engines = Mapping[str, Obstacle | None]
"""By uid, why each engine does not lend to a job; None if it does."""


class Victims(NamedTuple):
    """Slots that together free enough GPUs, and what keeps some of them from being lent."""

    slots: tuple[PlacedSlot, ...]
    obstacles: tuple[Obstacle, ...] = ()


def choose_victims(
    stock: Stock, node: NodeStock, gpus: int, engines: Engines, now: datetime, *, strict: bool
) -> Victims | None:
    """Slots of one node that free this many GPUs; None when its slots do not suffice.

    Slots that do not serve come first, then the lowest priority, the fewest requests in flight, the newest. The result
    is irreducible: without any one of its slots the job would not fit.

    Args:
        strict: take only slots that may be lent. If False, others may fill up, and `obstacles` says what keeps those.
    """
    mine = [slot for slot in node.slots if slot.engine.metadata.uid in engines]
    if _gpus(mine) < gpus:
        return None
    open_slots = [slot for slot in mine if _is_free_to_lend(slot, engines)]
    if strict and _gpus(open_slots) < gpus:
        return None
    taken = spared(stock, open_slots, now, gpus)
    if strict or _gpus(taken) >= gpus:
        return Victims(_irreducible(taken, gpus)) if _gpus(taken) >= gpus else None
    others = sorted((s for s in mine if s not in taken), key=lambda s: (not _is_free_to_lend(s, engines), _price(s)))
    for slot in others:
        if _gpus(taken) < gpus:
            taken.append(slot)
    slots = _irreducible(taken, gpus)
    return Victims(slots, tuple(dict.fromkeys(_obstacles(stock, slots, engines, now))))


def spared(stock: Stock, slots: Iterable[PlacedSlot], now: datetime, gpus: int = UNBOUNDED) -> list[PlacedSlot]:
    """The slots, the cheapest loss first, that their engines can spare together, until they free this many GPUs."""
    taken: list[PlacedSlot] = []
    for slot in sorted((slot for slot in slots if slot.is_open), key=_price):
        if _gpus(taken) >= gpus:
            break
        if spare_obstacle(stock, [*taken, slot], slot.engine, now) is None:
            taken.append(slot)
    return taken


def _is_free_to_lend(slot: PlacedSlot, engines: Engines) -> bool:
    return slot.is_open and engines[slot.engine.metadata.uid] is None


def slot_obstacle(slot: PlacedSlot) -> Obstacle | None:
    """Why a slot is not lent, as far as that depends on the slot itself; None if it is."""
    name, key = slot.engine.metadata.full_name, key_of(slot.engine)
    if slot.shared:
        message = f"Jobs train beside each replica of {name} (scheduling.policy: Shared)."
        return Obstacle(Reason.ENGINE_HAS_GUESTS, message, ends_with=(key,))
    if not slot.lendable:
        return Obstacle(
            Reason.ENGINE_NOT_READY_TO_SLEEP,
            f"No replica of {name} that could go to sleep serves now.",
            ends_with=(key,),
        )
    return None


def _obstacles(stock: Stock, slots: Sequence[PlacedSlot], engines: Engines, now: datetime) -> Iterable[Obstacle]:
    """What keeps slots from being lent together."""
    for engine in {slot.engine.metadata.uid: slot.engine for slot in slots}.values():
        uid = engine.metadata.uid
        if refusal := engines[uid]:
            yield refusal
        yield from filter(None, (slot_obstacle(slot) for slot in slots if slot.engine.metadata.uid == uid))
        if floor := spare_obstacle(stock, slots, engine, now):
            yield floor


def _gpus(slots: Iterable[PlacedSlot]) -> int:
    return sum(slot.gpus for slot in slots)


def _price(slot: PlacedSlot) -> tuple[bool, int, int, float, str]:
    """Sort key: the cheapest loss first."""
    newest_first = -slot.created.timestamp()
    return (slot.serving, slot.engine.spec.preemption.priority, slot.in_flight, newest_first, str(slot.slot))


def _irreducible(taken: list[PlacedSlot], gpus: int) -> tuple[PlacedSlot, ...]:
    """The slots without those that are not needed, given back in order from the most expensive."""
    kept = list(taken)
    for slot in reversed(taken):
        rest = [victim for victim in kept if victim is not slot]
        if _gpus(rest) >= gpus:
            kept = rest
    return tuple(kept)
