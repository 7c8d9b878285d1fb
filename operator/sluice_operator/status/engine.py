"""An engine's status, made from the decision about it. Its agents read there what each slot should be."""

from collections.abc import Sequence
from datetime import datetime

from sluice_api.conditions import EngineCondition, condition
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus, SlotState, SlotStatus
from sluice_api.meta import ENGINE_LABEL
from sluice_api.pods import MODEL_CONTAINER
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import trainer_pods
from sluice_operator.facts.nodes import find_pool, unreachable
from sluice_operator.facts.sleeping import sleep_refusal
from sluice_operator.facts.slots import SlotPlan, pod_of, ref, serves
from sluice_operator.observe.world import World, existing, key_of
from sluice_operator.plan.engine.decide import EngineDecision
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.startable import start_obstacle


def engine_status(
    world: World, engine: InferenceEngine, decision: EngineDecision, now: datetime
) -> InferenceEngineStatus:
    """The status that follows from a decision."""
    plans = decision.slots
    slots = tuple(_slot_status(world, engine, plan, now) for plan in plans)
    ready = sum(1 for plan in plans if serves(pod_of(world, engine, plan.index)))
    lent = [plan for plan in plans if plan.lent]
    pool = find_pool(world, engine.spec.resources.pool)
    status, reason, message = _readiness(world, engine, plans, ready, decision.rollout_waits)
    if refusal := world.refused.get(key_of(engine)):
        count = f"{ready} of {engine.spec.replicas} replicas serve."
        message = f"{count} {refusal.message} It is tried again at {refusal.until:%H:%M:%S} UTC."
        reason = refusal.reason
    elif ready < engine.spec.replicas and pool and (no := start_obstacle(world, pool, engine)):
        reason, message = no.reason, f"{ready} of {engine.spec.replicas} replicas serve. {no.message}"
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
    reason, mistake = _mistake(world, engine) or (Reason.NOTHING_LENT, "")
    if not lent:
        return reason, mistake
    borrowers = ", ".join(sorted({plan.lent_to for plan in lent}))
    parts = [f"{len(lent)} of {engine.spec.replicas} lent to {borrowers}.", mistake, _away(world, engine)]
    return Reason.LENDING, " ".join(filter(None, parts))


def _away(world: World, engine: InferenceEngine) -> str:
    """A node with a replica of the engine, or with its borrower, that does not answer, as text; empty if all do."""
    place = (engine.metadata.namespace, engine.metadata.name)
    own = (pod for i in existing(world, engine) if (pod := pod_of(world, engine, i)) and not serves(pod))
    borrow = (pod for job in world.claims_from.get(place, {}).values() for pod in trainer_pods(world, job))
    return unreachable(world, (*own, *borrow))


def _mistake(world: World, engine: InferenceEngine) -> tuple[Reason, str] | None:
    """The field that keeps the engine from ever lending as its spec says, even if it lends now; None if none does."""
    pool = find_pool(world, engine.spec.resources.pool)
    if pool and (why := sleep_refusal(engine, pool)):
        return Reason.ENGINE_CANNOT_SLEEP, why
    for number, window in enumerate(engine.spec.preemption.borrow_windows):
        if window.zone is None:
            field = f"spec.preemption.borrowWindows[{number}].timeZone"
            remedy = "Write a name of the IANA database, such as Europe/Berlin or UTC"
            return Reason.TIME_ZONE_UNKNOWN, f"{field}: there is no time zone {window.time_zone}. {remedy}."
    return None


def _readiness(
    world: World, engine: InferenceEngine, plans: Sequence[SlotPlan], ready: int, rollout_waits: bool
) -> tuple[bool, Reason, str]:
    if engine.spec.replicas == 0:
        return False, Reason.SCALED_TO_ZERO, "spec.replicas is 0."
    pool = find_pool(world, engine.spec.resources.pool)
    refused = take_stock(world, pool).refused_slots if pool else {}
    waits = [plan.index for plan in plans if plan.state is SlotState.WAITING]
    waiting = [str(index) for index in waits if ref(engine, index) not in refused]
    text = f"{ready} of {engine.spec.replicas} replicas serve."
    if ready < engine.spec.replicas and (away := _away(world, engine)):
        text += f" {away}"
    if pool is None:
        text += f" spec.resources.pool: there is no GPUPool {engine.spec.resources.pool}, so none is started."
        return ready > 0, Reason.POOL_NOT_FOUND, text
    if waiting:
        text += f" No GPU is free in pool {engine.spec.resources.pool} for {', '.join(waiting)}."
    if no := next((refused[ref(engine, index)] for index in waits if ref(engine, index) in refused), None):
        return ready > 0, no.reason, f"{text} No other is started: {no.message}"
    failed, fetching = _starting(world, engine, plans)
    text += fetching
    if failed:
        return ready > 0, failed, text
    if rollout_waits:
        return ready > 0, Reason.ROLLOUT_WAITS_FOR_RETURN, text + " The changed spec waits until a replica may restart."
    if ready == 0:
        return False, Reason.NONE_SERVING, text
    return True, Reason.ALL_SERVING if ready >= engine.spec.replicas else Reason.SOME_SERVING, text


def _starting(world: World, engine: InferenceEngine, plans: Sequence[SlotPlan]) -> tuple[Reason | None, str]:
    """Why a replica can't start to serve, or that it fetches its model; no reason and no text if neither is so."""
    pods = [pod for plan in plans if (pod := pod_of(world, engine, plan.index)) and not pod.deleting]
    if failed := next((pod for pod in pods if pod.fetch_failure), None):
        return Reason.DOWNLOAD_FAILED, f" {failed.fetch_failure} {failed.key.name} tries again by itself."
    if ended := next((pod for pod in pods if pod.failure and not serves(pod)), None):
        name = ended.key.name
        log = f"kubectl logs {name} -c vllm --previous"
        said = ended.failure.rstrip(".")
        return (
            Reason.REPLICA_FAILS,
            f" vLLM has ended in {name}: {said}. It starts again by itself; {log} has the rest.",
        )
    if fetching := [pod.key.name for pod in pods if pod.fetches_model]:
        return None, f" {fetching[0]} fetches its model: kubectl logs {fetching[0]} -c {MODEL_CONTAINER} shows how far."
    return None, ""


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
        since=min(old.since, now) if old and old.since and same else now,  # another leader's clock may be ahead
    )
