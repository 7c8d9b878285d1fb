"""What keeps a lent slot's GPUs for its engine, so that no stranger's pod takes them at the return?

kube-scheduler gives a freed GPU to the waiting pod that it tries first, and the slot's own pod does not exist yet. A
placeholder is a pod that never runs. It is nominated to the node for as long as the loan lasts, so pods of its priority
or less see its GPUs as taken. Trainers and engines have a higher priority and do not see it. If the borrower saw it,
the GPUs would count twice.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine, SlotState
from sluice_api.meta import SLOT_LABEL, STAGE_LABEL, index_of
from sluice_api.stages import Stage
from sluice_operator.facts.claims import Phase, phase_by_pods
from sluice_operator.facts.fit import holding
from sluice_operator.facts.live_claims import live_claims_on
from sluice_operator.facts.nodes import find_pool, slot_devices
from sluice_operator.facts.slots import SlotPlan, pod_of
from sluice_operator.observe.views import DeviceClaimView, PodView
from sluice_operator.observe.world import World, oldest_first
from sluice_operator.plan.missing_pods import starts_until


@dataclass(frozen=True, slots=True)
class Placeholders:
    """What to do about an engine's placeholders."""

    make: tuple[tuple[int, str], ...] = ()
    """Indices of slots that need a placeholder, each with its node."""
    nominate: tuple[tuple[PodView, str], ...] = ()
    """Placeholders that were made but not nominated, each with its node."""
    remove: tuple[PodView, ...] = ()
    again_at: datetime | None = None
    """When a placeholder is kept no longer for a slot whose pod does not appear."""


def plan_placeholders(world: World, engine: InferenceEngine, plans: Sequence[SlotPlan], now: datetime) -> Placeholders:
    """Keep the GPUs of each lent slot from its drain until its next pod has them, or none is expected any more.

    A loan may be over before the borrower is gone, because its job was suspended, was deleted or gave way. GPUs that
    DRA serves need no placeholder: the slot's ResourceClaim has them all the time.
    """
    held, pool = _placeholders(world, engine), find_pool(world, engine.spec.resources.pool)
    by_dra = pool is not None and pool.spec.by_dra
    lent = {plan.index: plan.node for plan in plans if plan.lent_to and not by_dra}
    pods_due = {
        plan.index: starts_until(engine, plan.index, None, now)
        for plan in plans
        if plan.size and not plan.lent_to and plan.index in held and not _next_pod(world, engine, plan)
    }
    kept = {
        **lent,
        **{index: held[index].nominated_node for index, due in pods_due.items() if now < due},
        **{plan.index: held[plan.index].nominated_node for plan in plans if _is_on_its_way(world, engine, plan, held)},
        **{plan.index: held[plan.index].nominated_node for plan in plans if _is_being_left(world, plan, held)},
    }
    return Placeholders(
        make=tuple((index, node) for index, node in lent.items() if index not in held),
        nominate=tuple((pod, kept[i]) for i, pod in held.items() if kept.get(i) and not pod.nominated_node),
        remove=tuple(pod for i, pod in held.items() if i not in kept or pod.nominated_node not in ("", kept[i])),
        again_at=min((due for index, due in pods_due.items() if index in kept), default=None),
    )


def _placeholders(world: World, engine: InferenceEngine) -> dict[int, PodView]:
    """An engine's placeholders by slot index. A placeholder is named after its slot, so a slot has one at most."""
    held = world.placeholders.get((engine.metadata.namespace, engine.metadata.name), {}).values()
    ours = (pod for pod in oldest_first(held) if not pod.deleting)
    return {i: pod for pod in ours if (i := index_of(pod.labels.get(SLOT_LABEL, ""))) is not None}


def _next_pod(world: World, engine: InferenceEngine, plan: SlotPlan) -> PodView | None:
    """A slot's pod. A pod that is being deleted does not count, because its GPUs are about to be free."""
    pod = pod_of(world, engine, plan.index)
    return None if pod is None or pod.deleting else pod


def _is_being_left(world: World, plan: SlotPlan, held: dict[int, PodView]) -> bool:
    """Whether a slot waits for GPUs on a node where a trainer, preempted or with its claim over, still has some."""
    if plan.state is not SlotState.WAITING or plan.index not in held:
        return False
    node = held[plan.index].nominated_node
    claims = live_claims_on(world, node)
    replaced = {uid for live in claims if phase_by_pods(world, live) is Phase.HOLDING for uid in live.claim.preempted}
    alive = {live.stage_job.uid for live in claims} - replaced
    return any(
        pod.labels.get(STAGE_LABEL) == Stage.TRAIN and (pod.owner is None or pod.owner.uid not in alive)
        for pod in holding(world, node)
    )


def _is_on_its_way(world: World, engine: InferenceEngine, plan: SlotPlan, held: dict[int, PodView]) -> bool:
    """Whether a slot that returns has its pod already, and that pod has no node yet."""
    pod = _next_pod(world, engine, plan)
    starts = bool(plan.size) and not plan.lent_to and plan.index in held
    return starts and pod is not None and not pod.node


@dataclass(frozen=True, slots=True)
class SlotDevices:
    """What to do about the ResourceClaims of an engine's slots."""

    make: tuple[int, ...] = ()
    """Indices of slots that need a ResourceClaim before they start."""
    remove: tuple[DeviceClaimView, ...] = ()
    """ResourceClaims that are not wanted any more, or ask for the wrong devices. A pod that uses one keeps it until the
    pod has ended."""


def plan_slot_devices(
    world: World, engine: InferenceEngine, pool: GPUPool | None, plans: Sequence[SlotPlan], starting: Collection[int]
) -> SlotDevices:
    """Keep one ResourceClaim for each slot that runs or is lent, if DRA serves the GPUs.

    A ResourceClaim can't be changed. So one that asks for the wrong devices is replaced when its slot restarts.

    Args:
        starting: indices of slots whose pod is about to be made or replaced.
    """
    by_dra = pool is not None and pool.spec.by_dra
    asked = (pool.spec.sharing.device_class, engine.spec.resources.gpus) if pool else None
    needed = {plan.index for plan in plans if plan.size or plan.lent_to} if by_dra else set()
    claims = {index: slot_devices(world, engine, index) for index in needed}
    kept = {
        claim.key
        for index, claim in claims.items()
        if claim and (claim.asks == asked or (index not in starting and claim.pods))
    }
    ours = world.slot_devices.get((engine.metadata.namespace, engine.metadata.name), {}).values()
    return SlotDevices(
        make=tuple(index for index, claim in sorted(claims.items()) if claim is None),
        remove=tuple(
            claim
            for claim in ours
            if claim.owner and claim.owner.uid == engine.metadata.uid and not claim.deleting and claim.key not in kept
        ),
    )
