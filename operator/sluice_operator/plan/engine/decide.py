"""What does an engine need now? A size for each slot: as many as the GPUs allow, less the lent ones.

A changed spec restarts one slot at a time.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sluice_api.claim import SlotRef
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine, SlotState
from sluice_operator.facts.live_claims import live_claims_from
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.overlap import borrowers
from sluice_operator.facts.slots import SlotPlan, ref, template_of
from sluice_operator.observe.views import SlotView
from sluice_operator.observe.world import World, existing
from sluice_operator.plan.engine.placeholders import Placeholders, SlotDevices, plan_placeholders, plan_slot_devices
from sluice_operator.plan.engine.rollout import next_rollout
from sluice_operator.plan.engine.slot_plans import NEXT_CLAIM_WITHIN, returning, slot_plans, wakes
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.allocate import allocate_fenced
from sluice_operator.plan.reclaim import next_look_at_load

_UNDER_WAY = (SlotState.DRAINING, SlotState.SLEEPING)


@dataclass(frozen=True, slots=True)
class EngineDecision:
    """What an engine needs now."""

    slots: tuple[SlotPlan, ...]
    """What each slot should be."""
    apply: tuple[SlotPlan, ...]
    """Those of `slots` whose Deployment is written whole: new ones, stopped ones that start, the one to restart."""
    stop: tuple[SlotView, ...]
    """Slots that go to size 0."""
    remove: tuple[SlotView, ...]
    """Slots that are not wanted any more. Their pods drain by themselves."""
    woken: tuple[SlotView, ...]
    """Slots that wake now. The engine's pause before it lends again begins, as after a restart."""
    placeholders: Placeholders
    devices: SlotDevices
    rollout_waits: bool
    """Whether the spec has changed and no slot may restart now (see `next_rollout`)."""
    again_at: datetime | None = None
    """When to look again even if nothing happens."""


def plan_engine(world: World, engine: InferenceEngine, now: datetime) -> EngineDecision:
    """Decide what an engine's slots, placeholders and ResourceClaims should be.

    A lent slot goes to size 0 only when the trainer that borrows it is ungated and nominated. Then the scheduler binds
    the trainer the moment the GPU is free, and no other pod can take it. A slot that returns when the next job is about
    to borrow it stays at 0 for a moment: it would serve nothing in between. A slot that sleeps keeps its size.
    """
    lent = borrowers(world, live_claims_from(world, engine))
    slots = existing(world, engine)
    pool = find_pool(world, engine.spec.resources.pool)
    stock = take_stock(world, pool) if pool else None
    back = returning(world, engine, stock, lent, now) if stock else set()
    promised = _promised(world, pool, back, now) if pool and back else {}
    plans = slot_plans(world, engine, stock, lent, promised, now)
    rollout = next_rollout(world, engine, stock, plans, slots)
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
    load_at = next_look_at_load(engine, plans, now)
    return EngineDecision(
        slots=tuple(plans),
        apply=tuple(apply),
        stop=tuple(stop),
        remove=tuple(remove),
        woken=tuple(woken),
        placeholders=placeholders,
        devices=plan_slot_devices(world, engine, pool, plans, {plan.index for plan in apply}),
        rollout_waits=outdated and rollout is None,
        again_at=min((at for at in (drained_at, claimed_by, load_at, placeholders.again_at) if at), default=None),
    )


def _promised(
    world: World, pool: GPUPool, back: Collection[SlotRef], now: datetime
) -> Mapping[SlotRef, tuple[str, str]]:
    """The slots that the pool's next decision lends again: each with the job, as namespace/name, and the GPUs' node.

    Args:
        back: slots that have just come back.
    """
    return {
        slot: (f"{job.namespace}/{job.name}", claim.home_of(slot))
        for job, claim in allocate_fenced(world, pool, now).claims.items()
        for slot in claim.borrowed
        if slot in back
    }


def _on(slot: SlotView | None, plan: SlotPlan, now: datetime) -> SlotPlan:
    """A plan with its Deployment's uid and the time of its last restart; unchanged if there is no Deployment yet."""
    return replace(plan, uid=slot.uid, restarted_at=slot.restarted_at if slot.size else now) if slot else plan
