"""Proof that a claim can run, before anybody is disturbed for it."""

from collections.abc import Collection, Iterable

from sluice_api.claim import Place
from sluice_api.meta import SCHEDULING_GATE
from sluice_api.reasons import Reason
from sluice_operator.observe.views import Key, PodView, StageJobView
from sluice_operator.observe.world import World, engine_key
from sluice_operator.plan.facts.attempts import trainer_pods
from sluice_operator.plan.facts.claims import LiveClaim, Phase, live_claims_on, overlapped_by, phase
from sluice_operator.plan.facts.pools import find_pool, refusal
from sluice_operator.plan.facts.room import claims_of_job, need_of, shortage, unreachable_volume
from sluice_operator.plan.facts.slots import pod_of, sleeps
from sluice_operator.plan.obstacle import Obstacle


def phase_of(world: World, live: LiveClaim) -> Phase:
    """How far a claim has come: a gated one drains as soon as it is proven."""
    found = phase(world, live)
    if found is Phase.PROVING and doubt(world, live) is None:
        return Phase.DRAINING
    return found


def doubt(world: World, live: LiveClaim) -> Obstacle | None:
    """Why a claim is not proven to be runnable yet; None when it is.

    Proven: nobody has suspended the Job, the claim has come back through the watch, no older claim
    overlaps it, its pods exist (quota, admission and Pod Security have passed) and fit the node for
    every reason, once the borrowed slots are gone.
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
    return next((no for place in claim.places if (no := _doubt_on(world, live, place, pods[0]))), None)


def suspended_by_other(stage_job: StageJobView) -> str:
    """What to say of a Job that somebody has suspended: Sluice never does."""
    return f"Job {stage_job.key.name} was suspended by another controller."


def _doubt_on(world: World, live: LiveClaim, place: Place, pod: PodView) -> Obstacle | None:
    """Why a claim's pods, which are all like one, may not run on a node of it."""
    view = world.nodes[Key("Node", "", place.node)]
    if no := refusal(view, live.claim.resource, find_pool(world, live.claim.pool)):
        return Obstacle(Reason.UNSCHEDULABLE, f"Node {place.node} is {no}.")
    need = dict(pod.requests) or need_of(live.job.spec.resources)
    others = coming(world, live_claims_on(world, place.node), place.node, live)
    lack = shortage(world, view, need, leaving(world, live), others, place.pods)
    lack = lack or unreachable_volume(world, live.job.metadata.namespace, claims_of_job(live.job), view)
    if not lack:
        return None
    message = f"The pod does not fit {place.node} though GPUs are there: {lack}."
    return Obstacle(Reason.UNSCHEDULABLE, message, ends_with=(view.key,))


def leaving(world: World, live: LiveClaim) -> Collection[Key]:
    """Pods that make room for a claim: of its borrowed slots and displaced attempts. Its own are the ones that ask."""
    found = {pod.key for pod in trainer_pods(world, live.stage_job)}
    refs = (ref for place in live.claim.places for ref in place.displaced)
    found.update(key for ref in refs for key in world.pods_of.get((ref.namespace, ref.uid), {}))
    for slot in live.claim.borrowed:
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        pod = pod_of(world, engine, slot.index) if engine else None
        if pod is not None and engine and not sleeps(engine):
            found.add(pod.key)
    return found


def coming(world: World, claims: Iterable[LiveClaim], node: str, mine: LiveClaim | None = None) -> list[dict[str, int]]:
    """Requests of claims' pods that will be bound to a node, but are not yet; mine left out."""
    found = []
    for other in claims:
        place = other.claim.on(node)
        if place is None or (mine is not None and other.stage_job.uid == mine.stage_job.uid):
            continue
        there = sum(1 for pod in trainer_pods(world, other.stage_job) if pod.node == node)
        found += [need_of(other.job.spec.resources)] * max(0, place.pods - there)
    return found


def is_gated(pod: PodView) -> bool:
    """Whether our gate is still on a pod."""
    return SCHEDULING_GATE in pod.gates
