"""What should each of an engine's slots be? RULES is an ordered list of small rules: the first with a plan wins."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sluice_api.claim import SlotRef
from sluice_api.inferenceengine import ASLEEP, AWAKE, InferenceEngine, SlotState
from sluice_operator.facts.claims import LiveClaim, Phase
from sluice_operator.facts.live_claims import lent_by_index
from sluice_operator.facts.sleeping import being_used, is_asleep, state_on_the_way
from sluice_operator.facts.slots import (
    SlotPlan,
    pod_of,
    ref,
    serves,
    sleeps,
    slot_status_of,
    wanted,
)
from sluice_operator.observe.fence import looking_at
from sluice_operator.observe.world import World, existing
from sluice_operator.plan.preflight import phase_of
from sluice_operator.plan.reclaim import asked_back
from sluice_operator.plan.stock import Stock


def wakes(world: World, engine: InferenceEngine, plan: SlotPlan) -> bool:
    """Whether a plan ends the sleep of a slot's pod."""
    pod = pod_of(world, engine, plan.index)
    slot_status = slot_status_of(engine, plan.index, pod) if pod else None
    return sleeps(engine) and slot_status is not None and slot_status.state in ASLEEP and plan.state in AWAKE


NEXT_CLAIM_WITHIN = timedelta(seconds=10)
"""How long a slot that comes back waits for the claim of the next job in the queue."""


@dataclass(frozen=True, slots=True)
class Situation:
    """An engine at one moment: all that a rule reads."""

    world: World
    engine: InferenceEngine
    now: datetime
    lent: Mapping[int, LiveClaim]
    """Lent slots, each with the claim that borrows it."""
    asked_back: Collection[int]
    """Lent slots that the engine needs itself."""
    used: Mapping[int, str]
    """Slots whose GPUs are still used by a training pod, each with its job (`being_used`)."""
    promised: Mapping[int, tuple[str, str]]
    """Slots that have just come back and are about to be lent again, each with the job and the GPUs' node."""
    placed: Collection[SlotRef]
    """Slots that have a place on a node of the pool."""


def slot_plans(
    world: World,
    engine: InferenceEngine,
    stock: Stock | None,
    lent: Mapping[SlotRef, LiveClaim],
    promised: Mapping[SlotRef, tuple[str, str]],
    now: datetime,
) -> list[SlotPlan]:
    """A plan for each slot that should exist or is lent, in the order of their indices.

    Args:
        stock: that of the engine's pool; None if the pool is gone.
        lent: lent slots, each with the claim that borrows it.
        promised: slots that the pool's next decision lends again, each with the job and the GPUs' node.
    """
    s = _situation(world, engine, stock, lent, promised, now)
    indices = sorted({*wanted(world, engine, s.lent), *s.lent})
    return [next(plan for rule in RULES if (plan := rule(s, index))) for index in indices]


def _situation(
    world: World,
    engine: InferenceEngine,
    stock: Stock | None,
    lent: Mapping[SlotRef, LiveClaim],
    promised: Mapping[SlotRef, tuple[str, str]],
    now: datetime,
) -> Situation:
    return Situation(
        world=world,
        engine=engine,
        now=now,
        lent=lent_by_index(lent, engine),
        asked_back=asked_back(world, engine, stock, lent) if stock else (),
        used=being_used(world, engine),
        promised={slot.index: to for slot, to in promised.items() if slot == ref(engine, slot.index)},
        placed=stock.placed if stock else (),
    )


def returning(
    world: World, engine: InferenceEngine, stock: Stock, lent: Mapping[SlotRef, LiveClaim], now: datetime
) -> set[SlotRef]:
    """Slots that have just come back and do not serve yet. They wait a moment for the pool's next decision."""
    used, slots = being_used(world, engine), existing(world, engine)
    stopped = {i for i, slot in slots.items() if not slot.size and ref(engine, i) in stock.placed}
    idle = {i for i in slots if i not in used and is_asleep(world, engine, i)} | stopped
    back = (ref(engine, index) for index in idle - lent_by_index(lent, engine).keys())
    return {slot for slot in back if _has_just_come_back(world, slot, now)}


def is_lent(s: Situation, index: int) -> SlotPlan | None:
    """A claim borrows the slot. It goes on, drains, or stops or sleeps, as far as the claim has come."""
    live = s.lent.get(index)
    if live is None:
        return None
    with looking_at(live.key):
        plan = _lent(s.world, s.engine, index, live, s.now)
    return replace(plan, state=SlotState.RECLAIMING) if index in s.asked_back and plan.lent else plan


def is_used(s: Situation, index: int) -> SlotPlan | None:
    """The loan is over, but a training pod still uses the GPUs. The slot sleeps on, or stays stopped."""
    if index not in s.used:
        return None
    slot = existing(s.world, s.engine).get(index)
    return SlotPlan(index, slot.size if slot else 0, SlotState.LENT, s.used[index])


def is_promised(s: Situation, index: int) -> SlotPlan | None:
    """The slot has just come back, and the next job is about to borrow it. It does not start in between."""
    if index not in s.promised:
        return None
    job, node = s.promised[index]
    return SlotPlan(index, existing(s.world, s.engine)[index].size, SlotState.LENT, job, node)


def has_gpus(s: Situation, index: int) -> SlotPlan | None:
    """The slot has a place on a node: it serves, or starts."""
    if ref(s.engine, index) not in s.placed and not _is_on_a_node(s.world, s.engine, index):
        return None
    state = SlotState.SERVING if serves(pod_of(s.world, s.engine, index)) else SlotState.STARTING
    return SlotPlan(index, 1, state)


def waits(_s: Situation, index: int) -> SlotPlan | None:
    """There is no GPU for the slot. It has no pod meanwhile: a pod that waited would take a GPU that is claimed."""
    return SlotPlan(index, 0, SlotState.WAITING)


RULES: tuple[Callable[[Situation, int], SlotPlan | None], ...] = (is_lent, is_used, is_promised, has_gpus, waits)


def _lent(world: World, engine: InferenceEngine, index: int, live: LiveClaim, now: datetime) -> SlotPlan:
    phase = phase_of(world, live)
    slot = existing(world, engine).get(index)
    stopped = slot is None or slot.size == 0
    node = live.claim.home_of(ref(engine, index))
    if sleeps(engine) and not stopped and (phase >= Phase.DRAINING or is_asleep(world, engine, index)):
        return SlotPlan(index, 1, state_on_the_way(world, engine, index, phase, now), live.name, node)
    if phase >= Phase.BINDING or stopped:
        pod = pod_of(world, engine, index)
        return SlotPlan(index, 0, SlotState.STOPPING if pod else SlotState.LENT, live.name, node)
    if phase is Phase.DRAINING:
        return SlotPlan(index, 1, SlotState.DRAINING, live.name, node)
    state = SlotState.SERVING if serves(pod_of(world, engine, index)) else SlotState.STARTING
    return SlotPlan(index, 1, state)


def _is_on_a_node(world: World, engine: InferenceEngine, index: int) -> bool:
    """Whether a slot has a pod on a node. It goes on serving even if that node is not its pool's any more.

    The pool may have been deleted or changed. Or the node's device plugin restarts, and offers no GPU for a minute.
    """
    pod = pod_of(world, engine, index)
    return pod is not None and bool(pod.node) and not pod.deleting


def _has_just_come_back(world: World, slot: SlotRef, now: datetime) -> bool:
    """Whether a loan of the slot ended within NEXT_CLAIM_WITHIN. After that the slot starts: no claim may come."""
    return any(
        stage_job.finished_at and now < stage_job.finished_at + NEXT_CLAIM_WITHIN and slot in stage_job.claim.borrowed
        for stage_job in world.claims_from.get((slot.namespace, slot.engine), {}).values()
        if stage_job.claim
    )
