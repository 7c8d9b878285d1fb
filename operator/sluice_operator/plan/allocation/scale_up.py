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
from sluice_api.meta import SCALE_UP_LABEL, scale_up_name
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.allocation.inventory import NodeStock, Stock
from sluice_operator.plan.facts.claims import Phase, live_claims_on, phase
from sluice_operator.plan.facts.outcomes import done, recorded, waits_since
from sluice_operator.plan.facts.podless import pods_due, starts_until, starved
from sluice_operator.plan.facts.refused import FIRST_PAUSE
from sluice_operator.plan.facts.room import asks_for_node
from sluice_operator.plan.facts.slots import pod_of
from sluice_operator.plan.fence import looking_at
from sluice_operator.plan.obstacle import Obstacle

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
    ready = waits_since(job) if done(recorded(job), Stage.PREPARE) else None
    return ready + timedelta(seconds=terms.wait_seconds) if ready else None


def asks(job: FineTuneJob, now: datetime) -> bool:
    """Whether a job that is ready for GPUs asks for nodes now, and takes free GPUs only."""
    until = asks_until(job)
    return until is not None and now < until


def may_ask(job: FineTuneJob, now: datetime) -> bool:
    """Whether a job asks for nodes now, or will once it is prepared: nodes larger than those that exist may come."""
    until = asks_until(job)
    return job.spec.scheduling.scale_up_first is not None and (until is None or now < until)


def scale_up_refusal(pool: GPUPool, job: FineTuneJob) -> Obstacle | None:
    """Why nobody can be asked for nodes of a pool; None when somebody can, or when the job does not ask."""
    if job.spec.scheduling.scale_up_first is None or pool.spec.sharing.mode is not SharingMode.DRA:
        return None
    return Obstacle(
        Reason.SCALE_UP_NOT_SUPPORTED,
        f"spec.scheduling.scaleUpFirst: the GPUs of GPUPool {pool.metadata.name} are served by DRA (its spec.sharing), "
        "for which no node can be asked yet. Remove scaleUpFirst, or use a pool whose GPUs a device plugin offers.",
        ends_with=(key_of(pool),),
    )


def plan_scale_up(world: World, stock: Stock, asking: Collection[FineTuneJob], now: datetime) -> ScaleUp:
    """Keep one pod for each training pod of each job that asks, and none where it would be in somebody's way.

    None, of whatever pool, where somebody of its namespace lacks a pod: a quota that counts both may be why. And none
    is made while an engine's replica is about to start: it would be faster than the replica's own pod.
    """
    known = [pod for pool in world.scale_ups for pod in scale_ups_of(world, pool)]
    pods = [pod for pod in known if not pod.deleting]
    namespaces = {*(job.metadata.namespace for job in asking), *(pod.key.namespace for pod in pods)}
    hungry = {namespace for namespace in namespaces if starved(world, namespace, now)}
    able = [job for job in asking if job.metadata.namespace not in hungry]
    wanted = {_key(job, index): (job, index) for job in able for index in range(job.spec.resources.nodes)}
    mine = {pod.key: pod for pod in pods if pod.labels[SCALE_UP_LABEL] == stock.pool.metadata.name}
    spent = [pod for pod in mine.values() if _is_spent(stock, pod)]
    idle = [pod for key, pod in mine.items() if key not in wanted and not _keeps_room(world, pod)]
    in_the_way = [pod for pod in pods if pod.key.namespace in hungry or _is_in_the_way(world, stock, pod, now)]
    taken = {*mine, *(pod.key for pod in known if pod.deleting)}  # a finalizer may keep one, and with it its name
    lacking = tuple(what for key, what in wanted.items() if key not in taken)
    coming = [until for node in stock.nodes.values() for until in _replicas_come(world, node, now)] if lacking else []
    made_by = [now + FIRST_PAUSE] if lacking and not coming else []  # one that could not be made is asked for again
    looks = [*coming, *(due[0] for namespace in namespaces if (due := pods_due(world).get(namespace)))]
    return ScaleUp(
        make=() if coming else lacking,
        remove=tuple({pod.key: pod for pod in (*spent, *idle, *in_the_way)}.values()),
        again_at=min((at for at in (*looks, *made_by) if at > now), default=None),
    )


def scale_ups_of(world: World, pool: str) -> list[PodView]:
    """Pods that ask for nodes of a pool, for jobs that we serve. Others may have given one a finalizer, or a grace."""
    return [pod for pod in world.scale_ups.get(pool, {}).values() if asks_for_node(world, pod)]


def _key(job: FineTuneJob, index: int) -> Key:
    return Key("Pod", job.metadata.namespace, scale_up_name(job.metadata.name, job.metadata.uid, index))


def _is_spent(stock: Stock, pod: PodView) -> bool:
    """Whether a pod asks for nothing any more: it has ended, or has a node that takes no training, cordoned say.

    Or it has a node and somebody's finalizer: there it would hold what its own job waits for until it is gone.
    """
    if pod.ended or (pod.node and not pod.goes_at_once):
        return True
    return pod.node in stock.nodes and bool(stock.nodes[pod.node].refusal)


def _keeps_room(world: World, pod: PodView) -> bool:
    """Whether a pod is on the node of a claim whose pods are still gated: until they are bound, strangers stay out."""
    claims = live_claims_on(world, pod.node) if pod.node else []
    return any(phase(world, live) is Phase.PROVING for live in claims)


def _is_in_the_way(world: World, stock: Stock, pod: PodView, now: datetime) -> bool:
    """Whether a trainer is nominated to a pod's node, or a replica is about to start there."""
    node = stock.nodes.get(pod.node)
    if node is None:
        return False
    return any(phase(world, live) is Phase.BINDING for live in node.claims) or any(_replicas_come(world, node, now))


def _replicas_come(world: World, node: NodeStock, now: datetime) -> Iterator[datetime]:
    """Until when each replica is waited for that has room on a node and is not bound to it yet.

    One that has not come by then is kept away by something else than our pods.
    """
    for slot in node.slots:
        if slot.pod is None:
            with looking_at(key_of(slot.engine)):
                pod = pod_of(world, slot.engine, slot.slot.index)
                until = starts_until(slot.engine, slot.slot.index, pod, now)
            if now < until:
                yield until
