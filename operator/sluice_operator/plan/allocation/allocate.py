"""Who gets GPUs now: all pending jobs of a pool at once, in order, each with its claim or its reason to wait."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, NamespaceQuota
from sluice_api.stages import Stage
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, identity, key_of
from sluice_operator.plan.allocation.avoided import avoided_until
from sluice_operator.plan.allocation.borrowing import Market, Terms, asking_obstacle, within_own
from sluice_operator.plan.allocation.guests import no_slot
from sluice_operator.plan.allocation.interruption import yield_obstacle
from sluice_operator.plan.allocation.inventory import take_stock
from sluice_operator.plan.allocation.kept import SOMEBODY, Kept, behind
from sluice_operator.plan.allocation.placement import obstructed, place
from sluice_operator.plan.allocation.refusals import refusal
from sluice_operator.plan.allocation.scale_up import MOST, asks, asks_until
from sluice_operator.plan.allocation.search import stock_after
from sluice_operator.plan.allocation.waiting import EXPLAINED, Wait, far_behind, waits_for, waits_outside
from sluice_operator.plan.facts.alike import alike
from sluice_operator.plan.facts.claims import live_claims_of
from sluice_operator.plan.facts.outcomes import done, recorded, waits_since
from sluice_operator.plan.facts.readiness import readiness
from sluice_operator.plan.facts.tenants import Held, held_obstacle, quota_of, total_obstacle
from sluice_operator.plan.fence import behind_a_fence, each, looking_at
from sluice_operator.plan.obstacle import Obstacle, earliest, next_moment


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a pool's pending jobs get, and why the others wait."""

    claims: Mapping[Key, Claim] = field(default_factory=dict)
    waits: Mapping[Key, Wait] = field(default_factory=dict)
    asking: tuple[FineTuneJob, ...] = ()
    """Jobs that ask for nodes now."""
    again_at: datetime | None = None
    """When the passing of time alone ends an obstacle that somebody met, or changes the order."""


def allocate(world: World, pool: GPUPool, now: datetime, refused: Collection[Key] = ()) -> Allocation:
    """What `handed_out` says of the jobs that are at no fault."""
    return behind_a_fence(world, key_of(pool), lambda seen: handed_out(seen, pool, now, refused))


def handed_out(world: World, pool: GPUPool, now: datetime, refused: Collection[Key] = ()) -> Allocation:
    """Give each pending job its claim, or the reason why it waits.

    Nothing overtakes a job that waits, unless it provably can't delay it: what the waiting job could
    use, the free GPUs of every node that is large enough and so much else of it, every slot that may be
    lent to it and its part of a quota, is out of reach for those behind it. A job that its namespace's
    quota holds back can use none of it, so it holds back its namespace's other jobs only. One that asks
    for nodes may use free GPUs only, but in a while the others too: they are kept for it meanwhile. A
    guest can use no GPUs, only the slots of its namespace, so it holds back guests and borrowers there.

    Args:
        refused: jobs whose claim the API server has just refused to make: what they would get is the next one's.
    """
    round_ = _Round(world, pool, now)
    for job in (one for one in pending(world, pool, now) if key_of(one) not in refused):
        with looking_at(key_of(job)):
            round_.decide(job)
    return round_.result()


class _Round:
    """One pass through a queue: what is left, what is reserved, and what was decided so far."""

    def __init__(self, world: World, pool: GPUPool, now: datetime) -> None:
        self.world, self.pool, self.now = world, pool, now
        self.stock = take_stock(world, pool)
        self.market = Market(world, self.stock, now)
        self.held = dict(self.stock.held)
        self.quotas: dict[str, NamespaceQuota] = {}
        self.kept = Kept()
        self.claims: dict[Key, Claim] = {}
        self.waits: dict[Key, Wait] = {}
        self.waiting: list[FineTuneJob] = []
        self.hopeless: dict[object, Terms] = {}
        """Kinds of jobs of which one waits: what is left has only become less."""
        self.yields: list[Obstacle] = []

    def decide(self, job: FineTuneJob) -> None:
        """Give one job its claim, or the reason why it waits, and what it could use is reserved for it."""
        mine, quota, theirs = self._quota(job)
        if over := held_obstacle(self.pool, quota, job, mine, theirs):
            self.waits[key_of(job)] = waits_outside(self.world, job, over)
            self.kept.keep_quota(job)
            return
        kind = alike(self.world, job)
        if known := self.hopeless.get(kind):
            self._wait(job, known)
            return
        terms = self.market.terms(job, quota, mine.plus(borrowed=theirs.borrowed))
        full = total_obstacle(self.pool, quota, job, mine, theirs)
        if full:
            terms = within_own(self.world, self.pool, job, terms, full)
        claim = place(self.world, self.stock, job, terms.kept(self.kept.lenders), self.kept, self.now)
        if claim is not None:
            self.claims[key_of(job)] = claim
            self.held[job.metadata.namespace] = mine.with_claim(self.world, claim, job.metadata.namespace)
            self.stock = stock_after(self.world, self.stock, claim)
        elif full:
            self.waits[key_of(job)] = waits_outside(self.world, job, full)
            self.kept.keep_own(job, terms, self._front(job))
        else:
            self._wait(job, terms)
            if job.spec.scheduling.scale_up_first is None:  # those that ask for nodes do so until their own time
                self.hopeless[kind] = terms

    def result(self) -> Allocation:
        """What was decided."""
        oversized = waiting_for_larger_nodes(self.world, self.pool, self.now)
        self.waits.update(each(oversized, key_of, lambda job: (key_of(job), self._waits_for_larger(job))))
        asking = [job for job in (*self.waiting[:EXPLAINED], *oversized) if asks(job, self.now)]
        turns = (*self.market.obstacles, *self.yields)
        again_at = earliest((next_moment(turns, self.now), *self._moments()), self.now)
        return Allocation(self.claims, self.waits, tuple(asking[:MOST]), again_at)

    def _quota(self, job: FineTuneJob) -> tuple[Held, NamespaceQuota, Held]:
        """What a job's namespace has, what it may have, and what its jobs wait for that are in front."""
        namespace = job.metadata.namespace
        if namespace not in self.quotas:
            self.quotas[namespace] = quota_of(self.world, self.pool, namespace)
        return self.held.get(namespace, Held()), self.quotas[namespace], self.kept.of(namespace)

    def _front(self, job: FineTuneJob) -> Obstacle:
        return behind(job, -place_in_queue(self.pool, job, self.now)[0])

    def _wait(self, job: FineTuneJob, terms: Terms) -> None:
        if len(self.waiting) >= EXPLAINED:
            self.waits[key_of(job)] = far_behind(self.world, job, len(self.waiting))
        else:
            self.waits[key_of(job)] = self._explained(job, terms)
        front = self._front(job) if len(self.waiting) < EXPLAINED else SOMEBODY
        self.waiting.append(job)
        self.kept.keep(self.stock, job, terms, front)

    def _explained(self, job: FineTuneJob, terms: Terms) -> Wait:
        theirs = terms.kept(self.kept.lenders)
        ways = obstructed(self.world, self.stock, job, theirs, self.kept, self.now) or [(no_slot(job),)]
        if asking := asking_obstacle(self.world, job, self.now):
            ways = [(asking, *(obstacle for obstacle in ways[0] if obstacle != asking)), *ways[1:]]
        if terms.displaces is None and self.kept.displacing is None:
            looks = each(
                self.stock.staying, lambda live: live.key, lambda live: yield_obstacle(self.world, live, job, self.now)
            )
            self.yields += filter(None, looks)
        return waits_for(self.world, self.stock, job, ways, self.waiting, self.now)

    def _waits_for_larger(self, job: FineTuneJob) -> Wait:
        found, asking = refusal(self.world, job), asking_obstacle(self.world, job, self.now)
        if asking is None or found is None:
            raise ValueError(f"{job.metadata.name} waits for no larger nodes")
        return waits_outside(self.world, job, replace(asking, message=f"{asking.message} {found.message}"))

    def _moments(self) -> Iterator[datetime | None]:
        """When the passing of time alone may change what is decided about a job, or the order of all."""
        jobs = self.world.unfinished.get(self.pool.metadata.name, {}).values()
        for moments in each(jobs, key_of, lambda job: () if _is_training(self.world, job) else _turns(self.world, job)):
            yield from moments
        if (seconds := self.pool.spec.ageing_seconds) and jobs:
            yield datetime.fromtimestamp((_periods(self.now, seconds) + 1) * seconds, UTC)


def waiting_for_larger_nodes(world: World, pool: GPUPool, now: datetime) -> list[FineTuneJob]:
    """Jobs that ask for nodes and fit none that exists, in their order. What is there is of no use to them.

    So they are not in the queue, and hold nobody back, until a node has come.
    """

    def waits(job: FineTuneJob) -> bool:
        larger = asks(job, now) and refusal(world, job) and is_pending(world, job, now, nodes_may_come=True)
        return bool(larger) and not live_claims_of(world, job)

    return _in_order(world, pool, now, waits)


def pending(world: World, pool: GPUPool, now: datetime) -> list[FineTuneJob]:
    """Jobs that are ready for GPUs and hold none, in their order: priority, then age."""
    return _in_order(world, pool, now, lambda job: is_pending(world, job, now) and not live_claims_of(world, job))


def _in_order(world: World, pool: GPUPool, now: datetime, belongs: Callable[[FineTuneJob], bool]) -> list[FineTuneJob]:
    """Those of a pool's unfinished jobs that belong in a queue, in their order."""
    jobs = world.unfinished.get(pool.metadata.name, {}).values()
    places = each(jobs, key_of, lambda job: (place_in_queue(pool, job, now), job) if belongs(job) else None)
    return [job for _, job in sorted((found for found in places if found), key=lambda found: found[0])]


def place_in_queue(pool: GPUPool, job: FineTuneJob, now: datetime) -> tuple[int, str, str]:
    """Sort key: higher priority first, then the older one. Waiting raises a job, if the pool says so.

    Periods are those of one clock, the same for all jobs: the order changes at their ends, however many jobs wait.
    """
    priority = job.spec.scheduling.priority
    if pool.spec.ageing_seconds and (since := waits_since(job)):
        priority += _periods(now, pool.spec.ageing_seconds) - _periods(since, pool.spec.ageing_seconds)
    return (-priority, str(job.metadata.creation_timestamp), job.metadata.uid)


def _periods(moment: datetime, seconds: int) -> int:
    """How many periods have begun since 1970."""
    return int(moment.timestamp() // seconds)


def is_pending(world: World, job: FineTuneJob, now: datetime, *, nodes_may_come: bool = False) -> bool:
    """Whether a job without a claim should get GPUs as soon as there are any.

    Args:
        nodes_may_come: even if it is larger than what exists.
    """
    if _is_training(world, job):
        return False
    return readiness(world, job).at(now) and refusal(world, job, nodes_may_come=nodes_may_come) is None


def ready_since(job: FineTuneJob) -> datetime | None:
    """When a job that was never given GPUs became ready for them; None for a later attempt."""
    outcomes = recorded(job)
    prepared = done(outcomes, Stage.PREPARE)
    return prepared.ended_at if prepared and not outcomes.of(Stage.TRAIN) else None


def _is_training(world: World, job: FineTuneJob) -> bool:
    """Whether it has an attempt that has not ended."""
    stage_jobs = world.stage_jobs_of.get(identity(job), {}).values()
    return any(stage_job.stage is Stage.TRAIN and not stage_job.finished for stage_job in stage_jobs)


def _turns(world: World, job: FineTuneJob) -> Sequence[datetime | None]:
    """When the passing of time alone may change what is decided about a job."""
    return (readiness(world, job).begins, asks_until(job), *avoided_until(job))
