"""What kind of GPUs does a pool have, as its nodes' labels say? NVIDIA's GPU feature discovery sets them."""

from collections.abc import Sequence

from sluice_api.finetunejob import FineTuneJob
from sluice_api.scheduling import Policy
from sluice_api.stages import PoolFacts
from sluice_operator.facts.fit import GPU_MEMORY_LABEL
from sluice_operator.facts.nodes import find_pool, nodes_of
from sluice_operator.observe.views import NodeView
from sluice_operator.observe.world import World

GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"
"""Node label: the name of the node's GPUs."""


def pool_facts(world: World, job: FineTuneJob) -> PoolFacts | None:
    """What Prepare is told about the GPUs of the job's pool; None if nothing is known.

    The memory is that of the largest GPU, because Prepare refuses a job by it that no GPU could hold. So it is left
    out where a node does not say its own, and where the job asks for nodes that are not there yet.
    """
    pool = find_pool(world, job.spec.resources.pool)
    if pool is None:
        return None
    nodes = list(nodes_of(world, pool))
    products = {node.labels.get(GPU_PRODUCT_LABEL, "") for node in nodes}
    facts = PoolFacts(
        gpu_product=products.pop()[:128] if len(products) == 1 else "",
        gpu_memory_bytes=None if job.spec.scheduling.scale_up_first else _largest(nodes, _percent(job)),
        price_per_gpu_hour=pool.spec.price_per_gpu_hour,
    )
    return None if facts == PoolFacts() else facts


def _largest(nodes: Sequence[NodeView], percent: int) -> int | None:
    """So many hundredths of the largest GPU's memory, in bytes; None unless every node says what its GPUs have."""
    mebibytes = [node.labels.get(GPU_MEMORY_LABEL, "") for node in nodes]
    if not mebibytes or not all(each.isdecimal() and len(each) <= 9 for each in mebibytes):
        return None
    return (max(map(int, mebibytes)) << 20) * percent // 100


def _percent(job: FineTuneJob) -> int:
    """How much of a GPU's memory the job may use, in hundredths."""
    scheduling = job.spec.scheduling
    return scheduling.share_percent if scheduling.policy is Policy.SHARED else 100
