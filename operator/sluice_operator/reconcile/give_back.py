"""Before an uninstall: end all training and bring every engine back to full size, so that no loan outlives Sluice."""

import asyncio
import logging

from sluice_api.inferenceengine import ASLEEP
from sluice_operator.clock import Clock
from sluice_operator.cluster.client import Api
from sluice_operator.cluster.errors import ApiError, NotLeading, Outdated
from sluice_operator.cluster.lease import Lease
from sluice_operator.cluster.lists import look_for_dra, refresh_all
from sluice_operator.facts.claims import owner_of
from sluice_operator.observe.views import PodView, StageJobView
from sluice_operator.observe.world import World, identity
from sluice_operator.plan.pool.scale_up import scale_ups_of
from sluice_operator.reconcile.context import Context
from sluice_operator.reconcile.engine import reconcile_engine
from sluice_operator.writes import Delete, Writes

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0


async def give_back(api: Api, c: Context, lease: Lease) -> None:
    """Take the lease from the operator, which may still run, and undo every loan.

    It returns even if a slot is not back in time, as an uninstall has to go on; the log says what is missing.
    Deployments and Jobs on their way need no Sluice to end. Placeholders and scale-up pods would stay for ever, so they
    are deleted.
    """
    await lease.take()
    clock = Clock()
    c.store.findings.begin_term(lease.term, clock.now())
    keeping = asyncio.create_task(lease.keep())
    try:
        try:
            async with asyncio.timeout(c.settings.give_back_seconds):
                await _until_given_back(api, c, clock)
        except TimeoutError:
            logger.warning("gave up: not everything is back", extra=missing(c.store.world()))
            world = c.store.world()
            placeholders = [pod for pods in world.placeholders.values() for pod in pods.values()]
            doomed = {pod.key: (Delete(pod.key, pod.uid),) for pod in (*_scale_ups(world), *placeholders)}
            for key, failure in (await c.cluster.do_each(doomed)).items():
                logger.warning("a pod that never runs is left behind", extra={"pod": str(key), "why": str(failure)})
    except NotLeading:
        logger.warning("gave up: another process took the lease", extra=missing(c.store.world()))
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        await lease.leave()


async def _until_given_back(api: Api, c: Context, clock: Clock) -> None:
    """End all training and reconcile all engines, again and again from full lists: no watch runs here."""
    while True:
        try:
            await look_for_dra(api, c.store)
            await refresh_all(api, c.store)
            await c.cluster.do(ending_writes(c.store.world()))
            for key in tuple(c.store.world().engines):
                await reconcile_engine(key, c, clock.now())
        except (ApiError, Outdated) as error:
            logger.info("looking again", extra={"why": str(error)})
        else:
            if not missing(c.store.world()):
                logger.info("every slot is back")
                return
        await asyncio.sleep(_PAUSE_SECONDS)


def ending_writes(world: World) -> Writes:
    """End all stages, and delete the scale-up pods."""
    stages = [stage_job for stage_job in _unfinished(world) if not stage_job.deleting]
    for stage_job in stages:
        logger.info("ending a stage", extra={"job": str(stage_job.key)})
    return (
        *(Delete(stage_job.key, stage_job.uid, foreground=True) for stage_job in stages),
        *(Delete(pod.key, pod.uid) for pod in _scale_ups(world)),
    )


def _scale_ups(world: World) -> list[PodView]:
    """Scale-up pods. One that is being deleted is not waited for: somebody's finalizer may keep it for ever."""
    return [pod for pool in world.scale_ups for pod in scale_ups_of(world, pool) if not pod.deleting]


def _unfinished(world: World) -> list[StageJobView]:
    """Unfinished stage Jobs of the jobs that we serve, also those that are being deleted."""
    return [job for job in world.stage_jobs.values() if not job.finished and owner_of(world, job) is not None]


def missing(world: World) -> dict[str, list[str]]:
    """What is not given back yet, by kind; empty when everything is."""
    stages = [str(job.key) for job in _unfinished(world)]
    engines = []
    for key, engine in world.engines.items():
        slots = world.slots_of.get(identity(engine), {}).values()
        small = sum(slot.size for slot in slots if not slot.deleting) < engine.spec.replicas
        if small or any(slot.state in ASLEEP for slot in engine.status.slots):
            engines.append(str(key))
    placeholders = [str(pod) for pods in world.placeholders.values() for pod in pods]
    asking = [str(pod.key) for pod in _scale_ups(world)]
    lists = (("stages", stages), ("engines", engines), ("placeholders", placeholders), ("scaleUps", asking))
    return {name: found for name, found in lists if found}
