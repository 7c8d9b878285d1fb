"""Is a pool large enough for pods of one size, however many of its GPUs are free?"""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from sluice_api.gpupool import GPUPool
from sluice_api.reasons import Reason
from sluice_operator.facts.fit import bound_to_nodes, least_excess, most_pods, never_reaches
from sluice_operator.facts.nodes import nodes_of, offered, pool_unusable
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.views import Key, Resources
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.obstacle import Obstacle


def size_obstacle(
    world: World, pool: GPUPool, gpus: int, need: Resources, namespace: str, claims: Iterable[str], pods: int = 1
) -> Obstacle | None:
    """Why equal pods would not fit the pool's nodes even if those had only their DaemonSets' pods; None if they would.

    Args:
        gpus: GPUs of each pod.
        need: what else each pod asks for.
        namespace: the pods' namespace.
        claims: volume claims that each pod mounts.
        pods: how many must fit together.
    """
    bound = bound_to_nodes(world, namespace, claims)
    return _obstacle(world, pool, gpus, need, namespace if bound else "", bound, pods)


@once_a_world(
    lambda _world, pool, gpus, need, namespace, bound, pods: (
        pool.metadata.name,
        gpus,
        tuple(need.items()),
        namespace,
        bound,
        pods,
    )
)
def _obstacle(
    world: World, pool: GPUPool, gpus: int, need: Resources, namespace: str, bound: tuple[str, ...], pods: int
) -> Obstacle | None:
    """`size_obstacle`, where `bound` are the volume claims of which each can be mounted on certain nodes only."""
    name, ends_with = pool.spec.counted_as, (*node_changes(pool), *_volumes_of(namespace, bound))
    if pool.spec.by_dra and not world.serves_dra:
        message = f"spec.resources.pool: {pool.metadata.name} has {pool_unusable(world, pool)}"
        return Obstacle(Reason.DRA_NOT_SERVED, message, ends_with=node_changes(pool))
    reached = [node for node in nodes_of(world, pool) if not never_reaches(world, namespace, bound, node)]
    rooms = (most_pods(world, node, offered(world, node, name), gpus, need) for node in reached)
    if any(room >= pods for room in accumulate(rooms)):
        return None
    in_pool = f"pool {pool.metadata.name}"
    if not any(True for _ in nodes_of(world, pool)):
        why = pool_unusable(world, pool) or "Add one, or use another pool."
        message = f"spec.resources.pool: {in_pool} has no node that offers {name}. {why}"
        return Obstacle(Reason.NO_NODES, message, ends_with=node_changes(pool))
    of_volume = f" that can mount the volume of volume claim {', '.join(bound)}" if bound else ""
    if not reached:
        message = (
            f"spec.resources.pool: {in_pool} has no node{of_volume} (see the volume's nodeAffinity). "
            "Use a volume that the pool's nodes reach."
        )
        return Obstacle(Reason.NO_NODES, message, ends_with=ends_with)
    most = max(offered(world, node, name) for node in reached)
    if gpus > most:
        message = (
            f"spec.resources.gpus: {gpus} are asked for, the largest node of {in_pool}{of_volume} has {most}. "
            f"Ask for at most {most}, or add a larger node."
        )
        return Obstacle(Reason.EXCEEDS_EVERY_NODE, message, ends_with=ends_with)
    enough = sorted((n for n in reached if offered(world, n, name) >= gpus), key=lambda node: node.key.name)
    if lack := least_excess(world, enough, need):
        message = f"spec.resources.{lack}. Lower it, or add a larger node."
        return Obstacle(Reason.EXCEEDS_EVERY_NODE, message, ends_with=ends_with)
    room = sum(most_pods(world, node, offered(world, node, name), gpus, need) for node in reached)
    message = (
        f"spec.resources.nodes: {pods} pods of {gpus} GPU, with their cpu and memory, are asked for, the nodes of "
        f"{in_pool}{of_volume} have room for {room}. Ask for at most {room}, or add nodes."
    )
    return Obstacle(Reason.EXCEEDS_POOL, message, ends_with=ends_with)


def node_changes(pool: GPUPool) -> tuple[Key, ...]:
    """What may end a lack of nodes: a change of any node, or of the pool, which may then select others."""
    return (Key("Node", "", ""), key_of(pool))


def _volumes_of(namespace: str, bound: Iterable[str]) -> Iterator[Key]:
    """What may change where volumes can be mounted: the claims, and any PersistentVolume."""
    for name in bound:
        yield Key("PersistentVolumeClaim", namespace, name)
        yield Key("PersistentVolume", "", "")
