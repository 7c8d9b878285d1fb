"""Which slots sleep while they are lent, and is the memory of their GPUs free?

A lent slot that sleeps keeps its pod, and its vLLM frees the GPUs' memory for the trainer. For the scheduler the GPUs
stay the pod's, so no other pod can take them. The slot's state in the engine's status keeps vLLM and the trainer apart.
The agent frees the memory before the trainer is bound, and takes it again only when the status says so. The status says
so when no pod of the trainer is left. While the operator is down, no state changes.
"""

from collections.abc import Iterator
from datetime import datetime

from sluice_api.claim import SlotRef
from sluice_api.gpupool import GPUPool, SharingMode
from sluice_api.inferenceengine import ASLEEP, InferenceEngine, SlotState
from sluice_api.meta import STAGE_LABEL, is_extended
from sluice_api.stages import Stage
from sluice_operator.facts.claims import LiveClaim, Phase, is_gated, trainer_pods
from sluice_operator.facts.nodes import find_pool, slot_devices
from sluice_operator.facts.slots import is_drained, pod_of, serves, sleeps, slot_of, slot_status_of, template_of
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import World, engine_key


def sleep_refusal(engine: InferenceEngine, pool: GPUPool) -> str:
    """Why an engine of policy Sleep can't sleep in its pool; empty if it can, or has another policy."""
    mode = pool.spec.sharing.mode
    if not sleeps(engine) or mode is SharingMode.DRA:
        return ""
    return (
        f"spec.preemption.policy is Sleep, but GPUPool {pool.metadata.name} has spec.sharing.mode: {mode}, so its GPUs "
        "would stay with the sleeping pod. Set policy: ScaleDown, or use a pool of sharing.mode: DRA."
    )


def can_sleep(world: World, engine: InferenceEngine, index: int) -> bool:
    """Whether a slot can make room by sleeping: it serves with the present spec, or still sleeps from its last loan.

    A slot that still sleeps can't while a training pod of that loan exists: nothing would keep that pod's memory and
    the next trainer's apart.
    """
    slot = slot_of(world, engine, index)
    if slot is None or slot.template != template_of(engine):
        return False
    if is_asleep(world, engine, index):
        return index not in being_used(world, engine)
    return serves(pod_of(world, engine, index))


def is_asleep(world: World, engine: InferenceEngine, index: int) -> bool:
    """Whether a slot's vLLM uses no memory of its GPUs.

    A slot in state Sleeping is asleep once its agent has reported so since then. In the states after that it is asleep
    without a report, whatever becomes of agent and vLLM: neither wakes or starts before the status says so.
    """
    pod = pod_of(world, engine, index) if sleeps(engine) else None
    slot_status = slot_status_of(engine, index, pod) if pod else None
    if pod is None or slot_status is None or slot_status.state not in ASLEEP or pod.deleting:
        return False
    if slot_status.state is not SlotState.SLEEPING:
        return True
    reported = world.reports.get(pod.uid)
    return bool(reported and reported.report.asleep and slot_status.since and reported.at >= slot_status.since)


def is_awake(world: World, engine: InferenceEngine, index: int) -> bool:
    """Whether a slot of an engine that sleeps may still use memory of its GPUs."""
    slot = slot_of(world, engine, index)
    return sleeps(engine) and slot is not None and slot.size > 0 and not is_asleep(world, engine, index)


def sleeps_no_more(world: World, live: LiveClaim) -> InferenceEngine | None:
    """A lender of a claim by DRA whose policy is not Sleep any more; None if there is none.

    The claim's pod uses the slot's own ResourceClaim. So it would start at once, beside a vLLM that still has the
    GPUs' memory.
    """
    if is_extended(live.claim.resource):
        return None
    lenders = (world.engines.get(engine_key(slot.namespace, slot.engine)) for slot in live.claim.borrowed)
    return next((engine for engine in lenders if engine and not sleeps(engine)), None)


def state_on_the_way(world: World, engine: InferenceEngine, index: int, phase: Phase, now: datetime) -> SlotState:
    """The state of a slot that sleeps for a claim, or is about to."""
    if phase >= Phase.BINDING or is_asleep(world, engine, index):
        return SlotState.LENT
    return SlotState.SLEEPING if is_drained(world, engine, index, now) else SlotState.DRAINING


def sleep_requested_at(world: World, slot: SlotRef) -> datetime | None:
    """Since when the engine's status has told a slot to sleep; None while its state is not Sleeping."""
    engine = world.engines.get(engine_key(slot.namespace, slot.engine))
    known = (status for status in (engine.status.slots if engine else ()) if status.index == slot.index)
    return next((status.since for status in known if status.state is SlotState.SLEEPING), None)


def agent_message(world: World, slot: SlotRef) -> str:
    """The message of a slot's last report; empty if there is no report, or no message in it."""
    engine = world.engines.get(engine_key(slot.namespace, slot.engine))
    pod = pod_of(world, engine, slot.index) if engine else None
    reported = world.reports.get(pod.uid) if pod else None
    return reported.report.message if reported else ""


@once_a_world(lambda _world, engine: engine.metadata.uid)
def being_used(world: World, engine: InferenceEngine) -> dict[int, str]:
    """Slots whose GPUs are still used by a training pod, even if its claim is over; each with its job, namespace/name.

    A claim is over the moment its job is suspended or deleted, but its pod uses memory of the GPUs until it is gone. A
    vLLM that wakes before that finds too little memory, and does not recover. The engine's present policy makes no
    difference. Nor does it help that the slot has stopped: with DRA its next pod would not wait for the GPUs.
    """
    found = dict(_borrowed_by_known_jobs(world, engine))
    pool = find_pool(world, engine.spec.resources.pool)
    if pool is not None and not pool.spec.by_dra:  # a device plugin gives the GPUs to one pod at a time
        return found
    for slot_status in engine.status.slots:
        if slot_status.state not in _LEFT_TO_A_TRAINER or not slot_status.lent_to or slot_status.index in found:
            continue
        node = _home(world, engine, slot_status.index)
        here = (*world.pods_on.get(node, {}).values(), *world.pods_coming.get(node, {}).values())
        if any(_is_stray_trainer(world, other) for other in here):
            found[slot_status.index] = slot_status.lent_to
    return found


_LEFT_TO_A_TRAINER = ASLEEP | {SlotState.STOPPING}


def _home(world: World, engine: InferenceEngine, index: int) -> str:
    """The node of a slot's GPUs; empty if it is not known."""
    claim, pod = slot_devices(world, engine, index), pod_of(world, engine, index)
    return claim.node if claim and claim.node else pod.node if pod else ""


def _borrowed_by_known_jobs(world: World, engine: InferenceEngine) -> Iterator[tuple[int, str]]:
    here = (engine.metadata.namespace, engine.metadata.name)
    for stage_job in world.claims_from.get(here, {}).values():
        if stage_job.claim is None or is_extended(stage_job.claim.resource):
            continue
        if all(pod.ended or is_gated(pod) for pod in trainer_pods(world, stage_job)):
            continue
        for slot in stage_job.claim.borrowed:
            if (slot.namespace, slot.engine) == here:
                yield slot.index, f"{stage_job.key.namespace}/{stage_job.owner.name if stage_job.owner else ''}"


def _is_stray_trainer(world: World, pod: PodView) -> bool:
    """Whether a pod is an ungated training pod whose Job is gone, and the claim with the Job."""
    if pod.labels.get(STAGE_LABEL) != Stage.TRAIN or pod.ended or is_gated(pod):
        return False
    stage_job = world.stage_jobs.get(Key("Job", pod.key.namespace, pod.owner.name)) if pod.owner else None
    return stage_job is None or pod.owner is None or stage_job.uid != pod.owner.uid
