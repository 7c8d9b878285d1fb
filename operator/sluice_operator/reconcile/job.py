"""Bring one FineTuneJob nearer to what its spec asks for."""

from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.build.adapter import adapter
from sluice_operator.build.stage_job import group_service
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import key_of
from sluice_operator.plan.allocation.waiting import Wait
from sluice_operator.plan.facts.attempts import trainer_pods
from sluice_operator.plan.facts.outcomes import recorded
from sluice_operator.plan.facts.podless import PODS_WITHIN
from sluice_operator.plan.facts.preparing import next_to_prepare
from sluice_operator.plan.job.decide import job_of, plan_job
from sluice_operator.plan.job.holding import Limits
from sluice_operator.plan.job.situation import JobDecision
from sluice_operator.plan.job.status import job_status
from sluice_operator.reconcile.begin import begin_attempt
from sluice_operator.reconcile.status import until, write_status
from sluice_operator.settings import Settings


async def reconcile_job(
    key: Key, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> timedelta | None:
    """Bring one FineTuneJob one step nearer to what its spec asks for."""
    await _look_again(key, store, cluster)
    refused_pod = await _refused_pod(key, store, cluster, now)

    world = store.world()
    job = job_of(world, key)
    if job is None:
        return None  # deleted: its children go with it
    if job.spec.managed_by and job.status.conditions:
        return None  # its status is another controller's too, once it says so

    wait = store.verdicts.get(job.spec.resources.pool, {}).get(key)
    decision = plan_job(world, job, now, limits(settings), wait if isinstance(wait, Wait) else None, refused_pod)
    status = job_status(world, job, decision, now)

    prepares = decision.start is not None and decision.start.stage is Stage.PREPARE
    if prepares:
        store.starting.add(key)  # before the first await: another job's decision counts it
    try:
        await _act(job, decision, store, cluster, settings, now)
    finally:
        if prepares:
            store.starting.discard(key)
            for other in next_to_prepare(store.world(), job.spec.resources.pool):
                store.wake(key_of(other))
    await write_status(cluster, job, status, exclude={"progress"})
    await _tell(job, decision, cluster)
    return until(decision.again_at, now)


def limits(settings: Settings) -> Limits:
    """How long a claim may take for each step."""
    return Limits(
        bind=timedelta(seconds=settings.bind_deadline_seconds),
        start=timedelta(seconds=settings.stage_start_deadline_seconds),
        stall=timedelta(seconds=settings.stalled_after_seconds),
    )


async def _act(
    job: FineTuneJob, decision: JobDecision, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> None:
    """The record first: what follows may remove the objects that it was read from."""
    if decision.record is not None:
        annotations = {OUTCOMES_ANNOTATION: decision.record.to_json()}
        await cluster.annotate(_key(job), job.metadata.uid, annotations)
    if decision.start is not None:
        start = decision.start
        await begin_attempt(store, cluster, job, start.stage, start.attempt, settings, start.claim)
    if decision.bind and job.spec.resources.nodes > 1:
        await cluster.apply(group_service(job))
    for pod, node in decision.bind:
        await cluster.bind_pod(pod.key, pod.uid, node, now)
    if decision.publish is not None and job.spec.publish is not None:
        await cluster.apply(adapter(job, job.spec.publish, decision.publish))
    for doomed in decision.delete:
        await cluster.delete(doomed.key, doomed.uid, foreground=True)
    if decision.remove:
        await cluster.delete(_key(job), job.metadata.uid, foreground=False)


async def _look_again(key: Key, store: Store, cluster: Cluster) -> None:
    """Ask for the pods of a finished Job that are not known: none is taken for gone because a watch is late."""
    world = store.world()
    job = job_of(world, key)
    if job is None:
        return
    for stage in tuple(world.stage_jobs_of.get(job.metadata.uid, {}).values()):
        pods = len(stage.claim.nodes) if stage.claim else 1
        fresh = stage.finished and not recorded(job).has(stage.stage, stage.attempt)
        if fresh and len(trainer_pods(world, stage)) < pods:
            await cluster.look_for_pods(stage.key)


async def _refused_pod(key: Key, store: Store, cluster: Cluster, now: datetime) -> str:
    """What the API server said when it refused the pod of a stage Job that has none for a while."""
    world = store.world()
    job = job_of(world, key)
    if job is None:
        return ""
    for stage in world.stage_jobs_of.get(job.metadata.uid, {}).values():
        young = now - stage.created < PODS_WITHIN
        if not stage.finished and not stage.deleting and not young and not trainer_pods(world, stage):
            return await cluster.failed_create(stage.key)
    return ""


async def _tell(job: FineTuneJob, decision: JobDecision, cluster: Cluster) -> None:
    """One event per change of mind."""
    if decision.reason != job.status.summary:
        kind = "Warning" if decision.failed or decision.reason in _WARN else "Normal"
        await cluster.event(_key(job), job.metadata.uid, kind, decision.reason, decision.message)


_WARN = frozenset(
    {
        Reason.STALLED,
        Reason.NOT_BOUND,
        Reason.QUOTA_EXCEEDED,
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_NOT_PULLED,
        Reason.POD_REFUSED,
        Reason.GPU_FAILED,
        Reason.NODE_NOT_READY,
        Reason.OUTPUT_NOT_WRITABLE,
    }
)


def _key(job: FineTuneJob) -> Key:
    return Key(job.KIND.kind, job.metadata.namespace, job.metadata.name)
