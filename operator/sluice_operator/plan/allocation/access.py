"""What a pool refuses to give to a job, however many GPUs are free."""

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.reasons import Reason
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.allocation.guests import guest_refusal
from sluice_operator.plan.facts.sharing import sharing_refusal
from sluice_operator.plan.facts.tenants import not_allowed, outranks, quota_of
from sluice_operator.plan.obstacle import Obstacle


def denial(world: World, pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why a pool never serves a job as it is, however many GPUs are free; None when it does."""
    namespace, priority = job.metadata.namespace, job.spec.scheduling.priority
    return (
        not_allowed(world, pool, namespace)
        or outranks(world, pool, namespace, "spec.scheduling.priority", priority)
        or _never_within_quota(world, pool, job)
        or sharing_refusal(pool, job)
        or guest_refusal(world, pool, job)
    )


def _never_within_quota(world: World, pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why a job asks for more than its namespace may ever have; None when it does not."""
    quota, asked = quota_of(world, pool, job.metadata.namespace), job.spec.resources.all_gpus
    for field, most in (("maxGPUs", quota.max_gpus), ("maxTotalGPUs", quota.max_total_gpus)):
        if most is not None and asked > most:
            return Obstacle(
                Reason.NAMESPACE_QUOTA,
                f"spec.resources.gpus: {asked} are asked for, GPUPool {pool.metadata.name} allows namespace "
                f"{job.metadata.namespace} {most} at once. Ask for fewer, or raise {field} in the pool's spec.quotas.",
                ends_with=(key_of(pool),),
            )
    return None
