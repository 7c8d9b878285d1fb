"""The ResourceClaims of an engine's slots, in a pool whose GPUs are served by DRA."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.observe.views import DeviceClaimView
from sluice_operator.observe.world import World
from sluice_operator.plan.facts.devices import slot_devices
from sluice_operator.plan.facts.slots import SlotPlan


@dataclass(frozen=True, slots=True)
class SlotDevices:
    """What is to be done about them."""

    make: tuple[int, ...] = ()
    """Slots that need one, before they start."""
    remove: tuple[DeviceClaimView, ...] = ()
    """Those that are wanted no longer, or not as they are. Who uses one keeps it until its pod has ended."""


def plan_slot_devices(
    world: World, engine: InferenceEngine, pool: GPUPool | None, plans: Sequence[SlotPlan], starting: Collection[int]
) -> SlotDevices:
    """Each slot that runs or is lent has one. It can't be changed: when its slot starts anew it is replaced.

    Args:
        starting: slots whose pod is about to be made, or made anew.
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
