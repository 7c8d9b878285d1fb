"""Whose decision may change when an object changes: who is woken by which event? Pure, by indices instead of scans."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from sluice_api.adapter import Adapter
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import DEFAULT_POOL, ENGINE_LABEL, JOB_LABEL, PLACEHOLDER_LABEL, SCALE_UP_LABEL
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.observe.links import Links
from sluice_operator.observe.parse import Stored, stored_key
from sluice_operator.observe.views import (
    BudgetView,
    DeviceClaimView,
    Key,
    NamespaceView,
    NodeView,
    PodView,
    SliceView,
    SlotView,
    StageJobView,
    View,
    VolumeClaimView,
    VolumeView,
)
from sluice_operator.observe.world import World, engine_key, identity, job_key, key_of, pool_key
from sluice_operator.plan.job.stages import next_to_prepare

AnyStored = TypeVar("AnyStored", bound=Stored)


def keys_for(
    old: Stored | None,
    new: Stored | None,
    world: World,
    links: Links,
    waits_for: Callable[[Key], Iterable[Key]] = lambda _key: (),
) -> set[Key]:
    """Keys to reconcile after an object has changed from `old` to `new`; None is: not there.

    What an object is part of follows from what it is; who waits for it has said so. A job that may be refused no
    longer is its pool's to look at, too.
    """
    if old is not None and new is not None and _same_but_version(old, new):
        return set()
    found = set[Key]()
    for state in (old, new):
        if state is not None:
            found.update(_ROUTES[type(state)](old, new, state, world, links))
            waiting = {*waits_for(stored_key(state))}
            if isinstance(state, PodView) and state.daemon_set:  # what a node has for others
                waiting |= {*waits_for(Key("Node", "", state.node))}
            found |= waiting | {pool_key(world.jobs[key].spec.resources.pool) for key in waiting if key in world.jobs}
    return found


def every_key(world: World, links: Links) -> set[Key]:
    """All that is ever reconciled: where a new leader begins. The pool `default` needs no object.

    Nor does a job that is gone and has left something behind.
    """
    left = (job_key(*place) for places in (links.orphaned_jobs, links.orphaned_pods) for place in places.groups)
    return {*world.jobs, *world.engines, *world.adapters, *world.pools, pool_key(DEFAULT_POOL), *left}


def goes_first(world: World, key: Key) -> bool:
    """Whether a key is not to wait behind jobs without GPUs: they may be many thousands."""
    if key not in world.jobs:
        return True
    stage_jobs = world.stage_jobs_of.get(identity(world.jobs[key]), {}).values()
    return any(stage_job.claim is not None and not stage_job.finished for stage_job in stage_jobs)


def _same_but_version(old: Stored, new: Stored) -> bool:
    if isinstance(old, View):
        return isinstance(new, View) and replace(old, resource_version=new.resource_version) == new
    if isinstance(new, View):
        return False
    metadata = old.metadata.model_copy(update={"resource_version": new.metadata.resource_version})
    return metadata == new.metadata and old.spec == new.spec and old.status == new.status


def _job(old: Stored | None, new: Stored | None, job: FineTuneJob, world: World, _links: Links) -> Iterator[Key]:
    """Itself, its pool, and the engines that lend to it; figures that only tell how far it is change no decision.

    But the first estimate of its end may be after its deadline.
    """
    if isinstance(old, FineTuneJob) and isinstance(new, FineTuneJob) and _only_progress(old, new):
        if _estimate(old) is None and _estimate(new) is not None:
            yield key_of(job)
        return
    yield key_of(job)
    yield pool_key(job.spec.resources.pool)
    if new is None or (_waits_to_prepare(old) and not _waits_to_prepare(new)):
        yield from _next_to_prepare(job.spec.resources.pool, world)
    for stage_job in world.stage_jobs_of.get(identity(job), {}).values():
        yield from _lenders(stage_job)


def _estimate(job: FineTuneJob) -> int | None:
    return job.status.progress.seconds_left if job.status.progress else None


def _only_progress(old: FineTuneJob, new: FineTuneJob) -> bool:
    return (
        old.status.progress != new.status.progress
        and old.spec == new.spec
        and old.status.model_copy(update={"progress": new.status.progress}) == new.status
        and old.metadata.model_copy(update={"resource_version": new.metadata.resource_version}) == new.metadata
    )


def _engine(
    _old: Stored | None, _new: Stored | None, engine: InferenceEngine, _world: World, links: Links
) -> Iterator[Key]:
    """Itself, its pool, its adapters, and who borrows from it."""
    place = (engine.metadata.namespace, engine.metadata.name)
    yield key_of(engine)
    yield pool_key(engine.spec.resources.pool)
    yield from links.adapters_on.groups.get(place, {})
    yield from _borrowers(place, links)


def _adapter(old: Stored | None, new: Stored | None, adapter: Adapter, _world: World, links: Links) -> Iterator[Key]:
    """Itself, its engine, the job that published it; and when it comes, goes or is another's, the engine's others, of
    which there may be so many, and the pools of jobs that want its name.
    """
    namespace, labels = adapter.metadata.namespace, adapter.metadata.labels
    yield key_of(adapter)
    yield engine_key(namespace, adapter.spec.engine)
    if old is None or new is None:
        yield from links.adapters_on.groups.get((namespace, adapter.spec.engine), {})
    if _publisher(old) != _publisher(new):
        yield from _pools_of(links.publishing_as.groups.get((namespace, adapter.metadata.name), {}))
    if JOB_LABEL in labels:
        yield job_key(namespace, labels[JOB_LABEL])


def _publisher(adapter: Stored | None) -> str | None:
    """The job that has written an Adapter; empty for one of a person's."""
    return adapter.metadata.labels.get(JOB_LABEL, "") if isinstance(adapter, Adapter) else None


def _pool(old: Stored | None, new: Stored | None, pool: GPUPool, _world: World, links: Links) -> Iterator[Key]:
    """Itself, and all that is in it."""
    yield key_of(pool)
    if isinstance(old, GPUPool) and isinstance(new, GPUPool) and old.spec == new.spec:
        return  # only its status: what it says changes no decision
    yield pool_key(DEFAULT_POOL)
    yield from links.engines_in_pool.groups.get(pool.metadata.name, {})
    yield from _unfinished(links.jobs_in_pool.groups.get(pool.metadata.name, {}))


def _namespace(
    _old: Stored | None, _new: Stored | None, _namespace: NamespaceView, world: World, _links: Links
) -> Iterator[Key]:
    """All pools: whom they, and the engines in them, are open to."""
    yield from _all_pools(world)


def _budget(
    _old: Stored | None, _new: Stored | None, _budget: BudgetView, world: World, _links: Links
) -> Iterator[Key]:
    """All pools: what engines may lend."""
    yield from _all_pools(world)


def _node(old: Stored | None, new: Stored | None, node: NodeView, world: World, _links: Links) -> Iterator[Key]:
    """All pools: which of them it belongs to is in its labels. A claim on a node that is gone is over.

    One whose node does not answer says so.
    """
    yield from _all_pools(world)
    if old is None or new is None or _is_ready(old) != _is_ready(new):
        yield from _claimants_on(node.key.name, world)
        for pod in world.pods_on.get(node.key.name, {}).values():
            yield from _makers(pod)


def _makers(pod: PodView) -> Iterator[Key]:
    """The job or the engine that a pod is of."""
    if JOB_LABEL in pod.labels:
        yield job_key(pod.key.namespace, pod.labels[JOB_LABEL])
    if ENGINE_LABEL in pod.labels:
        yield engine_key(pod.key.namespace, pod.labels[ENGINE_LABEL])


def _is_ready(node: Stored) -> bool:
    return isinstance(node, NodeView) and node.ready


def _slice(_old: Stored | None, _new: Stored | None, _slice: SliceView, world: World, _links: Links) -> Iterator[Key]:
    """All pools: how many GPUs its node offers."""
    yield from _all_pools(world)


def _device_claim(
    old: Stored | None, new: Stored | None, claim: DeviceClaimView, world: World, _links: Links
) -> Iterator[Key]:
    """The pools, when what it has of its node is another; and the engine, if it is of a slot."""
    if _has(old) != _has(new):
        yield from _all_pools(world)
    if ENGINE_LABEL in claim.labels:
        yield engine_key(claim.key.namespace, claim.labels[ENGINE_LABEL])


def _has(claim: Stored | None) -> object:
    """What of a ResourceClaim the pools count."""
    return (claim.node, claim.devices) if isinstance(claim, DeviceClaimView) and claim.node else None


def _pod(old: Stored | None, new: Stored | None, pod: PodView, world: World, links: Links) -> Iterator[Key]:
    """Whoever made it; the engines that drain and stop, and the jobs that give way, as their trainer's pod comes; and
    the pools, when it takes or leaves something.
    """
    namespace = pod.key.namespace
    if JOB_LABEL in pod.labels:
        yield job_key(namespace, pod.labels[JOB_LABEL])
        stage_job = world.stage_jobs.get(Key("Job", namespace, pod.owner.name)) if pod.owner else None
        yield from _lenders(stage_job)
        yield from _preempted(stage_job)
    elif ENGINE_LABEL in pod.labels:
        place = (namespace, pod.labels[ENGINE_LABEL])
        yield engine_key(*place)
        yield from links.adapters_on.groups.get(place, {})
        yield from _borrowers(place, links)
    elif PLACEHOLDER_LABEL in pod.labels:
        yield engine_key(namespace, pod.labels[PLACEHOLDER_LABEL])
        return  # it is never on a node, so no pool counts it
    elif SCALE_UP_LABEL in pod.labels:
        yield pool_key(pod.labels[SCALE_UP_LABEL])
        return  # what it has on a node counts as free
    if _takes(old) != _takes(new):
        yield from _all_pools(world)


def _takes(pod: Stored | None) -> object:
    """What of a pod the pools count: where, how much, whether still, and on whose account."""
    if not isinstance(pod, PodView):
        return None
    return pod.node, pod.requests, pod.ended, pod.deleting, pod.bound_at, bool(pod.gates), pod.ready, pod.volume_claims


def _stage_job(
    _old: Stored | None, _new: Stored | None, stage_job: StageJobView, world: World, links: Links
) -> Iterator[Key]:
    """Its FineTuneJob, also when it has left that behind; a claim concerns the pool, the engines that lend to it, and
    claims on the same engines too.
    """
    owner = stage_job.owner.name if stage_job.owner else ""
    job = job_key(stage_job.key.namespace, stage_job.labels.get(JOB_LABEL) or owner)
    yield job
    if stage_job.stage is Stage.PREPARE and job in world.jobs:
        yield from _next_to_prepare(world.jobs[job].spec.resources.pool, world)
    if stage_job.claim is None:
        return
    yield pool_key(stage_job.claim.pool)
    for slot in stage_job.claim.borrowed:
        yield engine_key(slot.namespace, slot.engine)
        yield from _borrowers((slot.namespace, slot.engine), links)
    if job in world.jobs:
        yield pool_key(world.jobs[job].spec.resources.pool)


def _slot(_old: Stored | None, _new: Stored | None, slot: SlotView, _world: World, links: Links) -> Iterator[Key]:
    """Its engine, and who waits for it to be empty."""
    yield engine_key(slot.key.namespace, slot.engine)
    yield from _borrowers((slot.key.namespace, slot.engine), links)


def _claim(old: Stored | None, new: Stored | None, claim: VolumeClaimView, world: World, links: Links) -> Iterator[Key]:
    """The pools of jobs that mount it, the engines that do, and their pools: where they fit may be another question.

    Of engines only if it comes, goes, or is bound: nothing else about it keeps a replica from starting.
    """
    place = (claim.key.namespace, claim.key.name)
    if _volume_of(old) != _volume_of(new):
        yield from _serving_from(place, world, links)
    yield from _pools_of(links.mounting.groups.get(place, {}))


def _volume_of(claim: Stored | None) -> str | None:
    return claim.volume if isinstance(claim, VolumeClaimView) else None


def _serving_from(place: tuple[str, str], world: World, links: Links) -> Iterator[Key]:
    engines = links.serving_from.groups.get(place, {})
    yield from engines
    yield from {pool_key(world.engines[key].spec.resources.pool) for key in engines if key in world.engines}


def _volume(_old: Stored | None, _new: Stored | None, volume: VolumeView, world: World, links: Links) -> Iterator[Key]:
    """The engines and the pools of jobs that mount the claim that is bound to it, and those engines' pools."""
    for claim in links.bound_to.groups.get(volume.key.name, {}).values():
        place = (claim.key.namespace, claim.key.name)
        yield from _serving_from(place, world, links)
        yield from _pools_of(links.mounting.groups.get(place, {}))


def _pools_of(jobs: Mapping[Key, FineTuneJob]) -> Iterator[Key]:
    """The pools of jobs that are not over."""
    return (pool_key(job.spec.resources.pool) for job in jobs.values() if job.status.finished_at is None)


def _waits_to_prepare(job: Stored | None) -> bool:
    return isinstance(job, FineTuneJob) and job.status.summary == Reason.WAITING_TO_PREPARE


def _next_to_prepare(pool: str, world: World) -> Iterator[Key]:
    """Jobs that may prepare their data now that another has begun, ended or gone; one that begins wakes the next."""
    return (key_of(job) for job in next_to_prepare(world, pool))


def _borrowers(place: tuple[str, str], links: Links) -> Iterator[Key]:
    """Jobs with a claim that is not over and borrows from an engine."""
    for stage_job in links.borrowing.groups.get(place, {}).values():
        if stage_job.owner is not None and not stage_job.finished:
            yield job_key(stage_job.key.namespace, stage_job.owner.name)


def _lenders(stage_job: StageJobView | None) -> Iterator[Key]:
    """Engines from which a claim borrows."""
    if stage_job is not None and stage_job.claim is not None:
        for slot in stage_job.claim.borrowed:
            yield engine_key(slot.namespace, slot.engine)


def _preempted(stage_job: StageJobView | None) -> Iterator[Key]:
    """Jobs in whose place a claim comes."""
    if stage_job is not None and stage_job.claim is not None:
        for ref in (ref for place in stage_job.claim.places for ref in place.preempted):
            yield job_key(ref.namespace, ref.job)


def _claimants_on(node: str, world: World) -> Iterator[Key]:
    """Jobs, and the engines that lend to them, with a claim on a node."""
    for stage_job in world.claims_on.get(node, {}).values():
        if stage_job.owner is not None:
            yield job_key(stage_job.key.namespace, stage_job.owner.name)
            yield from _lenders(stage_job)


def _unfinished(jobs: Mapping[Key, FineTuneJob]) -> Iterator[Key]:
    return (key for key, job in jobs.items() if job.status.finished_at is None)


def _all_pools(world: World) -> Iterator[Key]:
    yield from world.pools
    yield pool_key(DEFAULT_POOL)


_ROUTES: Mapping[type, Callable[..., Iterator[Key]]] = {
    FineTuneJob: _job,
    InferenceEngine: _engine,
    Adapter: _adapter,
    GPUPool: _pool,
    NamespaceView: _namespace,
    NodeView: _node,
    PodView: _pod,
    StageJobView: _stage_job,
    SlotView: _slot,
    VolumeClaimView: _claim,
    VolumeView: _volume,
    BudgetView: _budget,
    SliceView: _slice,
    DeviceClaimView: _device_claim,
}
