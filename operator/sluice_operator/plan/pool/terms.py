"""What may a job have now: from whom may it borrow, how much, and what keeps it from the rest?"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from sluice_api.gpupool import GPUPool
from sluice_api.reasons import Reason
from sluice_operator.observe.world import key_of
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.stock import UNBOUNDED


@dataclass(frozen=True)
class Terms:
    """On which a job may have GPUs now. An obstacle is what keeps it from something, None if nothing does."""

    engines: Mapping[str, Obstacle | None] = field(default_factory=dict)
    """By uid, why each engine of the pool does not lend to it; for a guest, those beside whose replicas it may be."""
    borrows: Obstacle | None = None
    """Why it borrows nothing, whoever lends."""
    preempts: Obstacle | None = None
    """Why it takes nobody's place."""
    takes_free: Obstacle | None = None
    """Why it takes no GPUs that nobody has."""
    asks: Obstacle | None = None
    """That it asks for nodes first."""
    full: Obstacle | None = None
    """That its namespace has all GPUs that it may have: it may only borrow from engines of its own namespace."""
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
    def reserves(self) -> frozenset[str]:
        """Uids of those from which it may borrow now or by the passing of time: kept for it while it waits."""
        if (self.borrows and self.borrows.until is None) or self.most <= 0:
            return frozenset()
        return frozenset(uid for uid, obstacle in self.engines.items() if obstacle is None or _passes(obstacle))

    def beyond(self, gpus: int) -> Obstacle | None:
        """Why it may not borrow so many."""
        return self.quota.exceeded_by(gpus - self.most) if self.quota and gpus > self.most else None

    def less(self, gpus: int) -> "Terms":
        """The terms for the rest of a job that borrows so many already."""
        return replace(self, most=self.most - gpus)

    def within_own(self, own: Collection[str], full: Obstacle) -> "Terms":
        """What is left when the namespace has all GPUs that it may have, jobs and replicas together.

        Borrowing from engines of its own, by uid, gives it no more.
        """
        engines = {uid: obstacle if uid in own else full for uid, obstacle in self.engines.items()}
        return replace(self, engines=engines, preempts=full, takes_free=full, full=full)

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
    most: int
    path: str
    """Of the field in the pool's spec."""
    held: int
    """GPUs that its jobs borrow."""

    def exceeded_by(self, gpus: int) -> Obstacle:
        """That it does not suffice for a job."""
        left = max(0, self.most - self.held)
        message = f"Namespace {self.namespace} may borrow {self.most} GPUs at once there, and {left} more now."
        enough, key = self.most + gpus, key_of(self.pool)
        text = f"raise maxBorrowedGPUs in GPUPool {self.pool.metadata.name} to {enough}"
        raised = Remedy(text, key, self.path, enough)
        return Obstacle(Reason.NAMESPACE_QUOTA, message, ends_with=(key,), remedies=(raised,))


def _passes(obstacle: Obstacle) -> bool:
    """Whether an engine's obstacle ends by itself: by the passing of time, or when there is less to do."""
    return obstacle.until is not None or obstacle.reason is Reason.ENGINE_IN_DEMAND
