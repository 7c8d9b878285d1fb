"""Whose pod should be there by now and is not: a quota may be why, and it counts our own pods that only wait too."""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from sluice_api.inferenceengine import InferenceEngine, SlotState
from sluice_operator.observe.views import PodView, StageJobView
from sluice_operator.observe.world import World, identity
from sluice_operator.plan.facts.attempts import has_its_nodes
from sluice_operator.plan.facts.belief import owner_of
from sluice_operator.plan.facts.claims import is_live, job_of
from sluice_operator.plan.facts.slots import pod_of
from sluice_operator.plan.fence import each

PODS_WITHIN = timedelta(seconds=5)
"""What has been made has its pods by then: a Job's, or those of a Deployment, which takes one step more."""


def starts_until(engine: InferenceEngine, index: int, pod: PodView | None, now: datetime) -> datetime:
    """When a slot that starts has got further at the latest: it has its pod, or its pod a node.

    Counted from when the engine's status first said that it starts so, without a pod or with this one.
    """
    said = next((slot for slot in engine.status.slots if slot.index == index), None)
    name = pod.key.name if pod else ""
    since = said.since if said and (said.state, said.pod) == (SlotState.STARTING, name) else None
    return (since or now) + PODS_WITHIN


def starved(world: World, namespace: str, now: datetime) -> str:
    """Who lacks a pod that should be there by now in a namespace; empty when nobody does."""
    due = pods_due(world).get(namespace)
    return due[1] if due and due[0] <= now else ""


def pods_due(world: World) -> Mapping[str, tuple[datetime, str]]:
    """By namespace, until when the first of those that have no pod yet should have it, and who that is."""
    found: dict[str, tuple[datetime, str]] | None = world.worked_out.get(pods_due)
    if found is None:
        found = {}
        for namespace, name, since in (*_claims(world), *_slots(world)):
            due = (since + PODS_WITHIN, name)
            found[namespace] = min(found.get(namespace, due), due)
        world.worked_out[pods_due] = found
    return found


def _claims(world: World) -> Iterator[tuple[str, str, datetime]]:
    """Training Jobs that hold a claim and lack pods. One that another system has suspended is to have none."""

    def look(stage_job: StageJobView) -> tuple[str, str, datetime] | None:
        job = owner_of(world, stage_job) if _lacks_pods(world, stage_job) else None
        lacks = job is not None and is_live(world, job, stage_job) and not has_its_nodes(world, stage_job)
        return (stage_job.key.namespace, job.metadata.name, stage_job.created) if job and lacks else None

    yield from (found for found in each(world.claiming.values(), job_of, look) if found)


def _lacks_pods(world: World, stage_job: StageJobView) -> bool:
    pods = world.pods_of.get(identity(stage_job), ())
    asks = not (stage_job.finished or stage_job.suspended)
    return asks and stage_job.claim is not None and len(pods) < len(stage_job.claim.nodes)


def _slots(world: World) -> Iterator[tuple[str, str, datetime]]:
    """Slots that start, as their engine's status says, and have no pod."""
    for engine in world.engines.values():
        for slot in engine.status.slots:
            starts = slot.state is SlotState.STARTING and not slot.pod
            if starts and slot.since and pod_of(world, engine, slot.index) is None:
                yield engine.metadata.namespace, f"{engine.metadata.name}/{slot.index}", slot.since
