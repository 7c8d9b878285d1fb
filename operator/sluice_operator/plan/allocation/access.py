"""What a namespace may have of a pool."""

from collections.abc import Mapping

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, NamespaceQuota
from sluice_api.reasons import Reason
from sluice_api.selectors import NamespaceSelector
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World
from sluice_operator.plan.allocation.guests import guest_refusal
from sluice_operator.plan.facts.sharing import sharing_refusal

NAME_LABEL = "kubernetes.io/metadata.name"
"""On every namespace."""


def labels_of(world: World, namespace: str) -> Mapping[str, str]:
    """A namespace's labels; its name at least, which nobody can take away."""
    view = world.namespaces.get(Key("Namespace", "", namespace))
    return {**(view.labels if view else {}), NAME_LABEL: namespace}


def selects(world: World, selector: NamespaceSelector | None, namespace: str) -> bool:
    """Whether a selector means a namespace; no selector means none."""
    return selector is not None and selector.selects(labels_of(world, namespace))


def quota_of(world: World, pool: GPUPool, namespace: str) -> NamespaceQuota:
    """The first quota of a pool that selects the namespace; one without bounds when none does."""
    if not pool.spec.quotas:
        return NamespaceQuota()
    return next((quota for quota in pool.spec.quotas if selects(world, quota.namespaces, namespace)), NamespaceQuota())


def denial(world: World, pool: GPUPool, job: FineTuneJob) -> tuple[Reason, str] | None:
    """Why a pool never serves a job as it is, however many GPUs are free; None when it does."""
    name, namespace = pool.metadata.name, job.metadata.namespace
    allowed = pool.spec.allowed_namespaces
    if allowed is not None and not selects(world, allowed, namespace):
        return Reason.NAMESPACE_NOT_ALLOWED, (
            f"spec.resources.pool: GPUPool {name} is not for namespace {namespace}. Use another pool, or have its "
            "spec.allowedNamespaces select the namespace."
        )
    quota = quota_of(world, pool, namespace)
    if quota.max_priority is not None and job.spec.scheduling.priority > quota.max_priority:
        return Reason.PRIORITY_TOO_HIGH, (
            f"spec.scheduling.priority: {job.spec.scheduling.priority} is above {quota.max_priority}, the highest that "
            f"GPUPool {name} allows namespace {namespace}. Lower it, or raise maxPriority in the pool's spec.quotas."
        )
    if quota.max_gpus is not None and job.spec.resources.all_gpus > quota.max_gpus:
        return Reason.NAMESPACE_QUOTA, (
            f"spec.resources.gpus: {job.spec.resources.all_gpus} are asked for, GPUPool {name} allows namespace "
            f"{namespace} {quota.max_gpus} at once. Ask for fewer, or raise maxGPUs in the pool's spec.quotas."
        )
    return sharing_refusal(pool, job) or guest_refusal(world, pool, job)
