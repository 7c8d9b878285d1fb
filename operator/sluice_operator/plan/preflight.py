"""Can a claim run? That is checked before a slot drains or training stops for it.

Jobs and replicas whose pods are overdue are found here too: a ResourceQuota may be the cause, and our own scale-up pods
count against it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from sluice_api.claim import NodeAllocation
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine, SlotState
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import LiveClaim, Phase, has_its_nodes, job_of, owner_of, phase, trainer_pods
from sluice_operator.facts.fit import need_of, shortage, unreachable_volume, volume_claims_of
from sluice_operator.facts.liveness import is_live, live_claims_on, overlapped_by
from sluice_operator.facts.nodes import find_pool, refusal
from sluice_operator.facts.slots import pod_of, sleeps
from sluice_operator.observe.fence import each
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.views import Key, PodView, Resources, StageJobView
from sluice_operator.observe.world import World, engine_key, identity
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.stock import NodeStock


def phase_of(world: World, live: LiveClaim) -> Phase:
    """How far a claim has come. A claim that is proven is DRAINING, though its pods are still gated."""
    found = phase(world, live)
    if found is Phase.PROVING and preflight_obstacle(world, live) is None:
        return Phase.DRAINING
    return found


def preflight_obstacle(world: World, live: LiveClaim) -> Obstacle | None:
    """Why a claim is not proven to be runnable yet; None if it is.

    A claim is proven when no other controller has suspended its Job, it has come back through the watch, and no older
    claim overlaps it. Its pods must exist (quota, admission and Pod Security have passed), and must fit their nodes in
    everything once the borrowed slots are gone.
    """
    if live.stage_job.suspended:
        return Obstacle(Reason.SUSPENDED_BY_OTHER, suspended_by_other(live.stage_job))
    other = overlapped_by(world, live)
    if other is not None:
        return Obstacle(Reason.CLAIMED, f"The claim gives way to {other.name}, which had the GPUs first.")
    pods, claim = trainer_pods(world, live.stage_job), live.claim
    if not live.stage_job.seen or len(pods) < len(claim.nodes):
        what = "its pod is" if len(claim.nodes) == 1 else "its pods are"
        message = f"{claim.all_gpus} GPU on {claim.summary} is set aside; {what} about to be made."
        return Obstacle(Reason.CLAIMED, message)
    return next((no for place in claim.places if (no := _obstacle_on(world, live, place, pods[0]))), None)


def suspended_by_other(stage_job: StageJobView) -> str:
    """The message for a Job that is suspended. Sluice itself never suspends a Job."""
    return f"Job {stage_job.key.name} was suspended by another controller."


def _obstacle_on(world: World, live: LiveClaim, place: NodeAllocation, pod: PodView) -> Obstacle | None:
    """Why a claim's pods can't run on one of its nodes; None if they can. `pod` stands for all: they are equal."""
    view = world.nodes[Key("Node", "", place.node)]
    if no := refusal(view, live.claim.resource, find_pool(world, live.claim.pool)):
        return Obstacle(Reason.UNSCHEDULABLE, f"Node {place.node} is {no}.")
    need = dict(pod.requests) or need_of(live.job.spec.resources)  # a LimitRange may have raised the requests
    others = coming(world, live_claims_on(world, place.node), place.node, live)
    lack = shortage(world, view, need, leaving(world, live), others, place.pods)
    lack = lack or unreachable_volume(world, live.job.metadata.namespace, volume_claims_of(live.job), view)
    if not lack:
        return None
    message = f"The pod does not fit {place.node} though GPUs are there: {lack}."
    return Obstacle(Reason.UNSCHEDULABLE, message, ends_with=(view.key,))


def leaving(world: World, live: LiveClaim) -> Collection[Key]:
    """Pods that take no room from a claim: of its borrowed slots and preempted attempts, and its own.

    A pod of a slot that sleeps is left out: it stays on its node.
    """
    found = {pod.key for pod in trainer_pods(world, live.stage_job)}
    refs = (ref for place in live.claim.places for ref in place.preempted)
    found.update(key for ref in refs for key in world.pods_of.get((ref.namespace, ref.uid), {}))
    for slot in live.claim.borrowed:
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        pod = pod_of(world, engine, slot.index) if engine else None
        if pod is not None and engine and not sleeps(engine):
            found.add(pod.key)
    return found


def coming(world: World, claims: Iterable[LiveClaim], node: str, mine: LiveClaim | None = None) -> list[dict[str, int]]:
    """Requests of claims' pods that will be bound to a node, but are not yet. Pods of the claim `mine` are left out."""
    found = []
    for other in claims:
        place = other.claim.on(node)
        if place is None or (mine is not None and other.stage_job.uid == mine.stage_job.uid):
            continue
        there = sum(1 for pod in trainer_pods(world, other.stage_job) if pod.node == node)
        found += [need_of(other.job.spec.resources)] * max(0, place.pods - there)
    return found


PODS_WITHIN = timedelta(seconds=5)
"""How long a Job may lack its pods before they are overdue. A Deployment has as long, though it takes one step more."""


def starts_until(engine: InferenceEngine, index: int, pod: PodView | None, now: datetime) -> datetime:
    """When a starting slot's next step is overdue: the pod if it has none, else the pod's node.

    The time counts from when the engine's status first said that the slot starts without a pod, or with this pod.
    """
    name = pod.key.name if pod else ""
    starts = (slot for slot in engine.status.slots if slot.index == index and slot.state is SlotState.STARTING)
    since = next((slot.since for slot in starts if slot.pod == name), None)
    return (since or now) + PODS_WITHIN


def replica_due(world: World, engine: InferenceEngine, index: int, now: datetime) -> datetime:
    """When a starting slot's next step is overdue (`starts_until`), with the pod that it has now."""
    return starts_until(engine, index, pod_of(world, engine, index), now)


def namespace_missing_pods(world: World, namespace: str, now: datetime) -> str:
    """The first job or slot of a namespace that has an overdue pod; empty if there is none."""
    due = pods_due(world).get(namespace)
    return due[1] if due and due[0] <= now else ""


@once_a_world(lambda _world: None)
def pods_due(world: World) -> Mapping[str, tuple[datetime, str]]:
    """By namespace: when the first missing pod is overdue, and the job or slot that lacks it."""
    found: dict[str, tuple[datetime, str]] = {}
    for namespace, name, since in (*_claims(world), *_slots(world)):
        due = (since + PODS_WITHIN, name)
        found[namespace] = min(found.get(namespace, due), due)
    return found


def _claims(world: World) -> Iterator[tuple[str, str, datetime]]:
    """Training Jobs with a live claim that lack pods: namespace, job's name and the Job's creation time."""

    def look(stage_job: StageJobView) -> tuple[str, str, datetime] | None:
        job = owner_of(world, stage_job) if _lacks_pods(world, stage_job) else None
        lacks = job is not None and is_live(world, job, stage_job) and not has_its_nodes(world, stage_job)
        return (stage_job.key.namespace, job.metadata.name, stage_job.created) if job and lacks else None

    yield from (found for found in each(world.claiming.values(), job_of, look) if found)


def _lacks_pods(world: World, stage_job: StageJobView) -> bool:
    pods = world.pods_of.get(identity(stage_job), ())
    asks = not (stage_job.finished or stage_job.suspended)  # a suspended Job has no pods
    return asks and stage_job.claim is not None and len(pods) < len(stage_job.claim.nodes)


def _slots(world: World) -> Iterator[tuple[str, str, datetime]]:
    """Slots without a pod that start by their engine's status: namespace, slot and since when."""
    for engine in world.engines.values():
        for slot in engine.status.slots:
            starts = slot.state is SlotState.STARTING and not slot.pod
            if starts and slot.since and pod_of(world, engine, slot.index) is None:
                yield engine.metadata.namespace, f"{engine.metadata.name}/{slot.index}", slot.since


def lack_on(
    world: World,
    node: NodeStock,
    job: FineTuneJob,
    leaving: Collection[Key],
    pods: int = 1,
    kept: Resources | None = None,
) -> Obstacle | None:
    """Why a number of a job's pods would not fit a node, though it has GPUs for them; None if they would.

    Args:
        leaving: pods that will be gone by then.
        kept: what must be left for other jobs.
    """
    others = [*coming(world, node.claims, node.name), kept or {}]
    lack = shortage(world, node.node, need_of(job.spec.resources), leaving, others, pods)
    lack = lack or unreachable_volume(world, job.metadata.namespace, volume_claims_of(job), node.node)
    if not lack:
        return None
    freed = Remedy(f"make room on {node.name}, or lower what the job asks for", key=node.node.key)
    message = f"{node.name} lacks {lack}, though GPUs are there."
    return Obstacle(Reason.UNSCHEDULABLE, message, ends_with=(node.node.key,), remedies=(freed,))
