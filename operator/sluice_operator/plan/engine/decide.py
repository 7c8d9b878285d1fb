"""An engine's size, slot by slot: granted what GPUs allow, less what is lent, changed one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus, SlotState
from sluice_operator.observe.views import SlotView
from sluice_operator.observe.world import World
from sluice_operator.plan.allocation.guests import crowds_out
from sluice_operator.plan.allocation.lending import LOOK_AT_LOAD
from sluice_operator.plan.engine.placeholders import Placeholders, plan_placeholders
from sluice_operator.plan.engine.slot_plans import NEXT_CLAIM_WITHIN, slot_plans
from sluice_operator.plan.engine.status import engine_status
from sluice_operator.plan.facts.claims import borrowers, live_claims_from
from sluice_operator.plan.facts.pools import find_pool
from sluice_operator.plan.facts.sleeping import wakes
from sluice_operator.plan.facts.slot_devices import SlotDevices, plan_slot_devices
from sluice_operator.plan.facts.slots import SlotPlan, existing, floor_of, pod_of, ref, serves, template_of

_UNDER_WAY = (SlotState.DRAINING, SlotState.SLEEPING)


@dataclass(frozen=True, slots=True)
class EngineDecision:
    """What an engine needs now."""

    apply: tuple[SlotPlan, ...]
    """Slots that get a whole Deployment: new ones, stopped ones that start, changed ones whose turn it is."""
    stop: tuple[SlotView, ...]
    """Slots that go to size 0."""
    remove: tuple[SlotView, ...]
    """Slots that are no longer wanted; their pods drain by themselves."""
    woken: tuple[SlotView, ...]
    """Slots that wake now: their pause begins, as if they had started anew."""
    placeholders: Placeholders
    devices: SlotDevices
    status: InferenceEngineStatus
    again_at: datetime | None = None


def plan_engine(world: World, engine: InferenceEngine, now: datetime) -> EngineDecision:
    """Decide the size of every slot.

    A lent slot goes to 0 only when the trainer that borrows it is ungated and nominated; then the
    scheduler binds the trainer the moment the GPU is free, and nobody steals it. One that comes back
    while the next job is about to borrow it stays at 0, for a moment: nothing would be served in between.
    One that sleeps keeps its size.
    """
    lent = borrowers(world, live_claims_from(world, engine))
    slots = existing(world, engine)
    plans = slot_plans(world, engine, lent, now)
    pool = find_pool(world, engine.spec.resources.pool)
    rollout = _rollout(world, engine, pool, plans, slots)
    apply = [
        _on(slots.get(plan.index), plan, now)
        for plan in plans
        if plan.size and (plan.index not in slots or slots[plan.index].size == 0 or plan.index == rollout)
    ]
    stop = [slots[p.index] for p in plans if not p.size and p.index in slots and slots[p.index].size]
    kept = {plan.index for plan in plans}
    woken = [slots[plan.index] for plan in plans if plan.index in slots and wakes(world, engine, plan)]
    remove = [slot for index, slot in slots.items() if index not in kept]
    placeholders = plan_placeholders(world, engine, plans, now)
    drained_at = now + timedelta(seconds=1) if any(p.state in _UNDER_WAY for p in plans) else None
    claimed_by = now + NEXT_CLAIM_WITHIN if any(p.lent_to and ref(engine, p.index) not in lent for p in plans) else None
    outdated = any(slots[i].template != template_of(engine) and slots[i].size for i in kept & slots.keys())
    asks = engine.spec.preemption.reclaim_above is not None and any(plan.lent_to for plan in plans)
    load_at = now + LOOK_AT_LOAD if asks else None
    return EngineDecision(
        apply=tuple(apply),
        stop=tuple(stop),
        remove=tuple(remove),
        woken=tuple(woken),
        placeholders=placeholders,
        devices=plan_slot_devices(world, engine, pool, plans, {plan.index for plan in apply}),
        status=engine_status(world, engine, plans, now, outdated and rollout is None),
        again_at=min((at for at in (drained_at, claimed_by, load_at, placeholders.again_at) if at), default=None),
    )


def _on(slot: SlotView | None, plan: SlotPlan, now: datetime) -> SlotPlan:
    """A plan for the Deployment that is there, if one is: it is told when it was last started again."""
    return replace(plan, uid=slot.uid, restarted_at=slot.restarted_at if slot.size else now) if slot else plan


def _rollout(
    world: World, engine: InferenceEngine, pool: GPUPool | None, plans: list[SlotPlan], slots: Mapping[int, SlotView]
) -> int | None:
    """The next slot to restart with a changed spec; None when there is none or it must wait.

    One at a time. While slots are lent, only as long as one less still leaves the floor. Not one that has guests
    who could not stay.
    """
    running = [p.index for p in plans if p.size and p.index in slots and not p.lent_to]
    outdated = [index for index in running if slots[index].size and slots[index].template != template_of(engine)]
    if not outdated:
        return None
    serving = {index for index in running if serves(pod_of(world, engine, index))}
    outdated = [index for index in outdated if not (pool and crowds_out(world, pool, engine, index))]
    idle = [index for index in outdated if index not in serving]
    if idle or not outdated:
        return idle[0] if idle else None
    lending = any(plan.lent_to for plan in plans)
    room = len(serving) - 1 >= floor_of(engine) if lending else len(serving) == len(running)
    return outdated[0] if room else None
