"""Decide for all jobs that wait in one pool at once."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine, SlotState, SlotStatus
from sluice_api.stages import Stage
from sluice_operator.cluster.cluster import Failure
from sluice_operator.cluster.errors import Outdated
from sluice_operator.facts.nodes import elders_of, find_pool
from sluice_operator.facts.retries import FIRST_PAUSE
from sluice_operator.facts.slots import pod_of, ref
from sluice_operator.manifests.scale_up import scale_up_pod
from sluice_operator.metrics import QUEUE_WAIT_SECONDS
from sluice_operator.observe.fence import each
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.situation import Start, next_training_attempt
from sluice_operator.plan.obstacle import Wait
from sluice_operator.plan.pool.allocate import Allocation, allocate
from sluice_operator.plan.pool.queue import ready_since
from sluice_operator.plan.pool.scale_up import plan_scale_up, scale_ups_of
from sluice_operator.plan.stock import Stock
from sluice_operator.reconcile.attempt_writes import attempt_writes, refused_writes
from sluice_operator.reconcile.context import Context, Requeue, until
from sluice_operator.reconcile.fence import decided, planned
from sluice_operator.reconcile.status import status_writes
from sluice_operator.status.pool import pool_status
from sluice_operator.writes import Create, Delete, Plan, Refused, Writes

_LONG_SECONDS = 0.05
"""A decision that takes longer is followed by a rest."""
_REST = 3
"""How many times as long as the decision the rest is."""
_MOST_REFUSED = 20
"""After this many refusals a decision ends. The next one comes at once, as the refused jobs are told."""
_NO_POD = "no pod that asks for a node: an autoscaler is told of fewer"


async def reconcile_pool(key: Key, c: Context, now: datetime) -> Requeue:
    """Decide for all jobs that wait in one pool, and make the claims of those that are next."""
    pool = find_pool(c.store.world(), key.name)
    if pool is None:
        return await _leave(key, c)
    if (rest := c.rests_until.get(key.name, 0) - c.passing()) > 0:
        return timedelta(seconds=rest)

    allocation, failure = await _hand_out(pool, c, now)
    _publish_waits(c, key.name, allocation.waits)
    plan = planned(c, key, lambda world: pool_plan(world, pool, allocation, c, now), now)

    for other in plan.concerned if isinstance(plan, PoolPlan) else ():
        c.enqueue(other)
    await c.cluster.do(plan.writes)
    if failure is not None:
        raise failure  # all other writes are done; the queue tries again
    return until(plan.again_at, now)


@dataclass(frozen=True, slots=True)
class PoolPlan(Plan):
    """What to do once the claims are made."""

    concerned: tuple[Key, ...] = ()
    """Engines whose status says otherwise than the stock which of their slots have a GPU. Nothing else wakes them."""


def pool_plan(world: World, pool: GPUPool, allocation: Allocation, c: Context, now: datetime) -> PoolPlan:
    """Ask for nodes, write the pool's status, and say when time alone changes something."""
    stock = take_stock(world, pool)
    scale_up = plan_scale_up(world, stock, allocation.asking, now)
    elders = [elder.spec for elder in elders_of(world, pool)]
    name, spec = pool.metadata.name, pool.spec
    writes: Writes = (
        *(Delete(pod.key, pod.uid) for pod in scale_up.remove),
        *(Create(scale_up_pod(job, i, name, spec, elders, c.settings), _NO_POD) for job, i in scale_up.make),
    )
    if key_of(pool) in world.pools:
        writes += status_writes(pool, pool_status(world, stock, len(allocation.waits), now))
    turns = (allocation.again_at, scale_up.again_at)
    return PoolPlan(
        writes,
        min((at for at in turns if at), default=None),
        tuple(allocation.ends_with),
        concerned=tuple(key_of(engine) for engine in engines_concerned(world, stock)),
    )


def rest_after(began: float, ended: float) -> float:
    """Until when a pool is not decided again, so that a long decision leaves its jobs and engines most of the time.

    What happens meanwhile is decided together. A decision of an ordinary pool takes a few milliseconds and has no rest.
    """
    return ended + _REST * (ended - began) if ended - began >= _LONG_SECONDS else ended


async def _leave(key: Key, c: Context) -> Requeue:
    """The pool is gone: forget why jobs waited in it, and delete its scale-up pods."""
    c.waits.pop(key.name, None)
    await c.cluster.do(tuple(Delete(pod.key, pod.uid) for pod in scale_ups_of(c.store.world(), key.name)))
    return None


async def _hand_out(pool: GPUPool, c: Context, now: datetime) -> tuple[Allocation, Exception | None]:
    """Decide and make the claims. If the API server refuses some, decide again without them, at once.

    A refused job may have no record that says when it is its turn again, so the pool is looked at again in a while.

    Returns:
        What was decided, and a failure that needs another look: whether a Job was made may be unknown.
    """
    key, refused, soon = key_of(pool), frozenset[Key](), None
    while True:
        began = c.passing()
        found = decided(c, key, partial(_claims, pool=pool, refused=refused, c=c, now=now), now)
        c.rests_until[key.name] = rest_after(began, c.passing())
        if found is None:
            return Allocation(), None
        failed = await c.cluster.do_each({job: writes for job, (_, writes) in found.begins.items()})
        _measure(c, found, failed, now)
        failures = [end for end in failed.values() if isinstance(end, Exception) and not isinstance(end, Outdated)]
        failures += await _record(c, found, failed, now)
        new = {job for job, end in failed.items() if _made_nothing(end)}
        if failures or not new or len(refused) >= _MOST_REFUSED:
            again_at = min((at for at in (found.allocation.again_at, soon) if at), default=None)
            return replace(found.allocation, again_at=again_at), next(iter(failures), None)
        refused |= new
        soon = now + FIRST_PAUSE


@dataclass(frozen=True, slots=True)
class _Claims:
    """Which job gets what, and by which writes."""

    allocation: Allocation
    begins: Mapping[Key, tuple[Start, Writes]]


def _claims(world: World, pool: GPUPool, refused: Collection[Key], c: Context, now: datetime) -> _Claims:
    allocation = allocate(world, pool, now, refused)

    def begin(job: Key) -> tuple[Key, tuple[Start, Writes]]:
        resource = world.jobs[job]
        start = Start(Stage.TRAIN, next_training_attempt(world, resource), allocation.claims[job])
        return job, (start, attempt_writes(world, resource, start, c))

    return _Claims(allocation, dict(each(allocation.claims, lambda job: job, begin)))


def _measure(c: Context, claims: _Claims, failed: Mapping[Key, Failure], now: datetime) -> None:
    """Measure how long the jobs waited that have now got their first claim."""
    for job, claim in claims.allocation.claims.items():
        resource = c.store.world().jobs.get(job)
        ready = ready_since(resource) if resource and job not in failed else None
        if ready is not None:
            QUEUE_WAIT_SECONDS.labels(claim.pool).observe((now - ready).total_seconds())


async def _record(c: Context, claims: _Claims, failed: Mapping[Key, Failure], now: datetime) -> list[Exception]:
    """Write into each job's record what the API server refused it.

    Returns:
        Failures. After one of them a record may be missing.
    """
    world, records = c.store.world(), dict[Key, Writes]()
    for job, end in failed.items():
        if isinstance(end, Refused) and job in world.jobs:
            records[job] = refused_writes(world, world.jobs[job], claims.begins[job][0], end, now)
    ended = await c.cluster.do_each(records)
    return [end for end in ended.values() if isinstance(end, Exception) and not isinstance(end, Outdated)]


def _made_nothing(failure: Failure) -> bool:
    """Whether a claim was surely not made, by no fault of the pool: it was refused, or an object is in its way.

    A tenant may put such an object there, named like a predecessor's, as often as it is removed.
    """
    return isinstance(failure, Refused | Outdated)


def _publish_waits(c: Context, pool: str, waits: Mapping[Key, Wait]) -> None:
    """Store why each job waits, and wake the jobs for which that is new or gone."""
    before = c.waits.get(pool, {})
    c.waits[pool] = waits
    for key in before.keys() | waits.keys():
        if before.get(key) != waits.get(key):
            c.enqueue(key)


def engines_concerned(world: World, stock: Stock) -> list[InferenceEngine]:
    """Engines of which a slot waits, as their status says, and there is a GPU for it; or starts, and there is none."""

    def is_concerned(engine: InferenceEngine) -> bool:
        return any(_says_otherwise(world, stock, engine, slot) for slot in engine.status.slots)

    looks = each(stock.engines, key_of, lambda engine: (engine, is_concerned(engine)))
    return [engine for engine, concerned in looks if concerned]


def _says_otherwise(world: World, stock: Stock, engine: InferenceEngine, slot: SlotStatus) -> bool:
    placed = ref(engine, slot.index) in stock.placed
    if slot.state is not SlotState.STARTING:
        return slot.state is SlotState.WAITING and placed
    pod = pod_of(world, engine, slot.index)
    return not placed and not (pod and pod.node)
