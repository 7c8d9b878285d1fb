"""What a node of a pool lacks for a job besides GPUs, once some slots have left it."""

from collections.abc import Collection

from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.views import Key, Resources
from sluice_operator.observe.world import World
from sluice_operator.plan.allocation.inventory import NodeStock
from sluice_operator.plan.facts.proof import coming
from sluice_operator.plan.facts.room import claims_of_job, need_of, shortage, unreachable_volume


def lack_on(
    world: World,
    node: NodeStock,
    job: FineTuneJob,
    leaving: Collection[Key],
    pods: int = 1,
    kept: Resources | None = None,
) -> str:
    """Why so many of the job's pods would not fit once others are gone, in words; empty when they would.

    Args:
        kept: what must be left for others.
    """
    others = [*coming(world, node.claims, node.name), kept or {}]
    lack = shortage(world, node.node, need_of(job.spec.resources), leaving, others, pods)
    return lack or unreachable_volume(world, job.metadata.namespace, claims_of_job(job), node.node)
