"""How much a job may borrow now, and from whom: its policy, its namespace's quota, the engines' terms."""

from dataclasses import dataclass
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import NamespaceQuota
from sluice_api.scheduling import Policy
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.allocation.guests import hosts, is_guest
from sluice_operator.plan.allocation.inventory import Stock, engines_of
from sluice_operator.plan.allocation.lending import PASSING, lending_refusal
from sluice_operator.plan.facts.tenants import Held
from sluice_operator.plan.fence import each

UNBOUNDED = 1_000_000


@dataclass(frozen=True, slots=True)
class Terms:
    """On which a job may borrow now."""

    lenders: frozenset[str] = frozenset()
    """Uids of the engines that lend to it; for a guest, of those beside whose replicas it may train."""
    later: frozenset[str] = frozenset()
    """Uids of those that will lend to it by the passing of time, or when there is less to do."""
    most: int = 0
    """GPUs."""
    displaces: bool = True
    """Whether it may take the place of training that gives way to it."""
    takes_free: bool = True
    """Whether it may take GPUs that nobody has."""


FREE_ONLY = Terms(displaces=False)
"""Those of a job that takes what nobody has, and nothing else."""


class Market:
    """The engines of a pool that lend at one moment, to whom.

    Jobs of one namespace, one priority and as many pods get the same terms, and so do guests of one namespace that
    ask for as much.
    """

    def __init__(self, world: World, stock: Stock, now: datetime) -> None:
        self._world = world
        self._stock = stock
        self._engines = engines_of(world, stock.pool)
        self._now = now
        self._known: dict[tuple[str, int, int], tuple[frozenset[str], frozenset[str]]] = {}
        self._known_hosts: dict[tuple[str, int, int], frozenset[str]] = {}

    def terms(self, job: FineTuneJob, quota: NamespaceQuota, held: Held) -> Terms:
        """A job's terms; those of a job that can't borrow have no lenders."""
        if is_guest(self._stock.pool, job):
            return Terms(self._hosts(job), displaces=False)
        most = UNBOUNDED if quota.max_borrowed_gpus is None else quota.max_borrowed_gpus - held.borrowed
        if job.spec.scheduling.policy is not Policy.PREEMPT or most <= 0:
            return Terms()
        alike = job.metadata.namespace, job.spec.scheduling.priority, job.spec.resources.nodes
        if alike not in self._known:
            refusals = each(
                self._engines,
                key_of,
                lambda engine: lending_refusal(self._world, self._stock, engine, job, self._now),
            )
            said = dict(zip((engine.metadata.uid for engine in self._engines), refusals, strict=True))
            lend = frozenset(uid for uid, refused in said.items() if refused is None)
            self._known[alike] = lend, frozenset(uid for uid, refused in said.items() if refused in PASSING)
        return Terms(*self._known[alike], most)

    def _hosts(self, job: FineTuneJob) -> frozenset[str]:
        alike = job.metadata.namespace, job.spec.scheduling.share_percent, job.spec.resources.gpus
        if alike not in self._known_hosts:
            beside = hosts(self._world, self._stock.pool, job)
            self._known_hosts[alike] = frozenset(engine.metadata.uid for engine in beside)
        return self._known_hosts[alike]


def has_reached(quota: NamespaceQuota, held: Held, job: FineTuneJob) -> bool:
    """Whether a job would bring its namespace above the GPUs that it may have at once."""
    return quota.max_gpus is not None and held.gpus + job.spec.resources.all_gpus > quota.max_gpus


def within_own(world: World, terms: Terms, namespace: str) -> Terms:
    """What of its terms is left to a job whose namespace has all GPUs that it may have, jobs and replicas together.

    It may borrow from engines of its own namespace: that namespace has no more GPUs then.
    """
    own = frozenset(e.metadata.uid for e in world.engines.values() if e.metadata.namespace == namespace)
    return Terms(terms.lenders & own, terms.later & own, terms.most, displaces=False, takes_free=False)


def is_full(quota: NamespaceQuota, held: Held, job: FineTuneJob) -> bool:
    """Whether a job that borrows nothing would bring its namespace above what its jobs and replicas may have."""
    return quota.max_total_gpus is not None and held.total + job.spec.resources.all_gpus > quota.max_total_gpus
