"""Proof that a claim can run, before anybody is disturbed for it."""

from collections.abc import Collection, Iterable

from sluice_api.meta import SCHEDULING_GATE
from sluice_api.reasons import Reason
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, engine_key
from sluice_operator.plan.claims import LiveClaim, Phase, live_claims_on, overlapped_by, phase, trainer_pods
from sluice_operator.plan.pools import refusal
from sluice_operator.plan.room import claims_of_job, need_of, shortage, unreachable_volume
from sluice_operator.plan.slots import pod_of


def phase_of(world: World, live: LiveClaim) -> Phase:
    """How far a claim has come: a gated one drains as soon as it is proven."""
    found = phase(world, live)
    if found is Phase.PROVING and doubt(world, live) is None:
        return Phase.DRAINING
    return found


def doubt(world: World, live: LiveClaim) -> tuple[Reason, str] | None:
    """Why a claim is not proven to be runnable yet; None when it is.

    Proven: nobody has suspended the Job, the claim has come back through the watch, no older claim
    overlaps it, its pods exist (quota, admission and Pod Security have passed) and fit the node for
    every reason, once the borrowed slots are gone.
    """
    node = live.claim.node
    if live.stage_job.suspended:
        return Reason.SUSPENDED_BY_OTHER, f"Job {live.stage_job.key.name} was suspended by another controller."
    other = overlapped_by(world, live)
    if other is not None:
        return Reason.CLAIMED, f"The claim gives way to {other.name}, which had the GPUs first."
    pods = trainer_pods(world, live.stage_job)
    if not live.stage_job.seen or not pods:
        return Reason.CLAIMED, f"{live.claim.gpus} GPU on {node} is set aside; its pod is about to be made."
    view = world.nodes[Key("Node", "", node)]
    if no := refusal(view, live.claim.resource):
        return Reason.UNSCHEDULABLE, f"Node {node} is {no}."
    need = dict(pods[0].requests) or need_of(live.job.spec.resources)
    lack = shortage(world, view, need, leaving(world, live), coming(world, live_claims_on(world, node), node, live))
    lack = lack or unreachable_volume(world, live.job.metadata.namespace, claims_of_job(live.job), view)
    if lack:
        return Reason.UNSCHEDULABLE, f"The pod does not fit {node} though GPUs are there: {lack}."
    return None


def leaving(world: World, live: LiveClaim) -> Collection[Key]:
    """Pods that make room for a claim: of its borrowed slots and displaced attempts. Its own are the ones that ask."""
    found = {pod.key for pod in trainer_pods(world, live.stage_job)}
    found.update(key for ref in live.claim.displaced for key in world.pods_of.get(ref.uid, {}))
    for slot in live.claim.borrowed:
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        pod = pod_of(world, engine, slot.index) if engine else None
        if pod is not None:
            found.add(pod.key)
    return found


def coming(world: World, claims: Iterable[LiveClaim], node: str, mine: LiveClaim | None = None) -> list[dict[str, int]]:
    """Requests of claims' pods that will be bound to a node, but are not yet; mine left out."""
    return [
        need_of(other.job.spec.resources)
        for other in claims
        if other.claim.node == node
        and (mine is None or other.stage_job.uid != mine.stage_job.uid)
        and not any(pod.node for pod in trainer_pods(world, other.stage_job))
    ]


def is_gated(gates: Collection[str]) -> bool:
    """Whether our gate is still on a pod."""
    return SCHEDULING_GATE in gates
