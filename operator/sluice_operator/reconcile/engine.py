"""Bring one InferenceEngine nearer to what its spec asks for and what is lent allows."""

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from sluice_api.conditions import Condition, EngineCondition
from sluice_api.gpupool import GPUPool, GPUPoolSpec
from sluice_api.inferenceengine import InferenceEngine, InferenceEngineStatus
from sluice_api.meta import RESTARTED_AT_ANNOTATION
from sluice_operator.build.devices import slot_gpus
from sluice_operator.build.engine import agent_access, engine_service, slot_deployment
from sluice_operator.build.network_policy import engine_policy
from sluice_operator.build.placeholder import placeholder
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.writes import Cluster, key_of_manifest
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import key_of
from sluice_operator.plan.engine.decide import EngineDecision, plan_engine
from sluice_operator.plan.engine.placeholders import Placeholders
from sluice_operator.plan.facts.pools import find_pool
from sluice_operator.plan.facts.refused import REFUSED
from sluice_operator.plan.facts.slots import SlotPlan, template_of
from sluice_operator.reconcile.fence import decided, say_set_aside
from sluice_operator.reconcile.network import keep_policy
from sluice_operator.reconcile.refused import look_again_at, look_for_refusals, refuse, why
from sluice_operator.reconcile.status import until, write_status
from sluice_operator.reconcile.trust import publish_trust
from sluice_operator.settings import Settings

logger = logging.getLogger(__name__)


async def reconcile_engine(
    key: Key, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> timedelta | None:
    """Bring one InferenceEngine one step nearer to what its spec asks for."""
    await look_for_refusals(key, store, cluster, now)

    world = store.world()
    engine = world.engines.get(key)
    if engine is None or engine.metadata.deletion_timestamp:
        return None  # deleted: its children go with it
    pool = find_pool(world, engine.spec.resources.pool)

    decision = decided(store, key, lambda world: plan_engine(world, engine, now), now)
    if decision is None:
        return await say_set_aside(store, cluster, engine, now)

    # Before the status, which says that they wake: a pause that is written after it could be lost.
    for slot in decision.woken:
        await cluster.annotate(slot.key, slot.uid, {RESTARTED_AT_ANNOTATION: now.isoformat()})
    # The status next: agents read in it that they must drain, and draining is what takes time.
    await write_status(cluster, engine, decision.status)
    if pool is not None:
        await _keep_places(engine, decision.placeholders, cluster, pool.spec, settings)
    for slot in decision.stop:
        await cluster.scale_slot(slot.key, slot.uid, 0)
    for doomed in (*decision.remove, *decision.devices.remove):
        await cluster.delete(doomed.key, doomed.uid, foreground=False)
    if key not in store.world().refused:
        decision = await _start(engine, decision, pool, store, cluster, settings, now)
    await _tell(engine, decision, cluster)
    turns = (decision.again_at, look_again_at(store.world(), engine))
    return until(min((at for at in turns if at and at > now), default=None), now)


async def _start(
    engine: InferenceEngine,
    decision: EngineDecision,
    pool: GPUPool | None,
    store: Store,
    cluster: Cluster,
    settings: Settings,
    now: datetime,
) -> EngineDecision:
    """Start what is to start; what the API server refuses is in the status, and nothing starts for a while."""
    try:
        await keep_policy(engine_policy(engine, store.api_servers, settings), store, cluster, settings)
        if pool is not None:
            await _start_slots(engine, decision, cluster, pool.spec, settings)
    except ApiError as error:
        if not error.is_refusal:
            raise
        refuse(store, key_of(engine), why(error), error.message, now)
        decision = replace(decision, status=plan_engine(store.world(), engine, now).status)
        await write_status(cluster, engine, decision.status)
    return decision


async def _start_slots(
    engine: InferenceEngine, decision: EngineDecision, cluster: Cluster, pool: GPUPoolSpec, settings: Settings
) -> None:
    """What a slot's pod needs is there before the pod."""
    if decision.apply:
        await publish_trust(cluster, engine.metadata.namespace)
        for manifest in [engine_service(engine), *agent_access(engine)]:
            await cluster.apply(manifest)
    for index in decision.devices.make:
        await cluster.create(slot_gpus(engine, index, pool))
    for plan in decision.apply:
        await cluster.apply(_slot(engine, plan, pool, settings))


def _slot(engine: InferenceEngine, plan: SlotPlan, pool: GPUPoolSpec, settings: Settings) -> dict[str, Any]:
    """A slot's whole Deployment; with the uid of the one that is there, so that nothing dead is raised again."""
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


async def _keep_places(
    engine: InferenceEngine, decision: Placeholders, cluster: Cluster, pool: GPUPoolSpec, settings: Settings
) -> None:
    """A placeholder is there before its GPU is free. One that a quota refuses is done without."""
    for pod, node in decision.nominate:
        await cluster.nominate_pod(pod.key, pod.uid, node)
    for index, node in decision.make:
        manifest = placeholder(engine, index, pool=pool, settings=settings)
        try:
            made = await cluster.create(manifest)
        except ApiError as error:
            if not error.is_refusal:
                raise
            extra = {"engine": engine.metadata.name, "slot": index, "why": error.message}
            logger.warning("no placeholder: another pod may get a lent GPU at its return", extra=extra)
            continue
        await cluster.nominate_pod(key_of_manifest(manifest), made["metadata"]["uid"], node)
    for pod in decision.remove:
        await cluster.delete(pod.key, pod.uid, foreground=False)


async def _tell(engine: InferenceEngine, decision: EngineDecision, cluster: Cluster) -> None:
    """One event per change of what is lent, and per refusal."""
    was, ready = (_ready(status) for status in (engine.status, decision.status))
    if ready and ready.reason in REFUSED and (was is None or was.reason != ready.reason):
        await cluster.event(key_of(engine), engine.metadata.uid, "Warning", ready.reason, ready.message)
    before, now = engine.status.lent, decision.status.lent
    if before != now:
        reason = "Lent" if now > before else "Returned"
        key = Key(engine.KIND.kind, engine.metadata.namespace, engine.metadata.name)
        await cluster.event(
            key, engine.metadata.uid, "Normal", reason, f"{now} of {engine.spec.replicas} replicas are lent."
        )


def _ready(status: InferenceEngineStatus) -> Condition | None:
    return next((found for found in status.conditions if found.type == EngineCondition.READY), None)
