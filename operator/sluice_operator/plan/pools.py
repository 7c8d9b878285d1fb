"""Which nodes belong to a pool, and which of them may take a new training pod."""

from collections.abc import Iterable, Iterator

from sluice_api.gpupool import GPUPool
from sluice_api.meta import DEFAULT_POOL
from sluice_api.resource import Metadata
from sluice_operator.observe.views import NodeView
from sluice_operator.observe.world import World, pool_key

_NOBODYS = GPUPool(kind="GPUPool", metadata=Metadata(name=DEFAULT_POOL))


def find_pool(world: World, name: str) -> GPUPool | None:
    """The pool of that name; `default` exists even when nobody made it."""
    return world.pools.get(pool_key(name), _NOBODYS if name == DEFAULT_POOL else None)


def nodes_of(world: World, pool: GPUPool) -> Iterator[NodeView]:
    """Nodes with the pool's labels that offer its resource, in any order.

    A node that two pools select is the older one's: no GPU is in two. `default` that nobody made comes last.
    """
    elders = elders_of(world, pool)
    return (
        node
        for node in world.nodes.values()
        if _selects(pool, node) and not any(_selects(elder, node) for elder in elders)
    )


def taken_by_elders(world: World, pool: GPUPool) -> dict[str, int]:
    """How many of the nodes that a pool selects belong to each older pool."""
    found: dict[str, int] = {}
    elders = elders_of(world, pool)
    for node in world.nodes.values() if elders else ():
        owner = next((elder for elder in elders if _selects(elder, node)), None)
        if owner and _selects(pool, node):
            found[owner.metadata.name] = found.get(owner.metadata.name, 0) + 1
    return found


def elders_of(world: World, pool: GPUPool) -> list[GPUPool]:
    """The older pools of the same resource, oldest first."""
    others = (other for other in world.pools.values() if other.spec.resource_name == pool.spec.resource_name)
    return sorted((other for other in others if _age(other) < _age(pool)), key=_age)


def _age(pool: GPUPool) -> tuple[bool, str, str]:
    created = pool.metadata.creation_timestamp
    return (created is None, created.isoformat() if created else "", pool.metadata.name)


def _selects(pool: GPUPool, node: NodeView) -> bool:
    return node.allocatable.get(pool.spec.resource_name, 0) > 0 and all(
        node.labels.get(label) == value for label, value in pool.spec.node_selector.items()
    )


def pool_nodes(world: World, pool: GPUPool) -> list[NodeView]:
    """These nodes, by name."""
    return sorted(nodes_of(world, pool), key=lambda node: node.key.name)


def refusal(node: NodeView, resource: str) -> str:
    """Why a node takes no new pod of ours; empty when it does."""
    if not node.ready:
        return "not ready"
    if node.cordoned:
        return "cordoned"
    if node.deleting:
        return "being deleted"
    return _untolerated(node, resource)


def _untolerated(node: NodeView, resource: str) -> str:
    """The first taint that training pods do not tolerate: they tolerate the GPU resource's own."""
    hard: Iterable[str] = (
        f"tainted {taint.key}" for taint in node.taints if taint.effect != "PreferNoSchedule" and taint.key != resource
    )
    return next(iter(hard), "")
