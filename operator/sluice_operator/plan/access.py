"""What a namespace may have of a pool, and which engines lend to a job."""

from collections.abc import Mapping
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, NamespaceQuota
from sluice_api.inferenceengine import InferenceEngine, LendingPolicy, LendTo
from sluice_api.reasons import Reason
from sluice_api.selectors import NamespaceSelector
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World

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
    if quota.max_gpus is not None and job.spec.resources.gpus > quota.max_gpus:
        return Reason.NAMESPACE_QUOTA, (
            f"spec.resources.gpus: {job.spec.resources.gpus} are asked for, GPUPool {name} allows namespace "
            f"{namespace} {quota.max_gpus} at once. Ask for fewer, or raise maxGPUs in the pool's spec.quotas."
        )
    return None


def lending_refusal(world: World, engine: InferenceEngine, job: FineTuneJob, now: datetime) -> Reason | None:
    """Why an engine does not lend to a job now, whatever is in use; None when it may."""
    terms = engine.spec.preemption
    if terms.policy is LendingPolicy.NEVER or engine.metadata.deletion_timestamp:
        return Reason.ENGINE_NEVER_LENDS
    if not _lends_to(world, engine, job.metadata.namespace):
        return Reason.ENGINE_LENDS_ELSEWHERE
    if terms.priority > job.spec.scheduling.priority:
        return Reason.ENGINE_OUTRANKS
    if not terms.borrow_windows or any(window.is_open(now) for window in terms.borrow_windows):
        return None
    return Reason.ENGINE_LENDS_LATER if lends_next(engine, now) else Reason.TIME_ZONE_UNKNOWN


def lends_next(engine: InferenceEngine, now: datetime) -> datetime | None:
    """When the engine's next borrow window opens; None when it has none that ever does."""
    openings = (window.opens_after(now) for window in engine.spec.preemption.borrow_windows)
    return min((opening for opening in openings if opening), default=None)


def _lends_to(world: World, engine: InferenceEngine, namespace: str) -> bool:
    match engine.spec.preemption.lend_to:
        case LendTo.SAME_NAMESPACE:
            return engine.metadata.namespace == namespace
        case LendTo.ANYWHERE:
            return True
        case LendTo.SELECTED:
            return selects(world, engine.spec.preemption.lend_to_namespaces, namespace)
