"""An engine's size, slot by slot: granted what GPUs allow, less what is lent, changed one at a time."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sluice_api.claim import SlotRef
from sluice_api.conditions import EngineCondition
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus, SlotState, SlotStatus
from sluice_api.meta import ENGINE_LABEL
from sluice_api.reasons import Reason
from sluice_operator.observe.views import SlotView
from sluice_operator.observe.world import World
from sluice_operator.plan.allocation import allocate
from sluice_operator.plan.claims import LiveClaim, Phase, borrowers, live_claims_from
from sluice_operator.plan.conditions import condition
from sluice_operator.plan.inventory import Stock, lent_indices, take_stock
from sluice_operator.plan.lending import LOOK_AT_LOAD, being_left, is_busy, lacking
from sluice_operator.plan.placeholders import Placeholders, plan_placeholders
from sluice_operator.plan.pools import find_pool
from sluice_operator.plan.proof import phase_of
from sluice_operator.plan.sleeping import being_used, is_asleep, sleep_refusal, state_on_the_way, wakes
from sluice_operator.plan.slot_devices import SlotDevices, plan_slot_devices
from sluice_operator.plan.slots import SlotPlan, existing, floor_of, pod_of, ref, serves, sleeps, template_of, wanted

_NEXT_CLAIM_WITHIN = timedelta(seconds=10)
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
    plans = _slot_plans(world, engine, lent, now)
    rollout = _rollout(world, engine, plans, slots)
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
    pool = find_pool(world, engine.spec.resources.pool)
    drained_at = now + timedelta(seconds=1) if any(p.state in _UNDER_WAY for p in plans) else None
    claimed_by = (
        now + _NEXT_CLAIM_WITHIN if any(p.lent_to and ref(engine, p.index) not in lent for p in plans) else None
    )
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
        status=_status(world, engine, plans, now, outdated and rollout is None),
        again_at=min((at for at in (drained_at, claimed_by, load_at, placeholders.again_at) if at), default=None),
    )


def _on(slot: SlotView | None, plan: SlotPlan, now: datetime) -> SlotPlan:
    """A plan for the Deployment that is there, if one is: it is told when it was last started again."""
    return replace(plan, uid=slot.uid, restarted_at=slot.restarted_at if slot.size else now) if slot else plan


def _slot_plans(
    world: World, engine: InferenceEngine, lent: Mapping[SlotRef, LiveClaim], now: datetime
) -> list[SlotPlan]:
    borrowed = {index: lent[ref(engine, index)] for index in lent_indices(lent, engine)}
    pool = find_pool(world, engine.spec.resources.pool)
    stock = take_stock(world, pool) if pool else None
    placed: Mapping[SlotRef, object] = stock.placed if stock else {}
    asked_back = _asked_back(world, engine, stock, lent) if stock else frozenset[int]()
    used = being_used(world, engine)
    slots = existing(world, engine)
    stopped = {i for i, slot in slots.items() if not slot.size and ref(engine, i) in placed}
    idle = {i for i in slots if i not in used and is_asleep(world, engine, i)} | stopped
    returning = {i for i in idle - {*borrowed} if _has_just_come_back(world, ref(engine, i), now)}
    promised = _promised(world, engine, pool, returning, now) if pool and returning else {}
    plans = []
    for index in sorted({*wanted(world, engine, borrowed), *borrowed}):
        live = borrowed.get(index)
        if live is not None:
            plan = _lent(world, engine, index, live, now)
            asked = index in asked_back and plan.lent
            plans.append(replace(plan, state=SlotState.RECLAIMING) if asked else plan)
        elif index in used:
            plans.append(SlotPlan(index, 1, SlotState.LENT, used[index]))
        elif index in promised:
            job, node = promised[index]
            plans.append(SlotPlan(index, slots[index].size, SlotState.LENT, job, node))
        elif ref(engine, index) in placed or _is_on_a_node(world, engine, index):
            state = SlotState.SERVING if serves(pod_of(world, engine, index)) else SlotState.STARTING
            plans.append(SlotPlan(index, 1, state))
        else:
            plans.append(SlotPlan(index, 0, SlotState.WAITING))
    return plans


def _is_on_a_node(world: World, engine: InferenceEngine, index: int) -> bool:
    """Whether a slot runs where its pool has no node any more: that is no reason to stop serving.

    The pool may be deleted or changed, or the node's device plugin restarts, and for a minute it offers no GPU.
    """
    pod = pod_of(world, engine, index)
    return pod is not None and bool(pod.node) and not pod.deleting


def _asked_back(
    world: World, engine: InferenceEngine, stock: Stock, lent: Mapping[SlotRef, LiveClaim]
) -> frozenset[int]:
    """Lent slots that the engine needs itself: all while replicas lack GPUs, one at a time while there is much to do.

    One of them: of the job of the lowest priority, then of the newest.
    """
    if lacking(world, stock, engine):
        return frozenset(lent_indices(lent, engine))
    here = [i for i, slot in existing(world, engine).items() if slot.size and ref(engine, i) not in lent]
    starting = any(not serves(pod_of(world, engine, i)) for i in here)
    if starting or being_left(world, engine) or not is_busy(world, engine):
        return frozenset()
    loans: dict[str, list[int]] = {}
    for index in sorted(lent_indices(lent, engine), key=lambda index: _least_first(lent[ref(engine, index)])):
        loans.setdefault(lent[ref(engine, index)].stage_job.uid, []).append(index)
    return frozenset(next(iter(loans.values()), ()))


def _least_first(live: LiveClaim) -> tuple[int, float, str]:
    return (live.job.spec.scheduling.priority, -live.stage_job.created.timestamp(), live.stage_job.uid)


def _promised(
    world: World, engine: InferenceEngine, pool: GPUPool, returning: Collection[int], now: datetime
) -> dict[int, tuple[str, str]]:
    """Of the slots that come back, those that the pool's next decision lends: to which job, on which node."""
    return {
        slot.index: (f"{job.namespace}/{job.name}", claim.home_of(slot))
        for job, claim in allocate(world, pool, now).claims.items()
        for slot in claim.borrowed
        if slot == ref(engine, slot.index) and slot.index in returning
    }


def _has_just_come_back(world: World, slot: SlotRef, now: datetime) -> bool:
    """Whether a loan of the slot ended a moment ago. The engine waits no longer: the next claim may never be made."""
    return any(
        stage_job.finished_at and now < stage_job.finished_at + _NEXT_CLAIM_WITHIN and slot in stage_job.claim.borrowed
        for stage_job in world.claims_from.get((slot.namespace, slot.engine), {}).values()
        if stage_job.claim
    )


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


def _rollout(world: World, engine: InferenceEngine, plans: list[SlotPlan], slots: Mapping[int, SlotView]) -> int | None:
    """The next slot to restart with a changed spec; None when there is none or it must wait.

    One at a time. While slots are lent, only as long as one less still leaves the floor.
    """
    running = [p.index for p in plans if p.size and p.index in slots and not p.lent_to]
    outdated = [index for index in running if slots[index].size and slots[index].template != template_of(engine)]
    if not outdated:
        return None
    serving = {index for index in running if serves(pod_of(world, engine, index))}
    idle = [index for index in outdated if index not in serving]
    if idle:
        return idle[0]
    lending = any(plan.lent_to for plan in plans)
    room = len(serving) - 1 >= floor_of(engine) if lending else len(serving) == len(running)
    return outdated[0] if room else None


def _status(
    world: World, engine: InferenceEngine, plans: list[SlotPlan], now: datetime, rollout_waits: bool
) -> InferenceEngineStatus:
    slots = tuple(_slot_status(world, engine, plan, now) for plan in plans)
    ready = sum(1 for plan in plans if serves(pod_of(world, engine, plan.index)))
    lent = [plan for plan in plans if plan.lent]
    has_pool = find_pool(world, engine.spec.resources.pool) is not None
    status, reason, message = _readiness(engine, plans, ready, rollout_waits, has_pool)
    old, generation = engine.status.conditions, engine.metadata.generation
    return InferenceEngineStatus(
        observed_generation=generation,
        conditions=(
            condition(old, EngineCondition.READY, "True" if status else "False", reason, message, generation, now),
            condition(
                old,
                EngineCondition.LENT,
                "True" if lent else "False",
                *_lending(world, engine, lent),
                generation,
                now,
            ),
        ),
        replicas=sum(1 for plan in plans if pod_of(world, engine, plan.index)),
        ready_replicas=ready,
        ready=f"{ready}/{engine.spec.replicas}",
        lent=len(lent),
        lent_to=tuple(sorted({plan.lent_to for plan in lent})),
        selector=f"{ENGINE_LABEL}={engine.metadata.name}",
        slots=slots,
        served_model=engine.metadata.name,
    )


def _lending(world: World, engine: InferenceEngine, lent: list[SlotPlan]) -> tuple[Reason, str]:
    if lent:
        borrowers_text = ", ".join(sorted({plan.lent_to for plan in lent}))
        return Reason.LENDING, f"{len(lent)} of {engine.spec.replicas} lent to {borrowers_text}."
    pool = find_pool(world, engine.spec.resources.pool)
    if pool and (why := sleep_refusal(engine, pool)):
        return Reason.ENGINE_CANNOT_SLEEP, why
    for number, window in enumerate(engine.spec.preemption.borrow_windows):
        if window.zone is None:
            field = f"spec.preemption.borrowWindows[{number}].timeZone"
            remedy = "Write a name of the IANA database, such as Europe/Berlin or UTC"
            return Reason.TIME_ZONE_UNKNOWN, f"{field}: there is no time zone {window.time_zone}. {remedy}."
    return Reason.NOTHING_LENT, ""


def _readiness(
    engine: InferenceEngine, plans: list[SlotPlan], ready: int, rollout_waits: bool, has_pool: bool
) -> tuple[bool, Reason, str]:
    if engine.spec.replicas == 0:
        return False, Reason.SCALED_TO_ZERO, "spec.replicas is 0."
    waiting = [str(plan.index) for plan in plans if plan.state is SlotState.WAITING]
    text = f"{ready} of {engine.spec.replicas} replicas serve."
    if not has_pool:
        text += f" spec.resources.pool: there is no GPUPool {engine.spec.resources.pool}, so none is started."
        return ready > 0, Reason.POOL_NOT_FOUND, text
    if waiting:
        text += f" No GPU is free in pool {engine.spec.resources.pool} for {', '.join(waiting)}."
    if rollout_waits:
        return ready > 0, Reason.ROLLOUT_WAITS_FOR_RETURN, text + " The changed spec waits until a replica may restart."
    if ready == 0:
        return False, Reason.NONE_SERVING, text
    return True, Reason.ALL_SERVING if ready >= engine.spec.replicas else Reason.SOME_SERVING, text


def _slot_status(world: World, engine: InferenceEngine, plan: SlotPlan, now: datetime) -> SlotStatus:
    pod = pod_of(world, engine, plan.index)
    name = pod.key.name if pod else ""
    old = next((slot for slot in engine.status.slots if slot.index == plan.index), None)
    same = old is not None and (old.state, old.pod) == (plan.state, name)
    return SlotStatus(
        index=plan.index,
        state=plan.state,
        pod=name,
        lent_to=plan.lent_to,
        since=old.since if old and same else now,
    )
