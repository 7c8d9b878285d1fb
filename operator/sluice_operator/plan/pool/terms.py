"""What may a job have now: from which engines may it borrow, how much, and what keeps it from the rest?"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from sluice_api.reasons import Reason
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.stock import UNBOUNDED


@dataclass(frozen=True)
class Terms:
    """On what terms a job may have GPUs now. Each obstacle keeps it from one thing; None if nothing does."""

    engines: Mapping[str, Obstacle | None] = field(default_factory=dict)
    """By uid, why each engine of the pool does not lend to it. For a guest: engines beside which it may train."""
    borrows: Obstacle | None = None
    """Why it borrows from no engine at all."""
    preempts: Obstacle | None = None
    """Why it preempts no training."""
    takes_free: Obstacle | None = None
    """Why it takes no free GPUs."""
    asks: Obstacle | None = None
    """Set while it asks for nodes first."""
    full: Obstacle | None = None
    """Set if its namespace has all GPUs that it may have: then it may borrow only from engines of its own namespace."""
    most: int = UNBOUNDED
    """GPUs that it may borrow."""
    over_quota: Callable[[int], Obstacle] | None = None
    """The obstacle that the quota behind `most` does not suffice, by how many GPUs it would have to allow more."""

    @cached_property
    def lenders(self) -> frozenset[str]:
        """Uids of the engines from which it may borrow now."""
        if self.borrows or self.most <= 0:
            return frozenset()
        return frozenset(uid for uid, obstacle in self.engines.items() if obstacle is None)

    @cached_property
    def reserves(self) -> frozenset[str]:
        """Uids of the engines from which it may borrow now, or later without any change of a spec: kept for it."""
        if (self.borrows and self.borrows.until is None) or self.most <= 0:
            return frozenset()
        return frozenset(uid for uid, obstacle in self.engines.items() if obstacle is None or _passes(obstacle))

    def beyond(self, gpus: int) -> Obstacle | None:
        """Why it may not borrow this many GPUs; None if it may."""
        return self.over_quota(gpus - self.most) if self.over_quota and gpus > self.most else None

    def less(self, gpus: int) -> "Terms":
        """The terms for the rest of a job that already borrows this many GPUs."""
        return replace(self, most=self.most - gpus)

    def within_own(self, own: Collection[str], full: Obstacle) -> "Terms":
        """The terms when the namespace has all GPUs that its jobs and replicas may have together.

        Borrowing from the namespace's own engines stays possible, as it gives the namespace no GPU more.

        Args:
            own: uids of these engines.
            full: the obstacle for everything else.
        """
        engines = {uid: obstacle if uid in own else full for uid, obstacle in self.engines.items()}
        return replace(self, engines=engines, preempts=full, takes_free=full, full=full)

    def kept(self, reserved: Mapping[str, Obstacle]) -> "Terms":
        """The terms of a job behind others, where some engines, by uid, are reserved for those."""
        if reserved.keys().isdisjoint(self.engines):
            return self
        return replace(self, engines={uid: reserved.get(uid) or no for uid, no in self.engines.items()})


def _passes(obstacle: Obstacle) -> bool:
    """Whether an engine's obstacle ends without a change of a spec: by time, or when the engine has less to do."""
    return obstacle.until is not None or obstacle.reason is Reason.ENGINE_IN_DEMAND
