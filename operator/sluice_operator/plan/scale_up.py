"""Nodes before loans: which jobs ask a cluster autoscaler for nodes, until when, and by which pods.

An autoscaler adds a node for a pod that kube-scheduler finds no place for, and sees none behind a gate. So a job that
asks has one such pod, of low priority, for each of its training pods. They hold nothing in the planner's eyes: what one
has on a node counts as free, for any job and any engine. But kube-scheduler sees it as taken. So a pod goes before
somebody is to come to its node, and until then keeps the room from strangers.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool, SharingMode
from sluice_api.meta import scale_up_name
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import World
from sluice_operator.plan.attempts import trainer_pods
from sluice_operator.plan.claims import LiveClaim, Phase, live_claims_on, phase
from sluice_operator.plan.inventory import NodeStock, Stock
from sluice_operator.plan.outcomes import GIVEN_UP, done, recorded
from sluice_operator.plan.podless import PODS_WITHIN
from sluice_operator.plan.room import makes_room

MOST = 10
"""So many jobs of a pool ask at once, the first of the queue."""


@dataclass(frozen=True, slots=True)
class ScaleUp:
    """What is to be done about a pool's scale-up pods."""

    make: tuple[tuple[FineTuneJob, int], ...] = ()
    """Jobs, each with the index of a training pod for which a node is asked."""
    remove: tuple[PodView, ...] = ()
    again_at: datetime | None = None


def asks_until(job: FineTuneJob) -> datetime | None:
    """Until when a job asks for nodes and borrows nothing; None if it does not, or is not prepared yet.

    A claim that was given up, for a quota say, does not begin that time anew.
    """
    terms = job.spec.scheduling.scale_up_first
    if terms is None:
        return None
    outcomes = recorded(job)
    prepared = done(outcomes, Stage.PREPARE)
    if prepared is None:
        return None
    ended = [outcome.ended_at for outcome in outcomes.attempts if outcome.ended_at and outcome.reason not in GIVEN_UP]
    begins = job.spec.scheduling.not_before
    ready = max([*ended, *([begins] if begins else [])], default=prepared.ended_at)
    return ready + timedelta(seconds=terms.wait_seconds) if ready else None


def asks(job: FineTuneJob, now: datetime) -> bool:
    """Whether a job that is ready for GPUs asks for nodes now, and takes free GPUs only."""
    until = asks_until(job)
    return until is not None and now < until


def may_ask(job: FineTuneJob, now: datetime) -> bool:
    """Whether a job asks for nodes now, or will once it is prepared: nodes larger than those that exist may come."""
    until = asks_until(job)
    return job.spec.scheduling.scale_up_first is not None and (until is None or now < until)


def scale_up_refusal(pool: GPUPool, job: FineTuneJob) -> tuple[Reason, str] | None:
    """Why nobody can be asked for nodes of a pool; None when somebody can, or when the job does not ask."""
    if job.spec.scheduling.scale_up_first is None or pool.spec.sharing.mode is not SharingMode.DRA:
        return None
    return Reason.SCALE_UP_NOT_SUPPORTED, (
        f"spec.scheduling.scaleUpFirst: the GPUs of GPUPool {pool.metadata.name} are served by DRA (its spec.sharing), "
        "for which no node can be asked yet. Remove scaleUpFirst, or use a pool whose GPUs a device plugin offers."
    )


def plan_scale_up(world: World, stock: Stock, asking: Collection[FineTuneJob], now: datetime) -> ScaleUp:
    """Keep one pod for each training pod of each job that asks, and none where it would be in somebody's way.

    None is made while an engine's replica is about to start: it would be faster than the replica's own pod.
    """
    wanted = {_key(job, index): (job, index) for job in asking for index in range(job.spec.resources.nodes)}
    mine = [pod for pod in scale_ups_of(world, stock.pool.metadata.name) if not pod.deleting]
    kept_for = {pod.key: _kept_for(world, pod, now) for pod in mine if pod.key not in wanted}
    idle = [pod for pod in mine if _is_spent(stock, pod) or (pod.key not in wanted and not kept_for[pod.key])]
    in_the_way = [pod for node in stock.nodes.values() if _somebody_comes(world, node) for pod in _on(world, node)]
    held = {pod.key for pod in mine}
    lacking = tuple(what for key, what in wanted.items() if key not in held)
    looks = (live.stage_job.created + PODS_WITHIN for claims in kept_for.values() for live in claims)
    return ScaleUp(
        make=() if any(_replica_comes(node) for node in stock.nodes.values()) else lacking,
        remove=tuple({pod.key: pod for pod in (*idle, *in_the_way)}.values()),
        again_at=min((at for at in looks if at > now), default=None),
    )


def scale_ups_of(world: World, pool: str) -> list[PodView]:
    """Pods that ask for nodes of a pool, for jobs that we serve."""
    return [pod for pod in world.scale_ups.get(pool, {}).values() if makes_room(world, pod)]


def _key(job: FineTuneJob, index: int) -> Key:
    return Key("Pod", job.metadata.namespace, scale_up_name(job.metadata.name, job.metadata.uid, index))


def _is_spent(stock: Stock, pod: PodView) -> bool:
    """Whether a pod asks for nothing any more: it has ended, or has a node that takes no training, cordoned say."""
    return pod.ended or (pod.node in stock.nodes and bool(stock.nodes[pod.node].refusal))


def _on(world: World, node: NodeStock) -> Iterator[PodView]:
    """Scale-up pods on a node, of whatever pool."""
    here = world.pods_on.get(node.name, {}).values()
    return (pod for pod in here if makes_room(world, pod) and not pod.deleting)


def _kept_for(world: World, pod: PodView, now: datetime) -> list[LiveClaim]:
    """The claims on a pod's node whose pods are still gated: until they are bound it keeps the room from strangers."""
    claims = live_claims_on(world, pod.node) if pod.node else []
    return [live for live in claims if phase(world, live) is Phase.PROVING and _has_its_pods(world, live, now)]


def _has_its_pods(world: World, live: LiveClaim, now: datetime) -> bool:
    """Whether a claim's pods are there, or about to be."""
    there = len(trainer_pods(world, live.stage_job)) >= len(live.claim.nodes)
    return there or now < live.stage_job.created + PODS_WITHIN


def _somebody_comes(world: World, node: NodeStock) -> bool:
    """Whether a trainer is nominated to a node, or a replica is about to start there."""
    return _replica_comes(node) or any(phase(world, live) is Phase.BINDING for live in node.claims)


def _replica_comes(node: NodeStock) -> bool:
    """Whether there is room on a node for a replica whose pod is not there yet."""
    return any(slot.pod is None for slot in node.slots)
