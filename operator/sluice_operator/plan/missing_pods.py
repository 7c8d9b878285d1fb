"""Which jobs and replicas lack a pod that is overdue?

A ResourceQuota may be the cause, and our own scale-up pods count against it.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from sluice_api.inferenceengine import InferenceEngine, SlotState
from sluice_operator.facts.claims import has_its_nodes, job_of, owner_of
from sluice_operator.facts.live_claims import is_live
from sluice_operator.facts.slots import pod_of
from sluice_operator.observe.fence import each
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.views import PodView, StageJobView
from sluice_operator.observe.world import World, identity

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
