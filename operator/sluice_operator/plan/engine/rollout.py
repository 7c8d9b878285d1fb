"""Which replica restarts next with a changed spec?"""

from collections.abc import Mapping, Sequence

from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.facts.slots import SlotPlan, floor_of, pod_of, ref, serves, template_of
from sluice_operator.observe.views import PodView, SlotView
from sluice_operator.observe.world import World
from sluice_operator.plan.colocation import crowds_out
from sluice_operator.plan.reclaim import being_left
from sluice_operator.plan.stock import Stock


def next_rollout(
    world: World, engine: InferenceEngine, stock: Stock | None, plans: Sequence[SlotPlan], slots: Mapping[int, SlotView]
) -> int | None:
    """The next slot to restart with a changed spec; None if there is none, or if it must wait.

    One slot restarts at a time, and one that does not serve comes first and never waits. A slot that serves waits until
    all others serve. While slots are lent or return, it waits until one replica less still leaves the floor. A slot
    whose guests could not stay is left out.
    """
    running = [p.index for p in plans if p.size and p.index in slots and not p.lent_to]
    outdated = [index for index in running if slots[index].size and slots[index].template != template_of(engine)]
    outdated = [index for index in outdated if not _keeps_guests(world, engine, stock, index)]
    serving = {index for index in running if _serves_as_its_slot_says(pod_of(world, engine, index), slots[index])}
    idle = [index for index in outdated if index not in serving]
    if idle or not outdated:
        return idle[0] if idle else None
    lending = any(plan.lent_to for plan in plans) or being_left(world, engine)
    room = len(serving) - 1 >= floor_of(engine) if lending else len(serving) == len(running)
    return outdated[0] if room else None


def _keeps_guests(world: World, engine: InferenceEngine, stock: Stock | None, index: int) -> bool:
    slot = stock.placed.get(ref(engine, index)) if stock else None
    return bool(stock and slot and crowds_out(world, stock.pool, slot))


def _serves_as_its_slot_says(pod: PodView | None, slot: SlotView) -> bool:
    """Whether a pod serves and stays. A pod of an older template is about to be replaced, even if it still serves."""
    return pod is not None and serves(pod) and pod.template == slot.template
