"""Keep the pods by which the jobs of a pool ask for nodes."""

import logging
from collections.abc import Iterable
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_operator.build.scale_up import scale_up_pod
from sluice_operator.cluster.errors import ApiError, Outdated
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import PodView
from sluice_operator.observe.world import key_of
from sluice_operator.plan.allocation.inventory import take_stock
from sluice_operator.plan.allocation.scale_up import plan_scale_up
from sluice_operator.plan.facts.pools import elders_of
from sluice_operator.plan.facts.refused import FIRST_PAUSE
from sluice_operator.reconcile.fence import decided
from sluice_operator.settings import Settings

logger = logging.getLogger(__name__)


async def ask_for_nodes(
    pool: GPUPool,
    asking: Iterable[FineTuneJob],
    store: Store,
    cluster: Cluster,
    settings: Settings,
    now: datetime,
) -> datetime | None:
    """Make the pods of those that ask, and remove those that are in the way. One that can't be made is done without.

    Returns when to look again.
    """
    world, asked = store.world(), tuple(asking)
    decision = decided(
        store, key_of(pool), lambda world: plan_scale_up(world, take_stock(world, pool), asked, now), now
    )
    if decision is None:
        return None  # the pool's own reconcile says so
    elders = [elder.spec for elder in elders_of(world, pool)]
    await remove_scale_ups(cluster, decision.remove)
    again_at = decision.again_at
    for job, index in decision.make:
        try:
            await cluster.create(scale_up_pod(job, index, pool.metadata.name, pool.spec, elders, settings))
        except (ApiError, Outdated) as error:
            if isinstance(error, ApiError) and not error.is_refusal:
                again_at = min(again_at or now + FIRST_PAUSE, now + FIRST_PAUSE)
            extra = {"job": job.metadata.full_name, "why": str(error)}
            logger.warning("no pod that asks for a node: an autoscaler is told of fewer", extra=extra)
    return again_at


async def remove_scale_ups(cluster: Cluster, pods: Iterable[PodView]) -> None:
    """Delete pods that ask for nodes; the GPUs of one that has a node are free at once."""
    for pod in pods:
        await cluster.delete(pod.key, pod.uid, foreground=False)
