"""Hand out one pool's GPUs: the only place where claims begin."""

from datetime import datetime, timedelta
from functools import partial

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.stages import Stage
from sluice_operator.build.stage_job import stage_job
from sluice_operator.cluster.writes import Cluster
from sluice_operator.metrics import QUEUE_WAIT_SECONDS
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.allocation import Allocation, allocate, next_change, ready_since
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job import next_training_attempt
from sluice_operator.plan.pool import engines_with_room, pool_status
from sluice_operator.plan.pools import find_pool
from sluice_operator.reconcile.at_once import side_by_side
from sluice_operator.reconcile.status import until, write_status
from sluice_operator.settings import Settings


async def reconcile_pool(
    key: Key, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> timedelta | None:
    """Decide for all jobs that wait in one pool at once; make the claims of those whose turn it is."""
    world = store.world()
    pool = find_pool(world, key.name)
    if pool is None:
        return None

    allocation = allocate(world, pool, now)
    again_at = min((at for at in (allocation.again_at, next_change(world, pool, now)) if at), default=None)

    _publish_waits(store, world, pool.metadata.name, allocation)
    begin = partial(_begin, store, cluster, settings, now)
    await side_by_side(begin(world.jobs[job], claim) for job, claim in allocation.claims.items())
    stock = take_stock(store.world(), pool)
    for engine in engines_with_room(store.world(), stock):
        store.wake(key_of(engine))  # GPUs have come free; nothing else tells it
    if key in store.world().pools:
        status = pool_status(store.world(), stock, len(allocation.waits), now)
        await write_status(cluster, pool, status)
    return until(again_at, now)


async def _begin(
    store: Store, cluster: Cluster, settings: Settings, now: datetime, job: FineTuneJob, claim: Claim
) -> None:
    """Make one claim."""
    attempt = next_training_attempt(store.world(), job)
    await cluster.create(stage_job(job, Stage.TRAIN, attempt, settings, claim))
    if (ready := ready_since(job)) is not None:
        QUEUE_WAIT_SECONDS.labels(claim.pool).observe((now - ready).total_seconds())


def _publish_waits(store: Store, world: World, pool: str, allocation: Allocation) -> None:
    """Leave each waiting job its reason, and wake those whose reason is new."""
    for key, wait in allocation.waits.items():
        if store.verdicts.get(key) != wait:
            store.verdicts[key] = wait
            store.wake(key)
    gone = [
        key
        for key in store.verdicts
        if key not in allocation.waits and (key not in world.jobs or world.jobs[key].spec.resources.pool == pool)
    ]
    for key in gone:
        del store.verdicts[key]
        store.wake(key)
