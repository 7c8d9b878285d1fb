"""On what terms may a job have GPUs now: by its own policy, its namespace's quota and the engines' terms?"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import NamespaceQuota
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_api.scheduling import Policy
from sluice_operator.observe.fence import each
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.colocation import hosts
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.pool.lending import lending_obstacle, window_ends
from sluice_operator.plan.pool.scale_up import asking_obstacle
from sluice_operator.plan.pool.terms import Terms
from sluice_operator.plan.quotas import BorrowedQuota, held_obstacle, quota_field, quota_of, total_obstacle
from sluice_operator.plan.stock import NOTHING, UNBOUNDED, Held, Stock, is_guest


class Market:
    """The engines of a pool at one moment, to which jobs they lend, and what each namespace has by then.

    What engines say is asked once for all jobs of the same namespace, priority and number of pods, and once for all
    guests of a namespace that ask for the same share and GPUs.
    """

    def __init__(self, world: World, stock: Stock, now: datetime) -> None:
        self._world = world
        self._stock = stock
        self._now = now
        self._held = dict(stock.held)
        self._quotas: dict[str, NamespaceQuota] = {}
        self._known: dict[object, Mapping[str, Obstacle | None]] = {}

    def over_quota(self, job: FineTuneJob, ahead: Held) -> Obstacle | None:
        """Why a job would bring its namespace above its maxGPUs, which its jobs may hold at once; None if it would not.

        Args:
            ahead: what jobs of the namespace that wait in front would hold.
        """
        held, quota = self._quota(job)
        return held_obstacle(self._stock.pool, quota, job, held, ahead)

    def terms(self, job: FineTuneJob, ahead: Held) -> Terms:
        """A job's terms now: which engines lend to it, how many GPUs it may borrow, and what keeps it from the rest.

        Args:
            ahead: as in `over_quota`.
        """
        held, quota = self._quota(job)
        guest = is_guest(self._stock.pool, job)
        terms = self._of_guest(job) if guest else self._of_borrower(job, quota, held.borrowed + ahead.borrowed)
        full = total_obstacle(self._stock.pool, quota, job, held, ahead)
        if full is None:
            return terms
        # A guest borrows no GPUs, so its own namespace's engines can't help it. No engine is in namespace "".
        namespace = "" if guest else job.metadata.namespace
        return terms.within_own(
            {e.metadata.uid for e in self._stock.engines if e.metadata.namespace == namespace}, full
        )

    def highest_priority(self, job: FineTuneJob) -> int | None:
        """The highest priority that a job's namespace may use in the pool; None if any."""
        return self._quota(job)[1].max_priority

    def gave(self, job: FineTuneJob, claim: Claim) -> None:
        """Note that a job has got a claim: its namespace holds that much more."""
        namespace = job.metadata.namespace
        self._held[namespace] = self._quota(job)[0].with_claim(self._world, claim, namespace)

    def _quota(self, job: FineTuneJob) -> tuple[Held, NamespaceQuota]:
        """What the job's namespace holds, and its quota."""
        namespace = job.metadata.namespace
        if namespace not in self._quotas:
            self._quotas[namespace] = quota_of(self._world, self._stock.pool, namespace)
        return self._held.get(namespace, NOTHING), self._quotas[namespace]

    def _of_guest(self, job: FineTuneJob) -> Terms:
        return Terms(self._hosts(job), preempts=_GUEST, takes_free=_GUEST)

    def _of_borrower(self, job: FineTuneJob, quota: NamespaceQuota, borrowed: int) -> Terms:
        pool, most = self._stock.pool, quota.max_borrowed_gpus
        limit = None
        if most is not None:
            limit = BorrowedQuota(
                pool, job.metadata.namespace, most, quota_field(pool, quota, "maxBorrowedGPUs"), borrowed
            )
        asks = asking_obstacle(self._world, job, self._now)
        return Terms(
            self._lenders(job),
            borrows=_queues(job) or asks,
            preempts=asks,
            most=UNBOUNDED if most is None else most - borrowed,
            over_quota=limit.exceeded_by if limit else None,
            asks=asks,
        )

    @property
    def window_ends(self) -> Iterator[datetime]:
        """When the open borrow windows of the pool's engines end."""
        return window_ends(self._stock.engines, self._now)

    @property
    def obstacles(self) -> Iterable[Obstacle]:
        """Why engines do not lend, for all jobs whose terms were asked for."""
        return (obstacle for engines in self._known.values() for obstacle in engines.values() if obstacle)

    def _lenders(self, job: FineTuneJob) -> Mapping[str, Obstacle | None]:
        alike = job.metadata.namespace, job.spec.scheduling.priority, job.spec.resources.nodes
        if alike not in self._known:

            def look(engine: InferenceEngine) -> tuple[str, Obstacle | None]:
                return engine.metadata.uid, lending_obstacle(self._world, self._stock, engine, job, self._now)

            self._known[alike] = dict(each(self._stock.engines, key_of, look))
        return self._known[alike]

    def _hosts(self, job: FineTuneJob) -> Mapping[str, Obstacle | None]:
        alike = "guest", job.metadata.namespace, job.spec.scheduling.share_percent, job.spec.resources.gpus
        if alike not in self._known:
            beside = hosts(self._world, self._stock.pool, job)
            self._known[alike] = {engine.metadata.uid: None for engine in beside}
        return self._known[alike]


_GUEST = Obstacle(Reason.WAITING_FOR_SHARE, "A job of policy Shared has no GPU of its own.")


def _queues(job: FineTuneJob) -> Obstacle | None:
    """Why a job's own policy forbids it to borrow; None if it may."""
    if job.spec.scheduling.policy is Policy.PREEMPT:
        return None
    preempt = Remedy("set scheduling.policy: Preempt", field="scheduling.policy", value=Policy.PREEMPT.value)
    message = f"It borrows nothing (scheduling.policy: {job.spec.scheduling.policy})."
    return Obstacle(Reason.WAITING_FOR_GPUS, message, remedies=(preempt,))
