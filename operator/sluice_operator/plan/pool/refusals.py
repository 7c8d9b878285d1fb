"""What is wrong with a job before it takes anything? Each check names the field, its value and a remedy.

No refusal is final: the job waits, and goes on when what was missing is there.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from itertools import islice

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, SharingMode
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import JOB_LABEL
from sluice_api.reasons import Reason
from sluice_api.sources import volume_path
from sluice_operator.facts.fit import missing_volume_claim, need_of, volume_claims_of
from sluice_operator.facts.nodes import find_pool, nodes_of
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, adapter_key, engine_key, key_of, pool_key
from sluice_operator.plan.colocation import guest_refusal, sharing_refusal
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.pool.reservations import alike
from sluice_operator.plan.pool_size import node_changes, size_obstacle
from sluice_operator.plan.quotas import not_allowed, outranks, quota_of
from sluice_operator.plan.readiness import may_ask


def scale_up_refusal(pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why no node can be asked for in this pool; None when one can, or when the job does not ask."""
    if job.spec.scheduling.scale_up_first is None or pool.spec.sharing.mode is not SharingMode.DRA:
        return None
    return Obstacle(
        Reason.SCALE_UP_NOT_SUPPORTED,
        f"spec.scheduling.scaleUpFirst: the GPUs of GPUPool {pool.metadata.name} are served by DRA (its spec.sharing), "
        "for which no node can be asked yet. Remove scaleUpFirst, or use a pool whose GPUs a device plugin offers.",
        ends_with=(key_of(pool),),
    )


def denial(world: World, pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why a pool never serves a job with this spec, however many GPUs are free; None when it does."""
    namespace, priority = job.metadata.namespace, job.spec.scheduling.priority
    return (
        not_allowed(world, pool, namespace)
        or outranks(world, pool, namespace, "spec.scheduling.priority", priority)
        or _never_within_quota(world, pool, job)
        or sharing_refusal(pool, job)
        or guest_refusal(world, pool, job)
    )


def _never_within_quota(world: World, pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why a job asks for more than its namespace may ever have; None if it does not."""
    quota, asked = quota_of(world, pool, job.metadata.namespace), job.spec.resources.all_gpus
    for field, most in (("maxGPUs", quota.max_gpus), ("maxTotalGPUs", quota.max_total_gpus)):
        if most is not None and asked > most:
            return Obstacle(
                Reason.NAMESPACE_QUOTA,
                f"spec.resources.gpus: {asked} are asked for, GPUPool {pool.metadata.name} allows namespace "
                f"{job.metadata.namespace} {most} at once. Ask for fewer, or raise {field} in the pool's spec.quotas.",
                ends_with=(key_of(pool),),
            )
    return None


_SIZE = frozenset({Reason.NO_NODES, Reason.EXCEEDS_EVERY_NODE, Reason.EXCEEDS_POOL})
"""Refusals that a larger node, or one node more, would end."""


def refusal(world: World, job: FineTuneJob, *, nodes_may_come: bool = False) -> Obstacle | None:
    """The first thing that keeps a job from being started; None if nothing does.

    All checks but `name_taken` give the same answer for jobs that are alike, so they run once for each kind of job.

    Args:
        nodes_may_come: do not refuse the job because it is larger than what exists.
    """
    refused = _of_all_alike(world, job, nodes_may_come)
    return refused or name_taken(world, job)


@once_a_world(lambda world, job, nodes_may_come: (alike(world, job), nodes_may_come))
def _of_all_alike(world: World, job: FineTuneJob, nodes_may_come: bool) -> Obstacle | None:
    checks = (check for check in CHECKS if not (nodes_may_come and check is _fits_some_node))
    return next((found for check in checks if (found := check(world, job))), None)


def refusal_at(world: World, job: FineTuneJob, now: datetime) -> Obstacle | None:
    """`refusal` at a moment: while a job may ask for nodes, its size is no reason, since larger nodes may come."""
    found = refusal(world, job, nodes_may_come=may_ask(job, now))
    terms = job.spec.scheduling.scale_up_first
    if found is None or terms is None or found.reason not in _SIZE:
        return found
    none = f"None came within {terms.wait_seconds} s (spec.scheduling.scaleUpFirst)."
    return replace(found, message=f"{found.message} {none}")


def _volume_claims_exist(world: World, job: FineTuneJob) -> Obstacle | None:
    namespace = job.metadata.namespace
    for field, uri in job.spec.addresses.items():
        if missing := missing_volume_claim(world, namespace, uri):
            return Obstacle(
                Reason.VOLUME_CLAIM_NOT_FOUND, f"spec.{field}: {missing}", ends_with=_volume_claim_of(namespace, uri)
            )
    return None


def _pool_exists(world: World, job: FineTuneJob) -> Obstacle | None:
    name = job.spec.resources.pool
    if find_pool(world, name) is None:
        known = ", ".join(sorted(key.name for key in world.pools)) or "default"
        return Obstacle(
            Reason.POOL_NOT_FOUND,
            (f"spec.resources.pool: there is no GPUPool {name}. There are: {known}. Create it, or use one of these."),
            ends_with=(pool_key(name),),
        )
    return None


def _pool_serves_it(world: World, job: FineTuneJob) -> Obstacle | None:
    pool = find_pool(world, job.spec.resources.pool)
    return (denial(world, pool, job) or scale_up_refusal(pool, job)) if pool else None


def _fits_some_node(world: World, job: FineTuneJob) -> Obstacle | None:
    pool, wanted = find_pool(world, job.spec.resources.pool), job.spec.resources
    need, claims = need_of(wanted), volume_claims_of(world, job)
    return size_obstacle(world, pool, wanted.gpus, need, job.metadata.namespace, claims, wanted.nodes) if pool else None


def _engine_takes_it(world: World, job: FineTuneJob) -> Obstacle | None:
    if job.spec.publish is None:
        return None
    name = job.spec.publish.engine
    engine = world.engines.get(engine_key(job.metadata.namespace, name))
    if engine is None:
        return Obstacle(
            Reason.ENGINE_NOT_FOUND,
            (f"spec.publish.engine: there is no InferenceEngine {name} in namespace {job.metadata.namespace}."),
            ends_with=(engine_key(job.metadata.namespace, name),),
        )
    return _engine_fits(engine, job)


def _engine_fits(engine: InferenceEngine, job: FineTuneJob) -> Obstacle | None:
    name, lora = engine.metadata.name, engine.spec.lora
    if lora is None:
        return Obstacle(
            Reason.ENGINE_TAKES_NO_ADAPTERS,
            f"Engine {name} has no spec.lora; set it to serve adapters.",
            ends_with=(engine_key(job.metadata.namespace, name),),
        )
    if job.spec.lora.rank > lora.max_rank:
        return Obstacle(
            Reason.RANK_TOO_LARGE,
            f"spec.lora.rank: {job.spec.lora.rank} is above lora.maxRank {lora.max_rank} of engine {name}. "
            "Lower the rank, or raise the engine's maxRank.",
            ends_with=(engine_key(job.metadata.namespace, name),),
        )
    if engine.spec.model.uri != job.spec.model.uri:
        return Obstacle(
            Reason.BASE_MODEL_DIFFERS,
            (f"spec.model.uri: {job.spec.model.uri} is not the model of engine {name}, {engine.spec.model.uri}."),
            ends_with=(engine_key(job.metadata.namespace, name),),
        )
    output = volume_path(job.spec.output.uri)
    if output and output.claim not in lora.volume_claims:
        return Obstacle(
            Reason.ADAPTER_SOURCE_NOT_MOUNTED,
            f"spec.output.uri: engine {name} does not mount volume claim {output.claim}. Add it to the engine's "
            "lora.volumeClaims, or write to one that it mounts.",
            ends_with=(engine_key(job.metadata.namespace, name),),
        )
    if output is None and job.spec.output.credentials and lora.credentials is None:
        return Obstacle(
            Reason.ADAPTER_SOURCE_NOT_MOUNTED,
            f"spec.output.uri: engine {name} has no lora.credentials, and {job.spec.output.uri} is opened by some. Set "
            "them to a Secret that may read there.",
            ends_with=(engine_key(job.metadata.namespace, name),),
        )
    return None


def _claims_shareable(world: World, job: FineTuneJob) -> Obstacle | None:
    """A ReadWriteOnce volume claim can't be read on another node, by an engine or the job's other pods."""
    output = volume_path(job.spec.output.uri)
    if output is None or (job.spec.publish is None and job.spec.resources.nodes == 1):
        return None
    claim = world.volume_claims.get(Key("PersistentVolumeClaim", job.metadata.namespace, output.claim))
    pool = find_pool(world, job.spec.resources.pool)
    if claim is None or pool is None or len(list(islice(nodes_of(world, pool), 2))) < 2:  # one node: all can mount it
        return None
    who = "trainer and engine" if job.spec.publish else "its training pods"
    if claim.access_modes and set(claim.access_modes) <= {"ReadWriteOnce", "ReadWriteOncePod"}:
        return Obstacle(
            Reason.VOLUME_CLAIM_NOT_SHAREABLE,
            f"spec.output.uri: volume claim {output.claim} is {', '.join(claim.access_modes)}, but {who} may be "
            "on two nodes. Use a ReadWriteMany volume claim.",
            ends_with=(claim.key, *node_changes(pool)),
        )
    return None


CHECKS: tuple[Callable[[World, FineTuneJob], Obstacle | None], ...] = (
    _volume_claims_exist,
    _pool_exists,
    _pool_serves_it,
    _fits_some_node,
    _engine_takes_it,
    _claims_shareable,
)
"""In this order; the first obstacle counts."""


def begins_with(job: FineTuneJob, *, in_pause: bool) -> tuple[Key, ...]:
    """Objects whose change may bring a refusal to a job that waits and has none.

    Args:
        in_pause: the job is not in the queue. The pool's decision tells those in the queue of all but the engine.
    """
    namespace, publish = job.metadata.namespace, job.spec.publish
    engine = (engine_key(namespace, publish.engine),) if publish else ()
    if not in_pause:
        return engine
    claims = (key for uri in job.spec.addresses.values() for key in _volume_claim_of(namespace, uri))
    adapter = (adapter_key(namespace, publish.name),) if publish else ()
    others = (Key("Node", "", ""), Key("PersistentVolume", "", ""), Key("Namespace", "", namespace))
    return (*engine, *adapter, *dict.fromkeys(claims), *others)


def _volume_claim_of(namespace: str, uri: str) -> tuple[Key, ...]:
    path = volume_path(uri)
    return (Key("PersistentVolumeClaim", namespace, path.claim),) if path else ()


def name_taken(world: World, job: FineTuneJob) -> Obstacle | None:
    """Why a job may not write its Adapter; None when it may, or publishes nothing.

    It may write an Adapter that does not exist, that a job of its name has written (itself, or a deleted one before
    it), or that `spec.publish.replace` gives to it. It may never take one of another engine, as an Adapter's engine
    can't change.
    """
    publish = job.spec.publish
    there = world.adapters.get(adapter_key(job.metadata.namespace, publish.name)) if publish else None
    if publish is None or there is None:
        return None
    maker = there.metadata.labels.get(JOB_LABEL)
    if there.spec.engine != publish.engine:
        why = (
            f"is one of engine {there.spec.engine}, and an Adapter's engine cannot be changed. Delete it, or publish "
            "under another name."
        )
    elif publish.replace or maker == job.metadata.name:
        return None
    else:
        whose = f"was written by FineTuneJob {maker}" if maker else "was not written by a job"
        why = f"is there already, and {whose}. Set spec.publish.replace: true to replace it, or delete it."
    return Obstacle(Reason.NAME_TAKEN, f"spec.publish.name: Adapter {publish.name} {why}", ends_with=(key_of(there),))
