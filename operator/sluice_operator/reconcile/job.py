"""Bring one FineTuneJob nearer to what its spec asks for."""

from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob, FineTuneJobStatus
from sluice_api.meta import OUTCOMES_ANNOTATION
from sluice_api.publish import Publish
from sluice_api.reasons import Reason
from sluice_api.stages import ExportResult, Stage
from sluice_operator.build.adapter import adapter
from sluice_operator.build.metadata import Manifest
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.writes import Cluster
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, adapter_key, identity, key_of
from sluice_operator.plan.allocation.waiting import Wait
from sluice_operator.plan.facts.attempts import trainer_pods
from sluice_operator.plan.facts.outcomes import recorded
from sluice_operator.plan.facts.podless import PODS_WITHIN
from sluice_operator.plan.facts.preparing import next_to_prepare
from sluice_operator.plan.facts.refused import REFUSED
from sluice_operator.plan.job.decide import job_of, plan_job
from sluice_operator.plan.job.holding import Limits
from sluice_operator.plan.job.situation import JobDecision, refused, told_since
from sluice_operator.plan.job.status import job_status
from sluice_operator.reconcile.begin import begin_attempt
from sluice_operator.reconcile.fence import decided, say_set_aside
from sluice_operator.reconcile.orphans import end_orphans
from sluice_operator.reconcile.refused import why
from sluice_operator.reconcile.status import until, write_status
from sluice_operator.settings import Settings


async def reconcile_job(
    key: Key, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> timedelta | None:
    """Bring one FineTuneJob one step nearer to what its spec asks for."""
    await end_orphans(key, store, cluster)
    await _look_again(key, store, cluster)
    refused_pod = await _refused_pod(key, store, cluster, now)

    world = store.world()
    job = world.jobs.get(key)
    if job is None:
        return None  # deleted: its children go with it
    if job.spec.managed_by and job.status.conditions:
        return None  # its status is another controller's too, once it says so

    wait = store.verdicts.get(job.spec.resources.pool, {}).get(key)

    def decide(world: World) -> tuple[JobDecision, FineTuneJobStatus]:
        decision = plan_job(world, job, now, limits(settings), wait if isinstance(wait, Wait) else None, refused_pod)
        return decision, job_status(world, job, decision, now)

    found = decided(store, key, decide, now)
    if found is None:
        return await say_set_aside(store, cluster, job, now)
    decision, status = found

    failure = await _try(job, decision, store, cluster, settings, now)
    if failure is not None and failure.is_refusal:
        decision = refused(decision, why(failure), failure.message, told_since(job, decision), now)
        status = job_status(world, job, decision, now)
    await write_status(cluster, job, status, exclude={"progress"})  # also when what was to be done has failed
    await _tell(job, decision, cluster)
    if failure is not None and not failure.is_refusal:
        raise failure
    return until(decision.again_at, now)


def limits(settings: Settings) -> Limits:
    """How long a claim may take for each step."""
    return Limits(
        bind=timedelta(seconds=settings.bind_deadline_seconds),
        start=timedelta(seconds=settings.stage_start_deadline_seconds),
        stall=timedelta(seconds=settings.stalled_after_seconds),
    )


async def _try(
    job: FineTuneJob, decision: JobDecision, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> ApiError | None:
    """Do what is decided, as far as the API server does it."""
    prepares = decision.start is not None and decision.start.stage is Stage.PREPARE
    if prepares:
        store.starting.add(_key(job))  # before the first await: another job's decision counts it
    try:
        await _act(job, decision, store, cluster, settings, now)
    except ApiError as error:
        return error
    finally:
        if prepares:
            store.starting.discard(_key(job))
            for other in next_to_prepare(store.world(), job.spec.resources.pool):
                store.wake(key_of(other))
    return None


async def _act(
    job: FineTuneJob, decision: JobDecision, store: Store, cluster: Cluster, settings: Settings, now: datetime
) -> None:
    """The record first: what follows may remove the objects that it was read from."""
    if decision.record is not None:
        annotations = {OUTCOMES_ANNOTATION: decision.record.to_json()}
        await cluster.annotate(_key(job), job.metadata.uid, annotations)
    if decision.start is not None:
        await begin_attempt(store, cluster, settings, job, decision.start, now)
    for pod, node in decision.bind:
        await cluster.bind_pod(pod.key, pod.uid, node, now)
    if decision.publish is not None and job.spec.publish is not None:
        await cluster.apply(_adapter(store.world(), job, job.spec.publish, decision.publish))
    for doomed in decision.delete:
        await cluster.delete(doomed.key, doomed.uid, foreground=True)
    if decision.remove:
        await cluster.delete(_key(job), job.metadata.uid, foreground=False)


def _adapter(world: World, job: FineTuneJob, publish: Publish, export: ExportResult) -> Manifest:
    """The Adapter; with the uid of the one that it replaces, whoever made that, if the job says so."""
    manifest = adapter(job, publish, export)
    there = world.adapters.get(adapter_key(job.metadata.namespace, publish.name))
    if publish.replace and there is not None:
        manifest["metadata"]["uid"] = there.metadata.uid
    return manifest


async def _look_again(key: Key, store: Store, cluster: Cluster) -> None:
    """Ask for the pods of a finished Job that are not known: none is taken for gone because a watch is late."""
    world = store.world()
    job = job_of(world, key)
    if job is None:
        return
    for stage in tuple(world.stage_jobs_of.get(identity(job), {}).values()):
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
    for stage in world.stage_jobs_of.get(identity(job), {}).values():
        young, pods = now - stage.created < PODS_WITHIN, len(stage.claim.nodes) if stage.claim else 1
        if not stage.finished and not stage.deleting and not young and len(trainer_pods(world, stage)) < pods:
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
        Reason.UNSCHEDULABLE,
        Reason.IMAGE_NOT_PULLED,
        Reason.POD_REFUSED,
        Reason.GPU_FAILED,
        Reason.NODE_NOT_READY,
        Reason.OUTPUT_NOT_WRITABLE,
        *REFUSED,
    }
)


def _key(job: FineTuneJob) -> Key:
    return Key(job.KIND.kind, job.metadata.namespace, job.metadata.name)
