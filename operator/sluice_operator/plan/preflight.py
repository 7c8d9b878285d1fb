"""Can a claim run? That is checked before a slot drains or training stops for it."""

from collections.abc import Collection, Iterable

from sluice_api.claim import NodeAllocation, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import LiveClaim, Phase, phase_by_pods, trainer_pods
from sluice_operator.facts.fit import need_of, shortage, unreachable_volume, volume_claims_of
from sluice_operator.facts.live_claims import lent_by_index, live_claims_from, live_claims_on
from sluice_operator.facts.nodes import find_pool, node_unusable
from sluice_operator.facts.overlap import borrowers, overlapped_by, precedence
from sluice_operator.facts.slots import floor_of, pod_of, serves, sleeps
from sluice_operator.observe.views import Key, PodView, Resources, StageJobView
from sluice_operator.observe.world import World, engine_key, existing, key_of
from sluice_operator.plan.obstacle import Obstacle, Remedy, shown
from sluice_operator.plan.stock import NodeStock


def phase_of(world: World, live: LiveClaim) -> Phase:
    """How far a claim has come. A claim that is proven is DRAINING, though its pods are still gated."""
    found = phase_by_pods(world, live)
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
    on_nodes = (no for place in claim.places if (no := _obstacle_on(world, live, place, pods[0])))
    return _below_floor(world, live) or next(on_nodes, None)


def _below_floor(world: World, live: LiveClaim) -> Obstacle | None:
    """Why a lender can't spare a claim's slots any more: since the claim was made, others of its replicas have failed,
    or its floor was raised. None if it can, if these slots serve nobody, or if they have been told to drain.
    """
    place = precedence(world, live)
    for engine in _lenders(world, live.claim.borrowed):
        lent = lent_by_index(borrowers(world, live_claims_from(world, engine)), engine)
        mine = {index for index, claim in lent.items() if claim.stage_job.uid == live.stage_job.uid}
        told = any(slot.index in mine and slot.lent_to == live.name for slot in engine.status.slots)
        if told or not any(serves(pod_of(world, engine, index)) for index in mine):
            continue
        # Of the claims on the engine the last ones are given up, and no more of them than needed.
        gone = {index for index, claim in lent.items() if precedence(world, claim) <= place}
        serving = sum(1 for index in existing(world, engine).keys() - gone if serves(pod_of(world, engine, index)))
        if serving < floor_of(engine):
            name = shown(engine.metadata.full_name, live.job)
            floor = floor_of(engine)
            message = f"{name} can't spare what the job borrows: {serving} would serve, its floor is {floor}."
            return Obstacle(Reason.ENGINE_AT_FLOOR, message, ends_with=(key_of(engine),))
    return None


def _lenders(world: World, slots: Iterable[SlotRef]) -> list[InferenceEngine]:
    keys = dict.fromkeys(engine_key(slot.namespace, slot.engine) for slot in slots)
    return [world.engines[key] for key in keys if key in world.engines]


def suspended_by_other(stage_job: StageJobView) -> str:
    """The message for a Job that is suspended. Sluice itself never suspends a Job."""
    return f"Job {stage_job.key.name} was suspended by another controller."


def _obstacle_on(world: World, live: LiveClaim, place: NodeAllocation, pod: PodView) -> Obstacle | None:
    """Why a claim's pods can't run on one of its nodes; None if they can. `pod` stands for all: they are equal."""
    view = world.nodes[Key("Node", "", place.node)]
    if no := node_unusable(view, live.claim.resource, find_pool(world, live.claim.pool)):
        return Obstacle(Reason.UNSCHEDULABLE, f"Node {place.node} is {no}.")
    need = dict(pod.requests) or need_of(live.job.spec.resources)  # a LimitRange may have raised the requests
    others = coming(world, live_claims_on(world, place.node), place.node, live)
    lack = shortage(world, view, need, leaving(world, live), others, place.pods)
    lack = lack or unreachable_volume(world, live.job.metadata.namespace, volume_claims_of(world, live.job), view)
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


def coming(world: World, claims: Iterable[LiveClaim], node: str, mine: LiveClaim | None = None) -> list[Resources]:
    """Requests of claims' pods that will be bound to a node, but are not yet. Pods of the claim `mine` are left out."""
    found = []
    for other in claims:
        place = other.claim.on(node)
        if place is None or (mine is not None and other.stage_job.uid == mine.stage_job.uid):
            continue
        there = sum(1 for pod in trainer_pods(world, other.stage_job) if pod.node == node)
        found += [need_of(other.job.spec.resources)] * max(0, place.pods - there)
    return found


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
    if lack := shortage(world, node.node, need_of(job.spec.resources), leaving, others, pods):
        freed = Remedy(f"make room on {node.name}", key=node.node.key)
        message = f"{node.name} lacks {lack}, though GPUs are there."
        return Obstacle(Reason.UNSCHEDULABLE, message, ends_with=(node.node.key,), remedies=(freed,))
    if why := unreachable_volume(world, job.metadata.namespace, volume_claims_of(world, job), node.node):
        return Obstacle(Reason.UNSCHEDULABLE, f"GPUs are there on {node.name}, but {why}.", ends_with=(node.node.key,))
    return None
