"""Can a replica of an engine start at all, however many GPUs are free?"""

from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.quantity import amount
from sluice_api.reasons import Reason
from sluice_api.sources import claims_of
from sluice_operator.facts.fit import missing_volume_claim
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.pool_size import size_obstacle


def start_obstacle(world: World, pool: GPUPool, engine: InferenceEngine) -> Obstacle | None:
    """Why no replica of an engine can start as things are; None if one could. Its namespace's rights are not asked."""
    if engine.metadata.deletion_timestamp:
        return Obstacle(Reason.DELETED, "The engine is being deleted.", ends_with=(key_of(engine),))
    addresses = engine.spec.addresses
    for field, uri in addresses.items():
        if missing := missing_volume_claim(world, engine.metadata.namespace, uri):
            any_claim = Key("PersistentVolumeClaim", engine.metadata.namespace, "")
            return Obstacle(Reason.VOLUME_CLAIM_NOT_FOUND, f"spec.{field}: {missing}", ends_with=(any_claim,))
    names = claims_of(*addresses.values())
    resources = engine.spec.resources
    need = {"cpu": amount("cpu", resources.cpu), "memory": amount("memory", resources.memory)}
    return size_obstacle(world, pool, resources.gpus, need, engine.metadata.namespace, names)
