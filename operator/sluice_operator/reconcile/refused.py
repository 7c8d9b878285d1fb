"""What the API server refuses to make: which reason is shown, and what an engine does about it.

A job's record keeps its refusals. For an engine this process remembers the last refusal and its pause.
"""

import logging
from datetime import datetime

from sluice_api.inferenceengine import InferenceEngine, SlotState
from sluice_api.meta import slot_name
from sluice_api.reasons import Reason
from sluice_operator.facts.retries import FIRST_PAUSE, LONGEST_PAUSE_OF_ENGINE, doubled, refusal_reason
from sluice_operator.facts.slots import pod_of
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.missing_pods import PODS_WITHIN
from sluice_operator.reconcile.context import Context
from sluice_operator.writes import Refused

logger = logging.getLogger(__name__)


def reason_of(refused: Refused) -> Reason:
    """The reason that a refusal is shown as."""
    return Reason.NAME_TAKEN if refused.taken else refusal_reason(refused.message)


def refuse(c: Context, engine: Key, reason: Reason, message: str, now: datetime) -> None:
    """Let no slot of an engine start for a while: twice as long as the last pause, at most a minute.

    Others may have the GPUs of these slots meanwhile.
    """
    last = c.store.findings.last_pause(engine)
    pause = doubled(last, 1, LONGEST_PAUSE_OF_ENGINE) if last else FIRST_PAUSE
    logger.warning("refused", extra={"engine": str(engine), "why": message})
    c.store.findings.refuse(engine, reason, message, now, pause)


async def look_for_refusals(key: Key, c: Context, now: datetime) -> None:
    """Let an engine's slots start again once its pause is over. Begin a pause if the pod of a slot is refused."""
    world = c.store.world()
    engine, refusal = world.engines.get(key), world.refused.get(key)
    if engine is None:
        return
    if refusal is not None:
        if now >= refusal.until:
            c.store.findings.try_again(key)
    elif words := await _refused_pod(c, engine, now):
        refuse(c, key, refusal_reason(words), f"A replica's pod is refused: {words}", now)
    elif all(slot.pod for slot in engine.status.slots if slot.state is SlotState.STARTING):
        c.store.findings.has_got_on(key)


async def _refused_pod(c: Context, engine: InferenceEngine, now: datetime) -> str:
    """The API server's message when it refused a starting slot's overdue pod; empty if it did not."""
    for slot in engine.status.slots:
        overdue = slot.since is not None and now >= slot.since + PODS_WITHIN
        if slot.state is SlotState.STARTING and overdue and pod_of(c.store.world(), engine, slot.index) is None:
            name = slot_name(engine.metadata.name, slot.index)
            words = await c.cluster.failed_create(Key("Deployment", engine.metadata.namespace, name), slot.since)
            if words:
                return words
    return ""


def look_again_at(world: World, engine: InferenceEngine) -> datetime | None:
    """When the engine's pause ends; without a pause, when the first starting slot without a pod should have one."""
    refusal = world.refused.get(key_of(engine))
    if refusal is not None:
        return refusal.until
    starting = (slot.since for slot in engine.status.slots if slot.state is SlotState.STARTING and not slot.pod)
    return min((since + PODS_WITHIN for since in starting if since), default=None)
