"""What a job's reconcile looks for that no watch brings, or not in time, before anything is decided."""

import logging
from datetime import datetime

from sluice_operator.cluster.errors import Gone
from sluice_operator.facts.claims import trainer_pods
from sluice_operator.facts.outcomes import recorded
from sluice_operator.observe.orphans import runs
from sluice_operator.observe.views import Key, PodView, StageJobView
from sluice_operator.observe.world import identity
from sluice_operator.plan.job.decide import job_of
from sluice_operator.plan.preflight import PODS_WITHIN
from sluice_operator.reconcile.context import Context
from sluice_operator.writes import Delete, Writes

logger = logging.getLogger(__name__)


async def look_for_orphans(key: Key, c: Context) -> None:
    """Read anew what a job has left behind: what it says of its owner is believed of the object as it is.

    A watch may be late. What is in namespaces that another operator serves is none of ours.
    """
    for view in _left_by(key, c):
        try:
            await c.cluster.same(view.key, view.uid)
        except Gone:
            continue


def orphan_writes(key: Key, c: Context) -> Writes:
    """End what a job has left behind, whether there is such a job or not.

    And in time what somebody has deleted with a longer grace period.
    """
    found = _left_by(key, c)
    for view in found:
        logger.warning("ending an orphan", extra={"object": str(view.key), "job": str(key)})
    return tuple(
        Delete(view.key, view.uid, isinstance(view, StageJobView), view.in_time if isinstance(view, PodView) else None)
        for view in found
    )


def _left_by(key: Key, c: Context) -> list[StageJobView | PodView]:
    """What runs of it, Jobs first: their pods go with them."""
    place, links = (key.namespace, key.name), c.store.links
    if not c.store.serves(key.namespace):
        return []
    found: list[StageJobView | PodView] = [*links.orphaned_jobs.groups.get(place, {}).values()]
    found += links.orphaned_pods.groups.get(place, {}).values()
    return [view for view in found if runs(view)]


async def look_for_pods(key: Key, c: Context) -> None:
    """Ask for the pods of a finished Job that are not known: none is taken for gone because a watch is late."""
    world = c.store.world()
    job = job_of(world, key)
    if job is None:
        return
    for stage in tuple(world.stage_jobs_of.get(identity(job), {}).values()):
        pods = len(stage.claim.nodes) if stage.claim else 1
        fresh = stage.finished and not recorded(job).has(stage.stage, stage.attempt)
        if fresh and len(trainer_pods(world, stage)) < pods:
            await c.cluster.look_for_pods(stage.key)


async def look_for_refused_pod(key: Key, c: Context, now: datetime) -> str:
    """What the API server said when it refused the pod of a stage Job that has none for a while."""
    world = c.store.world()
    job = job_of(world, key)
    if job is None:
        return ""
    for stage in world.stage_jobs_of.get(identity(job), {}).values():
        young, pods = now - stage.created < PODS_WITHIN, len(stage.claim.nodes) if stage.claim else 1
        if not stage.finished and not stage.deleting and not young and len(trainer_pods(world, stage)) < pods:
            return await c.cluster.failed_create(stage.key)
    return ""
