"""What may a namespace have of a pool: may it use the pool at all, and within which quota (spec.quotas)?"""

from dataclasses import dataclass

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, NamespaceQuota
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_operator.observe.namespaces import selects
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.stock import UNBOUNDED, Held


def quota_of(world: World, pool: GPUPool, namespace: str) -> NamespaceQuota:
    """The first quota of a pool that selects the namespace; a quota without bounds if none does."""
    if not pool.spec.quotas:
        return NamespaceQuota()
    return next((quota for quota in pool.spec.quotas if selects(world, quota.namespaces, namespace)), NamespaceQuota())


def not_allowed(world: World, pool: GPUPool, namespace: str) -> Obstacle | None:
    """Why a namespace may not use a pool; None if it may."""
    allowed = pool.spec.allowed_namespaces
    if allowed is None or selects(world, allowed, namespace):
        return None
    return Obstacle(
        Reason.NAMESPACE_NOT_ALLOWED,
        f"spec.resources.pool: GPUPool {pool.metadata.name} is not for namespace {namespace}. Use another pool, or "
        "have its spec.allowedNamespaces select the namespace.",
        ends_with=(key_of(pool), Key("Namespace", "", namespace)),
    )


def outranks(world: World, pool: GPUPool, namespace: str, field: str, priority: int) -> Obstacle | None:
    """Why a priority is too high for a namespace in a pool; None if it is not.

    Args:
        field: the path of the priority in the spec, for the message.
    """
    most = quota_of(world, pool, namespace).max_priority
    if most is None or priority <= most:
        return None
    return Obstacle(
        Reason.PRIORITY_TOO_HIGH,
        f"{field}: {priority} is above {most}, the highest that GPUPool {pool.metadata.name} allows namespace "
        f"{namespace}. Lower it, or raise maxPriority in the pool's spec.quotas.",
        ends_with=(key_of(pool),),
    )


def engine_denial(world: World, pool: GPUPool, engine: InferenceEngine) -> Obstacle | None:
    """Why a pool starts no replica of an engine with its present spec, however many GPUs are free; None if it does."""
    namespace, priority = engine.metadata.namespace, engine.spec.preemption.priority
    return not_allowed(world, pool, namespace) or outranks(world, pool, namespace, "spec.preemption.priority", priority)


def quota_field(pool: GPUPool, quota: NamespaceQuota, name: str) -> str:
    """The path of one bound of a quota in its pool's spec."""
    return f"quotas.{pool.spec.quotas.index(quota)}.{name}"


def held_obstacle(pool: GPUPool, quota: NamespaceQuota, job: FineTuneJob, held: Held, ahead: Held) -> Obstacle | None:
    """Why a job would bring its namespace above maxGPUs, the GPUs that its jobs may hold at once; None if it would not.

    Args:
        held: what the namespace has of the pool.
        ahead: what jobs of the namespace wait for that are in front of the job.
    """
    asked, most, namespace = job.spec.resources.all_gpus, quota.max_gpus, job.metadata.namespace
    if most is None or held.gpus + ahead.gpus + asked <= most:
        return None
    has = f"Namespace {namespace} holds {held.gpus} of the {most} that it may have there at once"
    return _over(pool, quota, "maxGPUs", held.gpus + ahead.gpus + asked, has, ahead)


def total_obstacle(pool: GPUPool, quota: NamespaceQuota, job: FineTuneJob, held: Held, ahead: Held) -> Obstacle | None:
    """Why a job would bring its namespace above maxTotalGPUs, the GPUs of its jobs and replicas; None if it would not.

    The job is taken to borrow nothing. The arguments are those of `held_obstacle`.
    """
    asked, most, namespace = job.spec.resources.all_gpus, quota.max_total_gpus, job.metadata.namespace
    if most is None or held.total + ahead.gpus + asked <= most:
        return None
    has = f"Jobs and replicas of namespace {namespace} have {held.total} of {most} that they may have there together"
    return _over(pool, quota, "maxTotalGPUs", held.total + ahead.gpus + asked, has, ahead)


def _over(pool: GPUPool, quota: NamespaceQuota, field: str, enough: int, has: str, ahead: Held) -> Obstacle:
    in_front = f", and its jobs in front wait for {ahead.gpus} more" if ahead.gpus else ""
    name, path = pool.metadata.name, quota_field(pool, quota, field)
    raised = Remedy(f"raise {field} in GPUPool {name} to {enough}", key_of(pool), path, enough)
    return Obstacle(Reason.NAMESPACE_QUOTA, f"{has}{in_front}.", ends_with=(key_of(pool),), remedies=(raised,))


def may_serve(quota: NamespaceQuota, held: Held) -> int:
    """With how many GPUs more a namespace's engines may serve."""
    return max(0, min(_serving_left(quota, held)))


def _serving_left(quota: NamespaceQuota, held: Held) -> tuple[int, int]:
    """GPUs that maxServingGPUs and maxTotalGPUs leave to a namespace's engines, negative if they are exceeded."""
    serving = UNBOUNDED if quota.max_serving_gpus is None else quota.max_serving_gpus - held.serving
    total = UNBOUNDED if quota.max_total_gpus is None else quota.max_total_gpus - held.total
    return serving, total


def serving_obstacle(pool: GPUPool, quota: NamespaceQuota, engine: InferenceEngine, held: Held) -> Obstacle | None:
    """Why one more replica of an engine would bring its namespace above a quota; None if it would not."""
    gpus, namespace, message = engine.spec.resources.gpus, engine.metadata.namespace, ""
    serving, total = _serving_left(quota, held)
    if gpus > serving:
        message = (
            f"its engines' replicas have {held.serving} of the {quota.max_serving_gpus} GPUs that they may have there "
            "at once. Next: lower spec.replicas of another engine, or raise maxServingGPUs in the pool's spec.quotas."
        )
    elif gpus > total:
        message = (
            f"its jobs and its engines' replicas have {held.total} of the {quota.max_total_gpus} GPUs that they may "
            "have there together. Next: one of its jobs ends, or raise maxTotalGPUs in the pool's spec.quotas."
        )
    where = f"GPUPool {pool.metadata.name}, namespace {namespace}"
    return Obstacle(Reason.NAMESPACE_QUOTA, f"{where}: {message}", ends_with=(key_of(pool),)) if message else None


@dataclass(frozen=True, slots=True)
class BorrowedQuota:
    """A namespace's maxBorrowedGPUs."""

    pool: GPUPool
    namespace: str
    most: int
    path: str
    """Path of the field in the pool's spec."""
    held: int
    """GPUs that its jobs borrow, or wait in front to borrow."""

    def exceeded_by(self, gpus: int) -> Obstacle:
        """The obstacle that the quota does not suffice.

        Args:
            gpus: how many more GPUs it would have to allow.
        """
        left = max(0, self.most - self.held)
        message = f"Namespace {self.namespace} may borrow {self.most} GPUs at once there, and {left} more now."
        enough, key = self.most + gpus, key_of(self.pool)
        text = f"raise maxBorrowedGPUs in GPUPool {self.pool.metadata.name} to {enough}"
        raised = Remedy(text, key, self.path, enough)
        return Obstacle(Reason.NAMESPACE_QUOTA, message, ends_with=(key,), remedies=(raised,))
