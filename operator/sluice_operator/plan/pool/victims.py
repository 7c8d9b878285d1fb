"""Which slots may a job borrow (the victims), and which training gives way to it?"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import is_extended
from sluice_api.reasons import Reason
from sluice_api.scheduling import GiveWay
from sluice_operator.facts.claims import LiveClaim, Phase, phase, trainer_pods
from sluice_operator.facts.outcomes import waits_since
from sluice_operator.facts.slots import floor_of
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.stock import NodeStock, PlacedSlot, Stock

Engines = Mapping[str, Obstacle | None]
"""By uid, why each engine does not lend to a job; None if it does."""


class Victims(NamedTuple):
    """Slots that together free enough GPUs, and what keeps some of them from being lent."""

    slots: tuple[PlacedSlot, ...]
    obstacles: tuple[Obstacle, ...] = ()


def choose_victims(stock: Stock, node: NodeStock, gpus: int, engines: Engines, *, strict: bool) -> Victims | None:
    """Slots of one node that free this many GPUs; None when its slots do not suffice.

    Slots that do not serve come first, then the lowest priority, the fewest requests in flight, the newest. The result
    is irreducible: without any one of its slots the job would not fit.

    Args:
        strict: take only slots that may be lent. If False, others may fill up, and `obstacles` says what keeps those.
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
    """The engine's slots that it still wants, without those on their way out."""
    return [slot for slot in stock.slots_of.get(engine.metadata.uid, ()) if slot.stays]


def floor_obstacle(stock: Stock, taken: Sequence[PlacedSlot], engine: InferenceEngine) -> Obstacle | None:
    """Why an engine can't spare these slots: its floor or one of its PodDisruptionBudgets forbids it. None if it can.

    The floor holds twice: for the slots that the engine has, and for those that serve.
    """
    gone = {victim.slot for victim in taken if victim.engine.metadata.uid == engine.metadata.uid}
    has = staying(stock, engine)
    left, floor = [slot for slot in has if slot.slot not in gone], floor_of(engine)
    if len(left) < floor:
        return _at_floor(engine, len(has), len(left), f"{len(has)} of {engine.spec.replicas} replicas are left")
    stopped = sum(1 for victim in taken if victim.serving and victim.slot in gone)
    # Without a PodDisruptionBudget it may lose any number.
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
    """The obstacle that an engine is at its floor.

    Args:
        has: replicas that count.
        left: replicas of these that would stay if the job had what it needs.
        which: what was counted, for the message.
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
    """Why a slot is not lent, as far as that depends on the slot itself; None if it is."""
    name, key = slot.engine.metadata.name, key_of(slot.engine)
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


def preemption_obstacle(world: World, live: LiveClaim, job: FineTuneJob, now: datetime) -> Obstacle | None:
    """Why a claim's training does not give way to a job now; None if it does."""
    name = shown(live.name, job)
    if why := _never_preempted(world, live, job):
        return Obstacle(Reason.WAITING_FOR_GPUS, f"{name} does not give way: {why}.")
    at = _preemptible_at(world, live, job)
    if at <= now:
        return None
    message = f"{name} gives way at {at:%H:%M:%S} UTC, or ends before."
    return Obstacle(Reason.WAITING_FOR_GPUS, message, at, (live.key,))


def _never_preempted(world: World, live: LiveClaim, job: FineTuneJob) -> str:
    """Why a claim never gives way to a job, as part of a sentence; empty if it does now or may later."""
    if live.claim.host:
        return f"it trains beside {live.claim.host} and has no GPU of its own"
    if live.claim.borrowed and not is_extended(live.claim.resource):
        return "it trains on replicas that sleep"  # until it has saved its state, both would use the GPUs
    mine, theirs = live.job.spec.scheduling, job.spec.scheduling
    if mine.interruption.policy is not GiveWay.TO_HIGHER_PRIORITY:
        return f"its scheduling.interruption.policy is {mine.interruption.policy}"
    if theirs.priority <= mine.priority:
        return f"its priority {mine.priority} is not below {theirs.priority}"
    if live.stage_job.finished or phase(world, live) is not Phase.HOLDING:
        return "it does not train yet, or has ended"
    return ""


def _preemptible_at(world: World, live: LiveClaim, job: FineTuneJob) -> datetime:
    """From when training gives way to a job: it has run for minRunSeconds, and the job waited for graceSeconds."""
    terms = live.job.spec.scheduling.interruption
    began = max(pod.bound_at or pod.created for pod in trainer_pods(world, live.stage_job))
    has_run = began + timedelta(seconds=terms.min_run_seconds)
    since = waits_since(job)
    return max(has_run, since + timedelta(seconds=terms.grace_seconds)) if since else has_run


def shown(name: str, job: FineTuneJob) -> str:
    """The name of another job for a reader in this job's namespace: without the namespace if they share it."""
    return name.removeprefix(f"{job.metadata.namespace}/")
