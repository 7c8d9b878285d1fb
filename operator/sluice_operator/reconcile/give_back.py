"""Before an uninstall: end all training and bring every engine back to full size, so that no loan outlives Sluice."""

import asyncio
import logging

from sluice_api.inferenceengine import ASLEEP
from sluice_operator.clock import Clock
from sluice_operator.cluster.client import Api
from sluice_operator.cluster.errors import ApiError, NotLeading, Outdated
from sluice_operator.cluster.lease import Lease
from sluice_operator.cluster.lists import look_for_dra, refresh_all
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import PodView, StageJobView
from sluice_operator.observe.world import World, identity
from sluice_operator.plan.allocation.scale_up import scale_ups_of
from sluice_operator.plan.facts.belief import owner_of
from sluice_operator.reconcile.engine import reconcile_engine
from sluice_operator.reconcile.scale_up import remove_scale_ups
from sluice_operator.settings import Settings

logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0


async def give_back(api: Api, store: Store, cluster: Cluster, lease: Lease, settings: Settings) -> None:
    """Take the lease from the operator, which may still run, and undo every loan.

    Always returns: an uninstall goes on even if a slot is not back, which the log then says. Deployments and Jobs
    that are on their way end without Sluice; placeholders, and pods that ask for nodes, would stay for ever, so none is
    left.
    """
    await lease.take()
    clock = Clock()
    store.begin_term(lease.term, clock.now())
    keeping = asyncio.create_task(lease.keep())
    try:
        try:
            async with asyncio.timeout(settings.give_back_seconds):
                await _until_given_back(api, store, cluster, settings, clock)
        except TimeoutError:
            logger.warning("gave up: not everything is back", extra=missing(store.world()))
            await _remove_idle_pods(store.world(), cluster)
    except NotLeading:
        logger.warning("gave up: another process took the lease", extra=missing(store.world()))
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})
        await lease.leave()


async def _until_given_back(api: Api, store: Store, cluster: Cluster, settings: Settings, clock: Clock) -> None:
    """Look at everything anew each time; there is no watch here."""
    while True:
        try:
            await look_for_dra(api, store)
            await refresh_all(api, store)
            await _step(store, cluster, settings, clock)
        except (ApiError, Outdated) as error:
            logger.info("looking again", extra={"why": str(error)})
        else:
            if not missing(store.world()):
                logger.info("every slot is back")
                return
        await asyncio.sleep(_PAUSE_SECONDS)


async def _step(store: Store, cluster: Cluster, settings: Settings, clock: Clock) -> None:
    for stage_job in _unfinished(store.world()):
        if not stage_job.deleting:
            logger.info("ending a stage", extra={"job": str(stage_job.key)})
            await cluster.delete(stage_job.key, stage_job.uid, foreground=True)
    await remove_scale_ups(cluster, _scale_ups(store.world()))
    for key in tuple(store.world().engines):
        await reconcile_engine(key, store, cluster, settings, clock.now())


async def _remove_idle_pods(world: World, cluster: Cluster) -> None:
    await remove_scale_ups(cluster, _scale_ups(world))
    for pods in world.placeholders.values():
        for pod in pods.values():
            await cluster.delete(pod.key, pod.uid, foreground=False)


def _scale_ups(world: World) -> list[PodView]:
    """Pods that ask for nodes. Nobody waits for one that is going: somebody's finalizer may keep it for ever."""
    return [pod for pool in world.scale_ups for pod in scale_ups_of(world, pool) if not pod.deleting]


def _unfinished(world: World) -> list[StageJobView]:
    """Stage Jobs of the jobs that we serve; those that are being deleted too."""
    return [job for job in world.stage_jobs.values() if not job.finished and owner_of(world, job) is not None]


def missing(world: World) -> dict[str, list[str]]:
    """What is not as it is to be; empty when all is."""
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
