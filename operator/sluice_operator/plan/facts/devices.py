"""GPUs by the name that they are counted by: how many a node offers, and who has them.

By a device plugin a node's status says how many there are, and pods ask for them. By DRA drivers offer them in
ResourceSlices, and a ResourceClaim has them, once, however many pods use it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import is_extended, slot_gpus_name
from sluice_operator.observe.views import DeviceClaimView, Key, NodeView, PodView
from sluice_operator.observe.world import World
from sluice_operator.plan.facts.room import holding
from sluice_operator.plan.facts.slots import pod_of, slot_named


class Holder(NamedTuple):
    """Who has GPUs of a node."""

    gpus: int
    pod: PodView | None
    """Through which; None for a ResourceClaim of nobody whom we know, or of a slot that has no pod just now."""
    slot: tuple[InferenceEngine, int] | None
    """The engine's slot that it is, if it is one."""


def offered(world: World, node: NodeView, name: str) -> int:
    """GPUs of a name that a node offers."""
    if is_extended(name):
        return node.allocatable.get(name, 0)
    slices = [view for view in world.slices_on.get(node.key.name, {}).values() if view.driver == name]
    newest: dict[str, int] = {}
    for view in slices:
        newest[view.pool] = max(newest.get(view.pool, 0), view.generation)
    return sum(view.devices for view in slices if view.generation == newest[view.pool])


def holders(world: World, node: NodeView, name: str) -> Iterator[Holder]:
    """Who has GPUs of a name on a node."""
    if not is_extended(name):
        yield from _by_claims(world, node, name)
        return
    for pod in holding(world, node.key.name):
        if gpus := pod.requests.get(name, 0):
            yield Holder(gpus, pod, slot_named(world, pod.key.namespace, pod.labels))


def _by_claims(world: World, node: NodeView, driver: str) -> Iterator[Holder]:
    """Allocated ResourceClaims; and slots whose pod is known to be there before what it has is."""
    for claim in world.device_claims_on.get(node.key.name, {}).values():
        if gpus := claim.devices.get(driver, 0):
            slot = slot_named(world, claim.key.namespace, claim.labels)
            if slot and slot_devices(world, *slot) is claim:
                yield Holder(gpus, pod_of(world, *slot), slot)
            else:
                yield Holder(gpus, _maker(world, claim), None)
    for pod in holding(world, node.key.name):
        slot = slot_named(world, pod.key.namespace, pod.labels)
        if slot and not ((claim_of_it := slot_devices(world, *slot)) and claim_of_it.node):
            yield Holder(slot[0].spec.resources.gpus, pod, slot)


def slot_devices(world: World, engine: InferenceEngine, index: int) -> DeviceClaimView | None:
    """The ResourceClaim of a slot's GPUs."""
    namespace, name = engine.metadata.namespace, engine.metadata.name
    claims = world.slot_devices.get((namespace, name), {})
    claim = claims.get(Key("ResourceClaim", namespace, slot_gpus_name(name, index)))
    return claim if claim and claim.owner and claim.owner.uid == engine.metadata.uid else None


def _maker(world: World, claim: DeviceClaimView) -> PodView | None:
    """The pod for which a ResourceClaim was made from a template."""
    owner = claim.owner
    pod = world.pods.get(Key("Pod", claim.key.namespace, owner.name)) if owner and owner.kind == "Pod" else None
    return pod if pod and owner and pod.uid == owner.uid else None
