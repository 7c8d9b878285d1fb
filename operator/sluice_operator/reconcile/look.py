"""What does a job's reconcile read before it decides, because no watch brings it, or not in time?"""

import logging
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_operator.cluster.errors import Gone
from sluice_operator.facts.claims import trainer_pods
from sluice_operator.facts.outcomes import recorded
from sluice_operator.observe.orphans import runs
from sluice_operator.observe.views import Key, PodView, StageJobView
from sluice_operator.observe.world import World, identity
from sluice_operator.plan.missing_pods import PODS_WITHIN
from sluice_operator.reconcile.context import Context
from sluice_operator.writes import Delete, Writes

logger = logging.getLogger(__name__)


async def look_for_orphans(key: Key, c: Context) -> None:
    """Read a job's orphans as they are now: a watch may be late, and what they say of their owner decides.

    Orphans in namespaces that another operator serves are left alone.
    """
    for view in _left_by(key, c):
        try:
            await c.cluster.same(view.key, view.uid)
        except Gone:
            continue


def orphan_writes(key: Key, c: Context) -> Writes:
    """End a job's orphans, whether the job exists or not. A pod with too long a grace period is one too."""
    found = _left_by(key, c)
    for view in found:
        logger.warning("ending an orphan", extra={"object": str(view.key), "job": str(key)})
    return tuple(
        Delete(view.key, view.uid, isinstance(view, StageJobView), view.in_time if isinstance(view, PodView) else None)
        for view in found
    )


def _left_by(key: Key, c: Context) -> list[StageJobView | PodView]:
    """What still runs of a job's orphans, Jobs first: their pods go with them."""
    place, links = (key.namespace, key.name), c.store.links
    if not c.store.serves(key.namespace):
        return []
    found: list[StageJobView | PodView] = [*links.orphaned_jobs.groups.get(place, {}).values()]
    found += links.orphaned_pods.groups.get(place, {}).values()
    return [view for view in found if runs(view)]


async def look_for_pods(key: Key, c: Context) -> None:
    """Read a finished Job's pods if one of them is not known: because of a late watch it would count as gone."""
    world = c.store.world()
    job = _unless_deleted(world, key)
    if job is None:
        return
    for stage in tuple(world.stage_jobs_of.get(identity(job), {}).values()):
        pods = len(stage.claim.nodes) if stage.claim else 1
        fresh = stage.finished and not recorded(job).has(stage.stage, stage.attempt)
        if fresh and len(trainer_pods(world, stage)) < pods:
            await c.cluster.look_for_pods(stage.key)


async def look_for_refused_pod(key: Key, c: Context, now: datetime) -> str:
    """The API server's message when it refused a stage's overdue pod; empty if it did not."""
    world = c.store.world()
    job = _unless_deleted(world, key)
    if job is None:
        return ""
    for stage in world.stage_jobs_of.get(identity(job), {}).values():
        young, pods = now - stage.created < PODS_WITHIN, len(stage.claim.nodes) if stage.claim else 1
        if not stage.finished and not stage.deleting and not young and len(trainer_pods(world, stage)) < pods:
            return await c.cluster.failed_create(stage.key)
    return ""


def _unless_deleted(world: World, key: Key) -> FineTuneJob | None:
    """The job of a key; None if it is gone or being deleted."""
    job = world.jobs.get(key)
    return None if job is None or job.metadata.deletion_timestamp else job
