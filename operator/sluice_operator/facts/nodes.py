"""Which nodes belong to a pool, how many GPUs do they offer, and who has them?

With a device plugin, a node's status says how many GPUs it offers, and pods request them. With DRA, drivers offer GPUs
in ResourceSlices, and a ResourceClaim has them. Those GPUs count once, however many pods use the claim.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import DEFAULT_POOL, is_extended, slot_gpus_name, taints_of_gpus
from sluice_api.resource import Metadata
from sluice_api.tolerations import Toleration
from sluice_operator.facts.fit import holding
from sluice_operator.facts.slots import pod_of, slot_named
from sluice_operator.observe.views import DeviceClaimView, Key, NodeView, PodView
from sluice_operator.observe.world import World, pool_key


def engines_of(world: World, pool: GPUPool) -> list[InferenceEngine]:
    """The pool's engines, in the order in which they get GPUs: priority, then age."""
    found = (e for e in world.engines.values() if e.spec.resources.pool == pool.metadata.name)
    return sorted(
        found, key=lambda e: (-e.spec.preemption.priority, str(e.metadata.creation_timestamp), e.metadata.uid)
    )


_NAMED = 3


_DEFAULT = GPUPool(kind="GPUPool", metadata=Metadata(name=DEFAULT_POOL))


def find_pool(world: World, name: str) -> GPUPool | None:
    """The pool of that name; None if there is none. Pool `default` exists even without a GPUPool object."""
    return world.pools.get(pool_key(name), _DEFAULT if name == DEFAULT_POOL else None)


def nodes_of(world: World, pool: GPUPool) -> Iterator[NodeView]:
    """Nodes with the pool's labels that offer its GPUs, in any order.

    A node that two pools select belongs to the older one, so no GPU is in two pools. Pool `default` without a GPUPool
    object counts as the youngest.
    """
    elders = elders_of(world, pool)
    return (
        node
        for node in world.nodes.values()
        if node.key.name not in world.shunned
        and _selects(world, pool, node)
        and not any(_selects(world, elder, node) for elder in elders)
    )


def taken_by_elders(world: World, pool: GPUPool) -> dict[str, int]:
    """How many of the nodes that a pool selects belong to each older pool, by the older pool's name."""
    found: dict[str, int] = {}
    elders = elders_of(world, pool)
    for node in world.nodes.values() if elders else ():
        owner = next((elder for elder in elders if _selects(world, elder, node)), None)
        if owner and _selects(world, pool, node):
            found[owner.metadata.name] = found.get(owner.metadata.name, 0) + 1
    return found


def elders_of(world: World, pool: GPUPool) -> list[GPUPool]:
    """The older pools of the same GPUs, oldest first."""
    others = (other for other in world.pools.values() if other.spec.counted_as == pool.spec.counted_as)
    return sorted((other for other in others if _age(other) < _age(pool)), key=_age)


def _age(pool: GPUPool) -> tuple[bool, str, str]:
    created = pool.metadata.creation_timestamp
    return (created is None, created.isoformat() if created else "", pool.metadata.name)


def _selects(world: World, pool: GPUPool, node: NodeView) -> bool:
    return _has_its_labels(pool, node) and offered(world, node, pool.spec.counted_as) > 0


def _has_its_labels(pool: GPUPool, node: NodeView) -> bool:
    return all(node.labels.get(label) == value for label, value in pool.spec.node_selector.items())


def pool_unusable(world: World, pool: GPUPool) -> str:
    """Why a pool can't count GPUs of nodes that it selects; empty in all but two cases.

    Either the pool counts by DRA, and the cluster does not serve DRA. Or the pool counts a device plugin's GPUs, and
    nodes that no DRA pool selects offer theirs by DRA only.
    """
    if pool.spec.by_dra:
        return (
            ""
            if world.serves_dra
            else (
                "spec.sharing.mode: DRA, but this cluster does not serve resource.k8s.io/v1. "
                "Use Kubernetes 1.34 or later, or another mode."
            )
        )
    driver = pool.spec.sharing.device_class
    known = [other for other in world.pools.values() if other.spec.counted_as == driver]
    left = sorted(
        node.key.name
        for node in world.nodes.values()
        if node.key.name in world.slices_on
        and _has_its_labels(pool, node)
        and not offered(world, node, pool.spec.resource_name)
        and offered(world, node, driver)
        and not any(_has_its_labels(other, node) for other in known)
    )
    if not left:
        return ""
    return (
        f"{named(left)} offer{'s' if len(left) == 1 else ''} GPUs by DRA ({driver}), which this pool does not count. "
        "Set spec.sharing.mode: DRA in a GPUPool that selects them."
    )


def named(names: Sequence[str]) -> str:
    """Some names in a sentence, of which only the first are spelled out: n1, n2, n3 and 67 more."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def pool_nodes(world: World, pool: GPUPool) -> list[NodeView]:
    """The nodes of a pool (`nodes_of`), sorted by name."""
    return sorted(nodes_of(world, pool), key=lambda node: node.key.name)


def node_unusable(node: NodeView, gpus: str, pool: GPUPool | None) -> str:
    """Why a node takes no new pod of Sluice; empty if it does.

    Args:
        gpus: the name by which the GPUs are counted: an extended resource, or a DRA driver.
        pool: the pool, with its tolerations; None if it is gone.
    """
    if not node.ready:
        return "not ready"
    if node.cordoned:
        return "cordoned"
    if node.deleting:
        return "being deleted"
    return _untolerated(node, taints_of_gpus(gpus), pool.spec.tolerations if pool else ())


def _untolerated(node: NodeView, own: Collection[str], more: Sequence[Toleration]) -> str:
    """The first taint that Sluice's pods do not tolerate, as a phrase; empty if there is none.

    Args:
        own: taints of the GPUs themselves, which the pods tolerate.
        more: the pool's tolerations.
    """
    hard = (taint for taint in node.taints if taint.effect != "PreferNoSchedule" and taint.key not in own)
    left = (one for one in hard if not any(toleration.covers(one.key, one.value, one.effect) for toleration in more))
    return next((f"tainted {taint.key}" for taint in left), "")


class Holder(NamedTuple):
    """Some GPUs of a node, and the pod and slot that have them."""

    gpus: int
    pod: PodView | None
    """None for a ResourceClaim whose pod is not known, or whose slot has no pod just now."""
    slot: tuple[InferenceEngine, int] | None
    """The engine and the slot's index; None if no slot has the GPUs."""


def offered(world: World, node: NodeView, name: str) -> int:
    """How many GPUs a node offers of one extended resource or DRA driver."""
    if is_extended(name):
        return node.allocatable.get(name, 0)
    slices = [view for view in world.slices_on.get(node.key.name, {}).values() if view.driver == name]
    newest: dict[str, int] = {}
    for view in slices:  # a driver replaces slices by a newer generation: the older ones do not count
        newest[view.pool] = max(newest.get(view.pool, 0), view.generation)
    return sum(view.devices for view in slices if view.generation == newest[view.pool])


def holders(world: World, node: NodeView, name: str) -> Iterator[Holder]:
    """Who has a node's GPUs of one extended resource or DRA driver."""
    if not is_extended(name):
        yield from _by_claims(world, node, name)
        return
    for pod in holding(world, node.key.name):
        if gpus := pod.requests.get(name, 0):
            yield Holder(gpus, pod, slot_named(world, pod.key.namespace, pod.labels))


def _by_claims(world: World, node: NodeView, driver: str) -> Iterator[Holder]:
    """Holders by DRA: the node's ResourceClaims, and slots whose pod is seen before their claim is seen allocated."""
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
    """The ResourceClaim of a slot's GPUs; None if there is none that the engine owns."""
    namespace, name = engine.metadata.namespace, engine.metadata.name
    claims = world.slot_devices.get((namespace, name), {})
    claim = claims.get(Key("ResourceClaim", namespace, slot_gpus_name(name, index)))
    return claim if claim and claim.owner and claim.owner.uid == engine.metadata.uid else None


def _maker(world: World, claim: DeviceClaimView) -> PodView | None:
    """The pod for which a ResourceClaim was made from a template; None if the claim has no such pod."""
    owner = claim.owner
    pod = world.pods.get(Key("Pod", claim.key.namespace, owner.name)) if owner and owner.kind == "Pod" else None
    return pod if pod and owner and pod.uid == owner.uid else None


def unreachable(world: World, pods: Iterable[PodView]) -> str:
    """What to say of the first pod whose node is not ready: since when, and what a person can do; empty if none is.

    A pod is not replaced before it is known to have stopped: two pods would write to one volume.
    """
    for pod in pods:
        node = world.nodes.get(Key("Node", "", pod.node))
        if pod.ended or node is None or node.ready:
            continue
        name = node.key.name
        since = f" since {node.not_ready_since:%Y-%m-%d %H:%M} UTC" if node.not_ready_since else ""
        return (
            f"Node {name} has not been ready{since}, and nobody can say whether pod {pod.key.name} has stopped there. "
            f"Bring the node back; or, once it is surely off, delete it (kubectl delete node {name}) or say so "
            f"(kubectl taint node {name} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute)."
        )
    return ""
