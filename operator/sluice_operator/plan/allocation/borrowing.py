"""On what terms a job may have GPUs now: its policy, its namespace's quota, the engines' terms."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, NamespaceQuota
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_api.scheduling import Policy
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.allocation.guests import hosts, is_guest
from sluice_operator.plan.allocation.inventory import Stock, engines_of
from sluice_operator.plan.allocation.lending import lending_obstacle, passes
from sluice_operator.plan.allocation.scale_up import asks_until
from sluice_operator.plan.facts.podless import starved
from sluice_operator.plan.facts.tenants import Held, quota_field
from sluice_operator.plan.fence import each
from sluice_operator.plan.obstacle import Obstacle, Remedy

UNBOUNDED = 1_000_000


@dataclass(frozen=True)
class Terms:
    """On which a job may have GPUs now. An obstacle is what keeps it from something, None if nothing does."""

    engines: Mapping[str, Obstacle | None] = field(default_factory=dict)
    """By uid, why each engine of the pool does not lend to it; for a guest, those beside whose replicas it may be."""
    borrows: Obstacle | None = None
    """Why it borrows nothing, whoever lends."""
    displaces: Obstacle | None = None
    """Why it takes nobody's place."""
    takes_free: Obstacle | None = None
    """Why it takes no GPUs that nobody has."""
    most: int = UNBOUNDED
    """GPUs that it may borrow."""
    quota: "BorrowedQuota | None" = None
    """What bounds them."""

    @cached_property
    def lenders(self) -> frozenset[str]:
        """Uids of the engines from which it may borrow now."""
        if self.borrows or self.most <= 0:
            return frozenset()
        return frozenset(uid for uid, obstacle in self.engines.items() if obstacle is None)

    @cached_property
    def keeps(self) -> frozenset[str]:
        """Uids of those from which it may borrow now or by the passing of time: kept for it while it waits."""
        if (self.borrows and self.borrows.until is None) or self.most <= 0:
            return frozenset()
        return frozenset(uid for uid, obstacle in self.engines.items() if obstacle is None or passes(obstacle))

    def beyond(self, gpus: int) -> Obstacle | None:
        """Why it may not borrow so many."""
        return self.quota.exceeded_by(gpus - self.most) if self.quota and gpus > self.most else None

    def less(self, gpus: int) -> "Terms":
        """The terms for the rest of a job that borrows so many already."""
        return replace(self, most=self.most - gpus)

    def kept(self, reserved: Mapping[str, Obstacle]) -> "Terms":
        """The terms of a job behind those for whom some engines, by uid, are reserved."""
        if reserved.keys().isdisjoint(self.engines):
            return self
        return replace(self, engines={uid: reserved.get(uid) or no for uid, no in self.engines.items()})


@dataclass(frozen=True, slots=True)
class BorrowedQuota:
    """maxBorrowedGPUs of a namespace."""

    pool: GPUPool
    namespace: str
    quota: NamespaceQuota
    held: int
    """GPUs that its jobs borrow."""

    def exceeded_by(self, gpus: int) -> Obstacle:
        """That it does not suffice for a job."""
        most = self.quota.max_borrowed_gpus or 0
        message = (
            f"Namespace {self.namespace} may borrow {most} GPUs at once there, and {max(0, most - self.held)} more now."
        )
        path, name = quota_field(self.pool, self.quota, "maxBorrowedGPUs"), self.pool.metadata.name
        raised = Remedy(
            f"raise maxBorrowedGPUs in GPUPool {name} to {most + gpus}", key_of(self.pool), path, most + gpus
        )
        return Obstacle(Reason.NAMESPACE_QUOTA, message, ends_with=(key_of(self.pool),), remedies=(raised,))


class Market:
    """The engines of a pool at one moment, and to whom they lend.

    Jobs of one namespace, one priority and as many pods get the same terms, and so do guests of one namespace that
    ask for as much.
    """

    def __init__(self, world: World, stock: Stock, now: datetime) -> None:
        self._world = world
        self._stock = stock
        self._engines = engines_of(world, stock.pool)
        self._now = now
        self._known: dict[object, Mapping[str, Obstacle | None]] = {}

    def terms(self, job: FineTuneJob, quota: NamespaceQuota, held: Held) -> Terms:
        """What a job may have now, as far as it depends on others' terms and its own."""
        if is_guest(self._stock.pool, job):
            return Terms(self._hosts(job), displaces=_GUEST, takes_free=_GUEST)
        bounded = quota.max_borrowed_gpus is not None
        most = quota.max_borrowed_gpus - held.borrowed if quota.max_borrowed_gpus is not None else UNBOUNDED
        limit = BorrowedQuota(self._stock.pool, job.metadata.namespace, quota, held.borrowed) if bounded else None
        terms = Terms(self._lenders(job), _queues(job), most=most, quota=limit)
        asking = asking_obstacle(self._world, job, self._now)
        return replace(terms, borrows=terms.borrows or asking, displaces=asking) if asking else terms

    @property
    def obstacles(self) -> Iterable[Obstacle]:
        """Why engines do not lend, to whomever was asked for."""
        return (obstacle for engines in self._known.values() for obstacle in engines.values() if obstacle)

    def _lenders(self, job: FineTuneJob) -> Mapping[str, Obstacle | None]:
        alike = job.metadata.namespace, job.spec.scheduling.priority, job.spec.resources.nodes
        if alike not in self._known:

            def look(engine: InferenceEngine) -> tuple[str, Obstacle | None]:
                return engine.metadata.uid, lending_obstacle(self._world, self._stock, engine, job, self._now)

            self._known[alike] = dict(each(self._engines, key_of, look))
        return self._known[alike]

    def _hosts(self, job: FineTuneJob) -> Mapping[str, Obstacle | None]:
        alike = "guest", job.metadata.namespace, job.spec.scheduling.share_percent, job.spec.resources.gpus
        if alike not in self._known:
            beside = hosts(self._world, self._stock.pool, job)
            self._known[alike] = {engine.metadata.uid: None for engine in beside}
        return self._known[alike]


_GUEST = Obstacle(Reason.WAITING_FOR_SHARE, "A job of policy Shared has no GPU of its own.")


def _queues(job: FineTuneJob) -> Obstacle | None:
    """Why a job borrows nothing: its own policy."""
    if job.spec.scheduling.policy is Policy.PREEMPT:
        return None
    preempt = Remedy("set scheduling.policy: Preempt", field="scheduling.policy", value=Policy.PREEMPT.value)
    message = f"It borrows nothing (scheduling.policy: {job.spec.scheduling.policy})."
    return Obstacle(Reason.WAITING_FOR_GPUS, message, remedies=(preempt,))


def asking_obstacle(world: World, job: FineTuneJob, now: datetime) -> Obstacle | None:
    """Why a job takes free GPUs only: it asks for nodes first."""
    until = asks_until(job)
    if until is None or until <= now:
        return None
    lacking = starved(world, job.metadata.namespace, now)
    none = f"asks for no nodes while {lacking} has no pod, as a quota may count both, and"
    borrows = f"borrows nothing until {until:%Y-%m-%d %H:%M:%S} UTC (scheduling.scaleUpFirst)."
    message = f"It {none if lacking else 'asks for nodes and'} {borrows}"
    return Obstacle(Reason.SCALING_UP, message, until, remedies=(Remedy("a node is added"),))


def within_own(world: World, pool: GPUPool, job: FineTuneJob, terms: Terms, full: Obstacle) -> Terms:
    """What of its terms is left to a job whose namespace has all GPUs that it may have, jobs and replicas together.

    It may borrow from engines of its own namespace: that namespace has no more GPUs then.
    """
    namespace = "" if is_guest(pool, job) else job.metadata.namespace
    own = {engine.metadata.uid for engine in world.engines.values() if engine.metadata.namespace == namespace}
    engines = {uid: obstacle if uid in own else full for uid, obstacle in terms.engines.items()}
    return replace(terms, engines=engines, displaces=full, takes_free=full)
