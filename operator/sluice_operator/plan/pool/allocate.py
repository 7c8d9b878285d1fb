"""Who gets GPUs now? All pending jobs of a pool are decided at once, in order: each gets a claim or its obstacles."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_operator.observe.fence import behind_a_fence, looking_at
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.obstacle import Obstacle, Wait, earliest, next_moment
from sluice_operator.plan.pool.market import Market
from sluice_operator.plan.pool.placement import obstructed, place
from sluice_operator.plan.pool.queue import Line, asking, line_up, place_in_queue
from sluice_operator.plan.pool.reservations import SOMEBODY, Reservations, behind
from sluice_operator.plan.pool.terms import Terms
from sluice_operator.plan.pool.waiting import TOLD_IN_DETAIL, far_behind, waits_for, waits_outside


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a pool's pending jobs get, and why the others wait."""

    claims: Mapping[Key, Claim] = field(default_factory=dict)
    """Pending jobs that get GPUs now, each with its claim."""
    waits: Mapping[Key, Wait] = field(default_factory=dict)
    """Jobs that wait, each with why."""
    asking: tuple[FineTuneJob, ...] = ()
    """Jobs that ask for nodes now."""
    ends_with: frozenset[Key] = frozenset()
    """Objects whose change may end an obstacle that a job met."""
    again_at: datetime | None = None
    """When time alone ends an obstacle that a job met, or changes the order; None if it never does."""


def allocate_fenced(world: World, pool: GPUPool, now: datetime) -> Allocation:
    """The same as `allocate`, decided without objects that raise: for callers that set nothing aside themselves."""
    return behind_a_fence(world, key_of(pool), lambda seen: allocate(seen, pool, now))


def allocate(world: World, pool: GPUPool, now: datetime, refused: Collection[Key] = ()) -> Allocation:
    """Give each pending job its claim, or the reason why it waits.

    A job never overtakes one that waits in front, unless it provably can't delay it. Everything that the waiting job
    could use is out of reach for those behind: the free GPUs of every node that is large enough, with the cpu, memory
    and disk that it needs there, every slot that may be lent to it, and its part of a quota.

    Some jobs could use less, so they hold back less:
    - A job that its namespace's quota holds back could use nothing. It holds back its namespace's other jobs only.
    - A job that asks for nodes may use free GPUs only, but later it may also borrow. Both are kept for it meanwhile.
    - A guest uses no GPUs, only a replica of its namespace. It holds back guests and borrowers there.

    Args:
        refused: jobs to which the API server has just refused a claim. The next jobs get their GPUs.
    """
    round_ = _Round(world, pool, now)
    line = line_up(world, pool, now)
    for job in line.pending:
        if (key := key_of(job)) not in refused:
            with looking_at(key):
                round_.decide(key, job)
    return round_.result(line)


class _Round:
    """One pass through the queue: what is left of the pool, what is reserved, and what has been decided so far."""

    def __init__(self, world: World, pool: GPUPool, now: datetime) -> None:
        self.world, self.pool, self.now = world, pool, now
        self.stock = take_stock(world, pool)
        self.market = Market(world, self.stock, now)
        self.reserved = Reservations()
        self.claims: dict[Key, Claim] = {}
        self.waits: dict[Key, Wait] = {}
        self.waiting: list[FineTuneJob] = []
        self.later: list[Obstacle] = []

    def decide(self, key: Key, job: FineTuneJob) -> None:
        """Give one job its claim, or note why it waits and reserve what it could use."""
        ahead = self.reserved.of(job.metadata.namespace)
        if over := self.market.over_quota(job, ahead):
            self.waits[key] = waits_outside(self.world, job, over, self.now)
            self.reserved.reserve_quota(self.stock, job)
            return
        # A job like this one waits already, and since then only less is left: there is nothing to search for.
        if known := self.reserved.terms_of_alike(self.world, job):
            self._wait(key, job, known)
            self.reserved.reserve_quota(self.stock, job, known)  # all else is reserved for that one
            return
        terms = self.market.terms(job, ahead)
        claim = place(self.world, self.stock, job, terms, self.reserved, self.now)
        if claim is not None:
            self.claims[key] = claim
            self.market.gave(job, claim)
            self.stock = self.stock.after(self.world, claim)
        elif terms.full:  # only borrowing within its namespace could help it: no free GPUs are kept for it
            self.waits[key] = waits_outside(self.world, job, terms.full, self.now)
            self.later += self.reserved.later(self.world, self.stock, job, terms, self.now)
            self.reserved.reserve(self.world, self.stock, job, terms, self._front(job))
        else:
            front = self._front(job) if len(self.waiting) < TOLD_IN_DETAIL else SOMEBODY
            self._wait(key, job, terms)
            self.reserved.reserve(self.world, self.stock, job, terms, front)
            self.reserved.note(self.world, job, terms)

    def result(self, line: Line) -> Allocation:
        """The claims and waits of all jobs that were decided."""
        larger = line.for_larger_nodes
        self.waits.update({key_of(job): waits_outside(self.world, job, why, self.now) for job, why in larger})
        asks = asking(self.pool, (*self.waiting, *(job for job, _ in larger)), self.now)
        met = (obstacle for wait in self.waits.values() for way in wait.ways for obstacle in way)
        obstacles = (*self.market.obstacles, *self.later, *met)
        turns = (*line.turns, *self.market.window_ends)
        again_at = earliest((next_moment(obstacles, self.now), *turns), self.now)
        ends_with = frozenset(key for obstacle in obstacles for key in obstacle.ends_with)
        return Allocation(self.claims, self.waits, asks, ends_with, again_at)

    def _front(self, job: FineTuneJob) -> Obstacle:
        return behind(job, -place_in_queue(self.pool, job, self.now)[0])

    def _wait(self, key: Key, job: FineTuneJob, terms: Terms) -> None:
        """Note why a job waits."""
        self.later += self.reserved.later(self.world, self.stock, job, terms, self.now)
        if len(self.waiting) >= TOLD_IN_DETAIL:
            self.waits[key] = far_behind(self.world, job, len(self.waiting))
        else:
            ways = obstructed(self.world, self.stock, job, terms, self.reserved, self.now)
            highest = self.market.highest_priority(job)
            self.waits[key] = waits_for(self.world, self.stock, job, ways, self.waiting, self.now, highest)
        self.waiting.append(job)
