"""Which nodes belong to a pool, and which of them may take a new training pod."""

from collections.abc import Iterable

from sluice_api.gpupool import GPUPool
from sluice_api.meta import DEFAULT_POOL
from sluice_api.resource import Metadata
from sluice_operator.observe.views import NodeView
from sluice_operator.observe.world import World, pool_key


def find_pool(world: World, name: str) -> GPUPool | None:
    """The pool of that name; `default` exists even when nobody made it."""
    pool = world.pools.get(pool_key(name))
    if pool is None and name == DEFAULT_POOL:
        return GPUPool(kind="GPUPool", metadata=Metadata(name=DEFAULT_POOL))
    return pool


def pool_nodes(world: World, pool: GPUPool) -> list[NodeView]:
    """Nodes with the pool's labels that offer its resource, by name."""
    selector = pool.spec.node_selector.items()
    return sorted(
        (
            node
            for node in world.nodes.values()
            if node.allocatable.get(pool.spec.resource_name, 0) > 0
            and all(node.labels.get(label) == value for label, value in selector)
        ),
        key=lambda node: node.key.name,
    )


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
