"""Which slots of an engine should exist, which of them serve, and is a draining slot done?"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_FLOOR, Decimal
from itertools import count, islice

from sluice_api.claim import SlotRef
from sluice_api.inferenceengine import ASLEEP, AdapterTemplates, InferenceEngine, LendingPolicy, SlotState, SlotStatus
from sluice_api.meta import ENGINE_LABEL, SLOT_LABEL, index_of, slot_name
from sluice_api.pods import DEFAULT_DISK
from sluice_operator.observe.views import Key, PodView, SlotView
from sluice_operator.observe.world import World, engine_key, existing, oldest_first

_QUIET_SECONDS = 1.0
"""A draining slot is done when no request has begun for this long: endpoints are removed asynchronously."""


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """What one slot should be."""

    index: int
    size: int
    """Replicas of its Deployment: 0 or 1."""
    state: SlotState
    lent_to: str = ""
    """The borrowing job, as namespace/name; empty if there is none."""
    node: str = ""
    """The node of the GPUs that it lends; empty if it is not known."""
    uid: str = ""
    """Of its Deployment; empty if there is none yet."""
    restarted_at: datetime | None = None

    @property
    def lent(self) -> bool:
        """Whether the slot leaves its GPUs to a job: its Deployment has size 0, or its vLLM sleeps."""
        return bool(self.lent_to) and (not self.size or self.state in (SlotState.LENT, SlotState.RECLAIMING))


def ref(engine: InferenceEngine, index: int) -> SlotRef:
    """The reference to one slot of an engine."""
    return SlotRef(namespace=engine.metadata.namespace, engine=engine.metadata.name, index=index)


def pod_of(world: World, engine: InferenceEngine, index: int) -> PodView | None:
    """The slot's newest pod that has not ended, one that is not being deleted if there is one; None without pods."""
    pods = world.engine_pods.get((engine.metadata.namespace, engine.metadata.name, index), {}).values()
    alive = [pod for pod in oldest_first(pods) if not pod.ended]
    return next((pod for pod in reversed(alive) if not pod.deleting), alive[-1] if alive else None)


def serves(pod: PodView | None) -> bool:
    """Whether a slot's pod answers requests; a pod that is being deleted does not."""
    return pod is not None and pod.ready and not pod.deleting


def slot_named(world: World, namespace: str, labels: Mapping[str, str]) -> tuple[InferenceEngine, int] | None:
    """The engine and slot index of an object, by its labels; None if it belongs to no slot of a known engine."""
    index = index_of(labels.get(SLOT_LABEL, ""))
    engine = world.engines.get(engine_key(namespace, labels.get(ENGINE_LABEL, "")))
    return (engine, index) if engine and index is not None else None


def slot_of(world: World, engine: InferenceEngine, index: int) -> SlotView | None:
    """The Deployment of a slot; None if the engine owns none there, or if it is being deleted."""
    name = slot_name(engine.metadata.name, index)
    slot = world.slots.get(Key("Deployment", engine.metadata.namespace, name))
    mine = slot is not None and slot.owner is not None and slot.owner.uid == engine.metadata.uid
    return slot if slot and mine and not slot.deleting else None


def wanted(world: World, engine: InferenceEngine, lent: Collection[int], room: int | None = None) -> list[int]:
    """Indices of the slots that should exist, in order: spec.replicas of them, lent ones included.

    Scaling down during a loan sets the number of *serving* replicas, so lent slots go first, whatever their index.

    Args:
        lent: indices of lent slots.
        room: GPUs of the pool. It bounds how many slots without a Deployment are returned: as many as would fit the
            empty pool, and one more, which waits. So a thousand replicas in a pool of two GPUs cost little.
    """
    slots = existing(world, engine)
    known = sorted(slots, key=lambda i: (i in lent, slots[i].size == 0, not serves(pod_of(world, engine, i)), i))
    order = [*known, *(i for i in lent if i not in slots)][: engine.spec.replicas]
    lacking = engine.spec.replicas - len(order)
    most = lacking if room is None else min(lacking, room // engine.spec.resources.gpus + 1)
    taken = {*order}
    return sorted([*order, *islice((i for i in count() if i not in taken and i not in slots), most)])


def sleeps(engine: InferenceEngine) -> bool:
    """Whether the engine lends by sleeping: a lent slot keeps its pod, and its vLLM sleeps (see facts/sleeping.py)."""
    return engine.spec.preemption.policy is LendingPolicy.SLEEP


def floor_of(engine: InferenceEngine) -> int:
    """How many slots the engine never lends; all of them if its floor is above spec.replicas."""
    return min(engine.spec.preemption.min_replicas, engine.spec.replicas)


def template_of(engine: InferenceEngine) -> str:
    """Digest of what the spec asks of a slot's pod. It changes with the spec, and not with the operator's version."""
    spec = engine.spec.model_dump(
        by_alias=True,
        include={"model", "task", "resources", "lora", "serving"},
        exclude={
            "model": {"credentials", "chat_template", "cache_claim"},
            "resources": {"ephemeral_storage"},
            "lora": {"credentials", "chat_templates"},
            "serving": {"allowed_media_domains"},
        },
    )
    terms, model, lora = engine.spec.preemption, engine.spec.model, engine.spec.lora
    later = {  # Fields that earlier versions did not have. A spec that does not set them keeps its digest.
        "sleep": terms.sleep_level if terms.policy is LendingPolicy.SLEEP else None,
        "disk": disk if (disk := engine.spec.resources.ephemeral_storage) != DEFAULT_DISK else None,
        "pullSecrets": engine.spec.image_pull_secrets or None,
        "mediaDomains": engine.spec.serving.allowed_media_domains or None,
        "servedNames": engine.spec.served_names or None,
        "modelCredentials": model.credentials.secret if model.credentials else None,
        "chatTemplate": model.chat_template.to_json() if model.chat_template else None,
        "cacheClaim": model.cache_claim,
        "loraTemplates": lora.chat_templates if lora and lora.chat_templates is not AdapterTemplates.ANY else None,
        "loraCredentials": lora.credentials.secret if lora and lora.credentials else None,
    }
    known = {name: value for name, value in later.items() if value is not None}
    text = json.dumps({**spec, "drain": terms.drain_timeout_seconds, **known}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def slot_status_of(engine: InferenceEngine, index: int, pod: PodView) -> SlotStatus | None:
    """What the engine's status tells the slot's pod; None if the status says nothing of this pod."""
    return next((slot for slot in engine.status.slots if (slot.index, slot.pod) == (index, pod.key.name)), None)


def is_drained(world: World, engine: InferenceEngine, index: int, now: datetime) -> bool:
    """Whether the slot may stop: no request would break, or its drain timeout is over.

    No request would break once the pod is not ready, so that no new request is sent there, and its agent reports since
    the order that it drains, that none is in flight, and that none has begun for a moment.
    """
    pod = pod_of(world, engine, index)
    if pod is None or not pod.node or pod.deleting:
        return True
    slot_status = slot_status_of(engine, index, pod)
    if slot_status is not None and slot_status.state in ASLEEP:  # these states come after the drain
        return True
    since = slot_status.since if slot_status and slot_status.state is SlotState.DRAINING else None
    if since is None:
        return False
    if now >= since + timedelta(seconds=engine.spec.preemption.drain_timeout_seconds):
        return True
    reported = world.reports.get(pod.uid)
    if reported is None:  # silence proves nothing, unless vLLM has not started yet
        return not pod.running
    idle = reported.report.in_flight == 0 and reported.report.quiet_seconds >= _QUIET_SECONDS
    return reported.at >= since and reported.report.draining and idle and not pod.ready


def left_by(engine: InferenceEngine) -> int:
    """Percent of its GPUs' memory that an engine's vLLM leaves to others, rounded down."""
    taken = Decimal(engine.spec.serving.gpu_memory_utilization)
    if taken >= 1:
        return 0
    return max(0, int((100 * (1 - taken)).to_integral_value(ROUND_FLOOR)))
