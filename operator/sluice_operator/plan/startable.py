"""Can a replica of an engine start at all, however many GPUs are free?"""

from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import EngineResources, InferenceEngine
from sluice_api.quantity import amount
from sluice_api.reasons import Reason
from sluice_api.sources import volume_path
from sluice_operator.facts.fit import bound_to_nodes, least_excess, missing_volume_claim, never_reaches
from sluice_operator.facts.nodes import nodes_of, offered, pool_unusable
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.obstacle import Obstacle


def start_obstacle(world: World, pool: GPUPool, engine: InferenceEngine) -> Obstacle | None:
    """Why no replica of an engine can start as things are; None if one could. Its namespace's rights are not asked."""
    if engine.metadata.deletion_timestamp:
        return Obstacle(Reason.DELETED, "The engine is being deleted.", ends_with=(key_of(engine),))
    claims = {"spec.model.uri": engine.spec.model.uri}
    for number, name in enumerate(engine.spec.lora.volume_claims if engine.spec.lora else ()):
        claims[f"spec.lora.volumeClaims[{number}]"] = f"pvc://{name}"
    for field, uri in claims.items():
        if missing := missing_volume_claim(world, engine.metadata.namespace, uri):
            any_claim = Key("PersistentVolumeClaim", engine.metadata.namespace, "")
            return Obstacle(Reason.VOLUME_CLAIM_NOT_FOUND, f"{field}: {missing}", ends_with=(any_claim,))
    names = [path.claim for uri in claims.values() if (path := volume_path(uri))]
    bound = bound_to_nodes(world, engine.metadata.namespace, names)
    return _fits(world, pool, engine.spec.resources, engine.metadata.namespace if bound else "", bound)


@once_a_world(lambda _world, pool, wanted, namespace, bound: (pool.metadata.name, wanted, namespace, bound))
def _fits(
    world: World, pool: GPUPool, wanted: EngineResources, namespace: str, bound: tuple[str, ...]
) -> Obstacle | None:
    """Why one replica fits no node of the pool even if that had only its DaemonSets' pods; None if it fits one.

    Args:
        bound: volume claims of the namespace, of which each can be mounted on certain nodes only.
    """
    name = pool.metadata.name
    nodes = [(node, offered(world, node, pool.spec.counted_as)) for node in nodes_of(world, pool)]
    most = max((gpus for _, gpus in nodes), default=0)
    ends_with = (key_of(pool), Key("Node", "", ""))
    if not most:
        why = pool_unusable(world, pool) or "Add one, or use another pool."
        message = f"spec.resources.pool: pool {name} has no node that offers GPUs. {why}"
        return Obstacle(Reason.NO_NODES, message, ends_with=ends_with)
    if most < wanted.gpus:
        message = (
            f"spec.resources.gpus: {wanted.gpus} are asked for, the largest node of pool {name} has {most}. "
            f"Ask for at most {most}, or add a larger node."
        )
        return Obstacle(Reason.EXCEEDS_EVERY_NODE, message, ends_with=ends_with)
    nodes = [(node, gpus) for node, gpus in nodes if not never_reaches(world, namespace, bound, node)]
    if not nodes:
        message = (
            f"spec.resources.pool: no node of pool {name} can mount the volume of PersistentVolumeClaim {bound[0]} "
            "(its nodeAffinity). Use a volume that its nodes reach."
        )
        return Obstacle(Reason.NO_NODES, message, ends_with=ends_with)
    need = {"cpu": amount("cpu", wanted.cpu), "memory": amount("memory", wanted.memory)}
    lack = least_excess(world, (node for node, gpus in nodes if gpus >= wanted.gpus), need)
    if not lack:
        return None
    message = f"spec.resources.{lack}. Lower it, or add a larger node."
    return Obstacle(Reason.EXCEEDS_EVERY_NODE, message, ends_with=ends_with)
