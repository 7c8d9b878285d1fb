"""Which engine slots a job may borrow, and which it takes: the cheapest set of which none can be spared."""

from collections.abc import Collection

from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.plan.allocation.inventory import NodeStock, PlacedSlot, Stock
from sluice_operator.plan.facts.slots import floor_of


def choose_victims(stock: Stock, node: NodeStock, gpus: int, lenders: Collection[str]) -> tuple[PlacedSlot, ...] | None:
    """Slots of one node that free so many GPUs; None when it does not suffice.

    Only slots of the lenders, given by uid, that have no guests are taken: those that serve nobody first, then
    the lowest priority, the fewest requests in flight, the newest. The result is irreducible: giving any one
    back would make the job not fit.
    """
    mine = (slot for slot in node.slots if slot.engine.metadata.uid in lenders)
    open_slots = [slot for slot in mine if slot.is_open]
    taken: list[PlacedSlot] = []
    for slot in sorted(open_slots, key=_price):
        if sum(victim.gpus for victim in taken) >= gpus:
            break
        if _floor_allows(stock, [*taken, slot], slot.engine):
            taken.append(slot)
    if sum(victim.gpus for victim in taken) < gpus:
        return None
    return _irreducible(taken, gpus)


def staying(stock: Stock, engine: InferenceEngine) -> list[PlacedSlot]:
    """The slots that an engine has, and not only until they are gone."""
    return [slot for slot in stock.slots_of.get(engine.metadata.uid, ()) if slot.stays]


def _price(slot: PlacedSlot) -> tuple[bool, int, int, float, str]:
    newest_first = -slot.created.timestamp()
    return (slot.serving, slot.engine.spec.preemption.priority, slot.in_flight, newest_first, str(slot.slot))


def _floor_allows(stock: Stock, taken: list[PlacedSlot], engine: InferenceEngine) -> bool:
    """Whether the engine keeps its floor, of the slots that it has and of those that serve, and its budgets hold."""
    gone = {victim.slot for victim in taken}
    left = [slot for slot in staying(stock, engine) if slot.slot not in gone]
    if len(left) < floor_of(engine):
        return False
    stopped = sum(1 for victim in taken if victim.serving and victim.engine.metadata.uid == engine.metadata.uid)
    if stopped > stock.may_lose.get(engine.metadata.uid, stopped):
        return False
    return not stopped or sum(1 for slot in left if slot.serving) >= floor_of(engine)


def _irreducible(taken: list[PlacedSlot], gpus: int) -> tuple[PlacedSlot, ...]:
    """Give back whatever is not needed, the most precious first."""
    kept = list(taken)
    for slot in reversed(taken):
        rest = [victim for victim in kept if victim is not slot]
        if sum(victim.gpus for victim in rest) >= gpus:
            kept = rest
    return tuple(kept)
