"""Hand out one pool's GPUs: the only place where claims begin."""

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, GPUPoolStatus
from sluice_api.stages import Stage
from sluice_operator.cluster.errors import ApiError, Outdated
from sluice_operator.cluster.writes import Cluster
from sluice_operator.metrics import QUEUE_WAIT_SECONDS
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.allocation.allocate import Allocation, allocate, handed_out, next_turn, ready_since
from sluice_operator.plan.allocation.inventory import take_stock
from sluice_operator.plan.allocation.pool_status import engines_with_room, no_longer_refused, pool_status
from sluice_operator.plan.allocation.scale_up import scale_ups_of
from sluice_operator.plan.allocation.waiting import Wait
from sluice_operator.plan.aside import LOOKED_AT_AGAIN
from sluice_operator.plan.facts.pools import find_pool
from sluice_operator.plan.facts.refused import FIRST_PAUSE
from sluice_operator.plan.job.situation import Start, next_training_attempt
from sluice_operator.reconcile.at_once import side_by_side
from sluice_operator.reconcile.begin import begin_attempt
from sluice_operator.reconcile.fence import decided, say_set_aside
from sluice_operator.reconcile.scale_up import ask_for_nodes, remove_scale_ups
from sluice_operator.reconcile.status import until, write_status
from sluice_operator.settings import Settings

_LONG_SECONDS = 0.05
_REST = 3
_MOST_REFUSED = 20
"""After so many refusals in one decision the others wait for the next: it comes at once, as the refused are told."""


async def reconcile_pool(
    key: Key, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> timedelta | None:
    """Decide for all jobs that wait in one pool at once; make the claims of those whose turn it is."""
    world = store.world()
    pool = find_pool(world, key.name)
    if pool is None:
        store.verdicts.pop(key.name, None)
        await remove_scale_ups(cluster, scale_ups_of(world, key.name))
        return None

    began = time.monotonic()
    if began < store.rests_until.get(key.name, 0):
        return timedelta(seconds=store.rests_until[key.name] - began)
    allocation = decided(store, key, lambda world: handed_out(world, pool, now), now)
    if allocation is None:
        return await _is_set_aside(store, cluster, pool, now)

    store.rests_until[key.name] = rest_after(began, time.monotonic())

    allocation, failure = await _hand_out(pool, allocation, store, cluster, settings, now)
    _publish_waits(store, pool.metadata.name, allocation.waits)
    looks = await ask_for_nodes(pool, allocation.asking, store, cluster, settings, now)
    after = decided(store, key, lambda world: _after(world, pool, allocation.waits, now), now)
    if after is None:
        return await _is_set_aside(store, cluster, pool, now)
    concerned, turn, status = after
    for other in concerned:
        store.wake(other)
    if key in store.world().pools:
        await write_status(cluster, pool, status)
    if failure is not None:
        raise failure  # everybody else has had their turn; the queue looks again
    return until(min((at for at in (allocation.again_at, turn, looks) if at), default=None), now)


def _after(
    world: World, pool: GPUPool, waits: Mapping[Key, Wait], now: datetime
) -> tuple[list[Key], datetime | None, GPUPoolStatus]:
    """Whom GPUs that have come free concern, and whom nodes that have: nothing else tells them; when time alone changes
    a decision; and the status.
    """
    stock = take_stock(world, pool)
    engines = [key_of(engine) for engine in engines_with_room(world, stock)]
    jobs = [key for job in no_longer_refused(world, pool) if (key := key_of(job)) not in waits]
    return [*engines, *jobs], next_turn(world, pool, now), pool_status(world, stock, len(waits), now)


async def _is_set_aside(store: Store, cluster: Cluster, pool: GPUPool, now: datetime) -> timedelta | None:
    """Nothing can be decided for the pool as a whole. One that nobody made has no status that could say so."""
    if key_of(pool) not in store.world().pools:
        return LOOKED_AT_AGAIN
    return await say_set_aside(store, cluster, pool, now)


def rest_after(began: float, ended: float) -> float:
    """Until when a pool is not decided again: a long decision leaves its jobs and engines most of the time.

    What happens meanwhile is decided together. Decisions of an ordinary pool take a few milliseconds, and never rest.
    """
    return ended + _REST * (ended - began) if ended - began >= _LONG_SECONDS else ended


async def _hand_out(
    pool: GPUPool, allocation: Allocation, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> tuple[Allocation, Exception | None]:
    """Make the claims. Those that the API server refuses have no part in it: their GPUs go to the next, at once.

    Of one that has no record of that nothing says when it is its turn again, so the pool is looked at in a while.

    Returns what came of it, and why it has to be looked at again: whether a Job was made may not be known.
    """
    begin = partial(_begin, store, cluster, settings, now)
    refused: set[Key] = set()
    while True:
        world, jobs = store.world(), list(allocation.claims)
        ended = await side_by_side(begin(world.jobs[job], allocation.claims[job]) for job in jobs)
        failures = [failure for failure in ended if failure is not None and not _made_nothing(failure)]
        new = {job for job, failure in zip(jobs, ended, strict=True) if failure is not None and _made_nothing(failure)}
        if failures or not new or len(refused) >= _MOST_REFUSED:
            return allocation, next(iter(failures), None)
        refused |= new
        allocation = allocate(store.world(), pool, now, refused)
        soon = now + FIRST_PAUSE
        allocation = replace(allocation, again_at=min(allocation.again_at or soon, soon))


def _made_nothing(failure: Exception) -> bool:
    """Whether a claim was surely not made, and for no fault of the pool's: it was refused, or something is in its way.

    A tenant may put that there, under the name of a predecessor, as often as it is cleared away.
    """
    return isinstance(failure, Outdated) or (isinstance(failure, ApiError) and failure.is_refusal)


async def _begin(
    store: Store, cluster: Cluster, settings: Settings, now: datetime, job: FineTuneJob, claim: Claim
) -> None:
    """Make one claim."""
    start = Start(Stage.TRAIN, next_training_attempt(store.world(), job), claim)
    await begin_attempt(store, cluster, settings, job, start, now)
    if (ready := ready_since(job)) is not None:
        QUEUE_WAIT_SECONDS.labels(claim.pool).observe((now - ready).total_seconds())


def _publish_waits(store: Store, pool: str, waits: Mapping[Key, Wait]) -> None:
    """Leave each waiting job its reason, and wake those whose reason is new or gone."""
    before = store.verdicts.get(pool, {})
    store.verdicts[pool] = waits
    for key in before.keys() | waits.keys():
        if before.get(key) != waits.get(key):
            store.wake(key)
