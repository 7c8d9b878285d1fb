"""Bring one InferenceEngine nearer to its spec, as far as its loans allow."""

from collections.abc import Iterator
from datetime import datetime

from sluice_api.conditions import Condition, EngineCondition
from sluice_api.gpupool import GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus
from sluice_api.meta import RESTARTED_AT_ANNOTATION
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.retries import REFUSED
from sluice_operator.facts.slots import SlotPlan, template_of
from sluice_operator.manifests.devices import slot_gpus
from sluice_operator.manifests.engine import agent_access, engine_service, slot_deployment
from sluice_operator.manifests.network_policy import engine_policy
from sluice_operator.manifests.placeholder import placeholder
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.engine.decide import EngineDecision, plan_engine
from sluice_operator.plan.engine.placeholders import Placeholders
from sluice_operator.reconcile.context import Context, Requeue, until
from sluice_operator.reconcile.fence import planned
from sluice_operator.reconcile.refused import look_again_at, look_for_refusals, reason_of, refuse
from sluice_operator.reconcile.status import status_writes
from sluice_operator.settings import Settings
from sluice_operator.status.engine import engine_status
from sluice_operator.writes import (
    Annotate,
    Apply,
    Create,
    Delete,
    Event,
    Keep,
    Manifest,
    Nominate,
    Plan,
    Scale,
    Write,
    Writes,
    key_of_manifest,
)

_NODES = (Key("Node", "", ""),)
"""While a replica does not serve, the status says why, and any node may change that."""


async def reconcile_engine(key: Key, c: Context, now: datetime) -> Requeue:
    """Bring one InferenceEngine one step nearer to its spec."""
    await look_for_refusals(key, c, now)

    engine = c.store.world().engines.get(key)
    if engine is None or engine.metadata.deletion_timestamp:
        return None  # deleted: its children go with it
    plan = planned(c, key, lambda world: engine_plan(world, key, c, now), now)

    # After a refusal the plan is made once more: it says so in the status, and starts nothing.
    if refusal := await c.cluster.do(plan.writes):
        refuse(c, key, reason_of(refusal), refusal.message, now)
        plan = planned(c, key, lambda world: engine_plan(world, key, c, now), now)
        await c.cluster.do(plan.writes)
    return until(plan.again_at, now)


def engine_plan(world: World, key: Key, c: Context, now: datetime) -> Plan:
    """What to do for one engine now. While the API server refuses it something, none of its slots starts."""
    if (engine := world.engines.get(key)) is None:
        return Plan()
    decision, pool = plan_engine(world, engine, now), find_pool(world, engine.spec.resources.pool)
    status = engine_status(world, engine, decision, now)
    writes = [*_keeps(engine, decision, status, pool.spec if pool else None, c, now)]
    if key_of(engine) not in world.refused:
        writes += _starts(engine, decision, pool.spec if pool else None, c)
    turns = (at for at in (decision.again_at, look_again_at(world, engine)) if at and at > now)
    waits = status.ready_replicas < engine.spec.replicas
    return Plan((*writes, *_events(engine, status)), min(turns, default=None), _NODES if waits else ())


def _keeps(
    engine: InferenceEngine,
    decision: EngineDecision,
    status: InferenceEngineStatus,
    pool: GPUPoolSpec | None,
    c: Context,
    now: datetime,
) -> Iterator[Write]:
    """What to say of slots, reserve for them, and end. The order counts: see the comments."""
    # Before the status, which says that they wake: a crash after the status could lose this start of their pause.
    for slot in decision.woken:
        yield Annotate(slot.key, slot.uid, {RESTARTED_AT_ANNOTATION: now.isoformat()})
    # The status next: agents read in it that they must drain, and draining takes longest.
    yield from status_writes(engine, status)
    if pool is not None:
        yield from _places(engine, decision.placeholders, pool, c.settings)
    for slot in decision.stop:
        yield Scale(slot.key, slot.uid, 0)
    for doomed in (*decision.remove, *decision.devices.remove):
        yield Delete(doomed.key, doomed.uid)


def _places(engine: InferenceEngine, decision: Placeholders, pool: GPUPoolSpec, settings: Settings) -> Iterator[Write]:
    """A placeholder exists before its GPU is free. If a quota refuses it, Sluice goes on without."""
    for pod, node in decision.nominate:
        yield Nominate(pod.key, pod.uid, node)
    for index, node in decision.make:
        manifest = placeholder(engine, index, pool=pool, settings=settings)
        yield Create(manifest, "no placeholder: another pod may get a lent GPU at its return")
        yield Nominate(key_of_manifest(manifest), "", node)
    for pod in decision.remove:
        yield Delete(pod.key, pod.uid)


def _starts(engine: InferenceEngine, decision: EngineDecision, pool: GPUPoolSpec | None, c: Context) -> Iterator[Write]:
    """What a slot's pod needs exists before the pod."""
    policy = engine_policy(engine, c.store.findings.api_servers, c.settings)
    yield Keep(policy, c.settings.network.workloads)
    if pool is None:
        return
    if decision.apply:
        yield from c.trust_writes(engine.metadata.namespace)
        yield from map(Apply, [engine_service(engine), *agent_access(engine)])
    yield from (Create(slot_gpus(engine, index, pool)) for index in decision.devices.make)
    yield from (Apply(_slot(engine, plan, pool, c.settings)) for plan in decision.apply)


def _slot(engine: InferenceEngine, plan: SlotPlan, pool: GPUPoolSpec, settings: Settings) -> Manifest:
    """A slot's whole Deployment. With the uid of the existing one, so that a deleted Deployment is not made again."""
    manifest = slot_deployment(
        engine,
        plan.index,
        plan.size,
        template_of(engine),
        pool=pool,
        settings=settings,
        restarted_at=plan.restarted_at,
    )
    if plan.uid:
        manifest["metadata"]["uid"] = plan.uid
    return manifest


def _events(engine: InferenceEngine, status: InferenceEngineStatus) -> Writes:
    """An event when the number of lent replicas changes, and one when something new is refused."""
    key, uid, found = key_of(engine), engine.metadata.uid, list[Event]()
    was, ready = (_ready(one) for one in (engine.status, status))
    if ready and ready.reason in REFUSED and (was is None or was.reason != ready.reason):
        found.append(Event(key, uid, "Warning", ready.reason, ready.message))
    before, lent = engine.status.lent, status.lent
    if before != lent:
        message = f"{lent} of {engine.spec.replicas} replicas are lent."
        found.append(Event(key, uid, "Normal", "Lent" if lent > before else "Returned", message))
    return tuple(found)


def _ready(status: InferenceEngineStatus) -> Condition | None:
    return next((found for found in status.conditions if found.type == EngineCondition.READY), None)
