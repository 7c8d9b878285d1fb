"""What must hold when nothing changes any more: who waits, waits for what is not there. state_machine.py asks it."""

from dataclasses import dataclass
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine, LendingPolicy, Reclaim
from sluice_api.scheduling import Policy
from sluice_operator.facts.slots import serves
from sluice_operator.observe.views import PodView
from sluice_operator.observe.world import World
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.pool.queue import line_up
from sluice_operator.plan.readiness import asks
from tests.unit.plan.worlds import GPU


@dataclass(frozen=True)
class Settled:
    """A world in which nobody trains, and in which only time passes, for longer than any pause lasts."""

    world: World
    pool: GPUPool
    now: datetime
    quota: int | None

    @property
    def waiting(self) -> list[FineTuneJob]:
        """Jobs that are not over, nor about to go."""
        jobs = self.world.jobs.values()
        return [job for job in jobs if job.status.finished_at is None and job.metadata.deletion_timestamp is None]

    def stuck(self) -> list[str]:
        """Names of the jobs that wait though there is something for them."""
        first = next(iter(line_up(self.world, self.pool, self.now).pending), None)
        served = (job for job in self.waiting if job is first and (self._would_fit(job) or self._could_borrow(job)))
        hopeful = (job for job in self.waiting if not self._hopeless(job))
        return sorted({job.metadata.name for job in (*served, *hopeful)})

    def _hopeless(self, job: FineTuneJob) -> bool:
        """Whether engines' own needs, the size of the nodes or the quota leave nothing for a job."""
        asked, nodes = job.spec.resources, self.world.nodes.values()
        too_large = asked.nodes > sum(node.allocatable[GPU] // asked.gpus for node in nodes)
        return self.world.engines != {} or too_large or asked.all_gpus > (self.quota or asked.all_gpus)

    def _would_fit(self, job: FineTuneJob) -> bool:
        """Whether GPUs that nobody has would do for it."""
        wanted_gpus, nodes = job.spec.resources.gpus, take_stock(self.world, self.pool).nodes.values()
        return sum(node.free // wanted_gpus for node in nodes) >= job.spec.resources.nodes

    def _could_borrow(self, job: FineTuneJob) -> bool:
        """Whether one node would do for all its pods: what is free there, and what engines have above their floors.

        Counted from pods, as `kubectl get` shows them. It may not borrow if its policy says so, nor while it asks for
        nodes.
        """
        if job.spec.scheduling.policy is not Policy.PREEMPT or asks(job, self.now):
            return False
        offers = [self._offer_of(engine, job) for engine in self.world.engines.values()]
        return any(
            node.free + sum(offer.gpus_on(node.name) for offer in offers) >= job.spec.resources.all_gpus
            for node in take_stock(self.world, self.pool).nodes.values()
        )

    def _offer_of(self, engine: InferenceEngine, job: FineTuneJob) -> "_Offer":
        """What an engine of the stories must lend: they have one namespace, no windows, budgets or limits of load."""
        terms = engine.spec.preemption
        serving = [pod for pods in self.world.engine_pods.values() for pod in pods.values() if _is_of(engine, pod)]
        lacks_replicas = terms.reclaim is Reclaim.ON_DEMAND and len(serving) < engine.spec.replicas
        # Where DRA serves the GPUs, only a replica that sleeps keeps its own for a borrower, and for one pod alone.
        no_way = self.pool.spec.by_dra and (terms.policy is not LendingPolicy.SLEEP or job.spec.resources.nodes > 1)
        lends = terms.policy is not LendingPolicy.NEVER and not lacks_replicas and not no_way
        floor = min(terms.min_replicas, engine.spec.replicas)
        return _Offer(serving, len(serving) - floor if lends else 0, engine.spec.resources.gpus)


@dataclass(frozen=True)
class _Offer:
    """So many of these replicas, on whichever nodes."""

    serving: list[PodView]
    above_floor: int
    gpus: int
    """Of each."""

    def gpus_on(self, node: str) -> int:
        """If all of them are lent on one node."""
        return max(0, min(self.above_floor, sum(pod.node == node for pod in self.serving))) * self.gpus


def _is_of(engine: InferenceEngine, pod: PodView) -> bool:
    return pod.labels["sluice.dev/engine"] == engine.metadata.name and not pod.ended and serves(pod)
