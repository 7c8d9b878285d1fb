"""Which jobs ask a cluster autoscaler for nodes before they borrow, until when, and by which pods?

An autoscaler adds a node for a pod for which kube-scheduler finds no place. It does not see a pod behind a gate. So a
job that asks gets one scale-up pod of low priority for each of its training pods.

In the planner's count a scale-up pod holds nothing: its GPUs are free for any job and any engine. kube-scheduler counts
them as taken. So the pod keeps strangers out, and is removed before another pod is sent to its node.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import SCALE_UP_LABEL, scale_up_name
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import Phase, phase_by_pods
from sluice_operator.facts.fit import asks_for_node
from sluice_operator.facts.live_claims import live_claims_on
from sluice_operator.facts.retries import FIRST_PAUSE
from sluice_operator.observe.fence import looking_at
from sluice_operator.observe.views import Key, PodView
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.missing_pods import namespace_missing_pods, pods_due, replica_due
from sluice_operator.plan.obstacle import Obstacle, Remedy
from sluice_operator.plan.readiness import asks_until
from sluice_operator.plan.stock import NodeStock, Stock


def asking_obstacle(world: World, job: FineTuneJob, now: datetime) -> Obstacle | None:
    """Why a job may take free GPUs only: it asks for nodes first. None if it does not."""
    until = asks_until(job)
    if until is None or until <= now:
        return None
    lacking = namespace_missing_pods(world, job.metadata.namespace, now)
    none = f"asks for no nodes while {lacking} has no pod, as a quota may count both, and"
    borrows = f"borrows nothing until {until:%Y-%m-%d %H:%M:%S} UTC (scheduling.scaleUpFirst)."
    message = f"It {none if lacking else 'asks for nodes and'} {borrows}"
    return Obstacle(Reason.SCALING_UP, message, until, remedies=(Remedy("a node is added"),))


@dataclass(frozen=True, slots=True)
class ScaleUp:
    """What to do about a pool's scale-up pods."""

    make: tuple[tuple[FineTuneJob, int], ...] = ()
    """Pods to make: each a job and the index of the training pod for which a node is asked."""
    remove: tuple[PodView, ...] = ()
    again_at: datetime | None = None
    """When to look again although nothing has changed."""


def plan_scale_up(world: World, stock: Stock, asking: Collection[FineTuneJob], now: datetime) -> ScaleUp:
    """Keep one scale-up pod for each training pod of each job that asks, and none that is in the way of another pod.

    If one of our other pods is missing in a namespace, it keeps none, in any pool: a quota that counts both may be the
    cause. None is made while a replica is about to start: it would be scheduled before the replica's own pod.

    Args:
        asking: the jobs that ask now.
    """
    known = [pod for pool in world.scale_ups for pod in scale_ups_of(world, pool)]
    pods = [pod for pod in known if not pod.deleting]
    namespaces = {*(job.metadata.namespace for job in asking), *(pod.key.namespace for pod in pods)}
    missing = {namespace for namespace in namespaces if namespace_missing_pods(world, namespace, now)}
    able = [job for job in asking if job.metadata.namespace not in missing]
    wanted = {_key(job, index): (job, index) for job in able for index in range(job.spec.resources.nodes)}
    mine = {pod.key: pod for pod in pods if pod.labels[SCALE_UP_LABEL] == stock.pool.metadata.name}
    spent = [pod for pod in mine.values() if _is_spent(stock, pod)]
    idle = [pod for key, pod in mine.items() if key not in wanted and not _keeps_room(world, pod)]
    in_the_way = [pod for pod in pods if pod.key.namespace in missing or _is_in_the_way(world, stock, pod, now)]
    taken = {*mine, *(pod.key for pod in known if pod.deleting)}  # a finalizer may keep a pod, and so its name
    lacking = tuple(what for key, what in wanted.items() if key not in taken)
    coming = [until for node in stock.nodes.values() for until in _replicas_come(world, node, now)] if lacking else []
    made_by = [now + FIRST_PAUSE] if lacking and not coming else []  # tries again what could not be made
    looks = [*coming, *(due[0] for namespace in namespaces if (due := pods_due(world).get(namespace)))]
    return ScaleUp(
        make=() if coming else lacking,
        remove=tuple({pod.key: pod for pod in (*spent, *idle, *in_the_way)}.values()),
        again_at=min((at for at in (*looks, *made_by) if at > now), default=None),
    )


def scale_ups_of(world: World, pool: str) -> list[PodView]:
    """A pool's scale-up pods for jobs that we serve, those that are being deleted too.

    Somebody may have given one a finalizer or a grace period, so that it stays a while after its deletion.
    """
    return [pod for pod in world.scale_ups.get(pool, {}).values() if asks_for_node(world, pod)]


def _key(job: FineTuneJob, index: int) -> Key:
    return Key("Pod", job.metadata.namespace, scale_up_name(job.metadata.name, job.metadata.uid, index))


def _is_spent(stock: Stock, pod: PodView) -> bool:
    """Whether a pod is of no more use: it has ended, or its node takes no training (it is cordoned, for example).

    Or it has a node and can't be deleted at once: it would hold there what its own job waits for.
    """
    if pod.ended or (pod.node and not pod.goes_at_once):
        return True
    return pod.node in stock.nodes and bool(stock.nodes[pod.node].unusable)


def _keeps_room(world: World, pod: PodView) -> bool:
    """Whether the pod keeps strangers off a node of a claim until the claim's gated pods are bound."""
    claims = live_claims_on(world, pod.node) if pod.node else []
    return any(phase_by_pods(world, live) is Phase.PROVING for live in claims)


def _is_in_the_way(world: World, stock: Stock, pod: PodView, now: datetime) -> bool:
    """Whether a trainer is nominated to the pod's node, or a replica is about to start there."""
    node = stock.nodes.get(pod.node)
    if node is None:
        return False
    return any(phase_by_pods(world, live) is Phase.BINDING for live in node.claims) or any(
        _replicas_come(world, node, now)
    )


def _replicas_come(world: World, node: NodeStock, now: datetime) -> Iterator[datetime]:
    """For each replica that has room on a node and no pod yet, the moment until which it is waited for.

    A replica that has not come by then is kept away by something other than our scale-up pods.
    """
    for slot in node.slots:
        if slot.pod is None:
            with looking_at(key_of(slot.engine)):
                until = replica_due(world, slot.engine, slot.slot.index, now)
            if now < until:
                yield until
