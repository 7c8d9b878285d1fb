"""What does a training Job claim: whose it is, what of its claim could be true, its pods, and how far it has come.

The claim is an annotation, and whoever may write Jobs may write it. `believed` is a guard behind the chart's admission
policy: no claim takes more than its job asks for, and none disturbs anybody whose terms could not have allowed it. What
remains: who forges a claim that its job could have been given has it before its turn, below an engine's floor and above
a quota.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from sluice_api.claim import AttemptRef, Claim, NodeAllocation, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine, LendingPolicy, LendTo
from sluice_api.meta import SCHEDULING_GATE
from sluice_api.scheduling import GiveWay
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.namespaces import selects
from sluice_operator.observe.views import Key, PodView, StageJobView
from sluice_operator.observe.world import World, engine_key, existing, identity, job_key, key_of, oldest_first


def is_gated(pod: PodView) -> bool:
    """Whether our gate is still on a pod."""
    return SCHEDULING_GATE in pod.gates


@dataclass(frozen=True, slots=True)
class LiveClaim:
    """A claim that is alive."""

    job: FineTuneJob
    stage_job: StageJobView
    claim: Claim
    """What of it could be true."""

    @property
    def key(self) -> Key:
        """Key of the job."""
        return key_of(self.job)

    @property
    def is_overdrawn(self) -> bool:
        """Whether the Job says that it has more than could be true, or could any longer: a lender's terms changed."""
        annotation = self.stage_job.claim
        return annotation is not None and annotation.places != self.claim.places

    @property
    def name(self) -> str:
        """The job, as namespace/name."""
        return self.job.metadata.full_name


def ends_at(live: LiveClaim) -> datetime | None:
    """When a claim's training ends, by its trainer's last report; None while it has said nothing."""
    progress = live.job.status.progress
    if progress is None or progress.attempt != live.stage_job.attempt:
        return None
    if progress.seconds_left is None or progress.reported_at is None:
        return None
    return progress.reported_at + timedelta(seconds=progress.seconds_left)


def attempt_ref(live: LiveClaim, node: str) -> AttemptRef:
    """The attempt behind a claim, as another claim on the same node names it."""
    metadata, gpus = live.job.metadata, live.claim.gpus_on(node)
    return AttemptRef(namespace=metadata.namespace, job=metadata.name, uid=live.stage_job.uid, gpus=gpus)


def owner_of(world: World, stage_job: StageJobView) -> FineTuneJob | None:
    """The FineTuneJob that a stage Job belongs to, if it is still the same one."""
    if stage_job.owner is None or not stage_job.is_ours:
        return None
    job = world.jobs.get(job_key(stage_job.key.namespace, stage_job.owner.name))
    return job if job and job.metadata.uid == stage_job.owner.uid else None


@once_a_world(lambda _world, _job, stage_job: stage_job.uid)
def believed(world: World, job: FineTuneJob, stage_job: StageJobView) -> Claim | None:
    """The part of a job's claim that could be true; None when none could."""
    claim, asked = stage_job.claim, job.spec.resources
    if claim is None or (claim.gpus, len(claim.nodes), claim.pool) != (asked.gpus, asked.nodes, asked.pool):
        return None
    places = tuple(_place(world, job, place) for place in claim.places)
    term = min(claim.term, world.term)
    if (places, term) == (claim.places, claim.term):
        return claim
    fields = {name: getattr(claim, name) for name in Claim.model_fields}
    return Claim(**{**fields, "places": places, "term": term})  # not a copy, which would keep what was worked out of it


def _place(world: World, job: FineTuneJob, place: NodeAllocation) -> NodeAllocation:
    borrowed = tuple(slot for slot in place.borrowed if _could_be_lent(world, job, slot))
    preempted = tuple(ref for ref in place.preempted if _could_give_way(world, job, ref))
    if (borrowed, preempted) == (place.borrowed, place.preempted):
        return place
    return place.model_copy(update={"borrowed": borrowed, "preempted": preempted})


def _could_be_lent(world: World, job: FineTuneJob, slot: SlotRef) -> bool:
    """Whether an engine's terms allow a loan now, or its status says that it is made: a loan outlives its terms."""
    engine = world.engines.get(engine_key(slot.namespace, slot.engine))
    if engine is None:
        return True  # it is gone, and nobody is left to be disturbed
    name = job.metadata.full_name
    if any((status.index, status.lent_to) == (slot.index, name) for status in engine.status.slots):
        return True
    if engine.spec.preemption.policy is LendingPolicy.NEVER or not lends_to(world, engine, job.metadata.namespace):
        return False
    pods = world.engine_pods.get((slot.namespace, slot.engine, slot.index), {}).values()
    exists = slot.index < engine.spec.replicas or slot.index in existing(world, engine)
    exists = exists or any(not pod.ended for pod in pods)  # a slot on its way out is lent while its pod is there
    return exists and engine.spec.preemption.priority <= job.spec.scheduling.priority


def _could_give_way(world: World, job: FineTuneJob, ref: AttemptRef) -> bool:
    """Whether an attempt's job gives way to this one. What they agreed on is fixed while they hold GPUs."""
    other = world.jobs.get(job_key(ref.namespace, ref.job))
    if other is None:
        return True
    theirs, mine = other.spec.scheduling, job.spec.scheduling
    return theirs.interruption.policy is GiveWay.TO_HIGHER_PRIORITY and theirs.priority < mine.priority


def lends_to(world: World, engine: InferenceEngine, namespace: str) -> bool:
    """Whether an engine lends to jobs of a namespace, if it lends at all."""
    match engine.spec.preemption.lend_to:
        case LendTo.SAME_NAMESPACE:
            return engine.metadata.namespace == namespace
        case LendTo.ANYWHERE:
            return True
        case LendTo.SELECTED:
            return selects(world, engine.spec.preemption.lend_to_namespaces, namespace)


def trainer_pods(world: World, stage_job: StageJobView) -> list[PodView]:
    """The pods of a stage Job, oldest first."""
    return oldest_first(world.pods_of.get(identity(stage_job), {}).values())


def has_its_nodes(world: World, stage_job: StageJobView) -> bool:
    """Whether all pods of an attempt are on their nodes, or were."""
    pods = trainer_pods(world, stage_job)
    return bool(stage_job.finished or (pods and all(pod.node for pod in pods)))


def preemptor_of(world: World, stage_job: StageJobView) -> StageJobView | None:
    """The attempt that has come in another's place and has its GPUs, once that one's pods have ended."""
    coming = world.preempting.get(stage_job.uid)
    if not coming or not all(pod.ended for pod in trainer_pods(world, stage_job)):
        return None
    return next(
        (other for other in coming.values() if has_its_nodes(world, other) and _preempts(world, other, stage_job)), None
    )


def _preempts(world: World, preemptor: StageJobView, stage_job: StageJobView) -> bool:
    """Whether an attempt could really come in another's place."""
    job = owner_of(world, preemptor)
    claim = believed(world, job, preemptor) if job else None
    return claim is not None and stage_job.uid in claim.preempted


def made_after(world: World, stage_job: StageJobView, ended: datetime) -> bool:
    """Whether a Job was made after its attempt had ended. When it was made is known to the second."""
    pods = trainer_pods(world, stage_job)
    if not pods or any(pod.ended for pod in pods):
        return not pods and stage_job.created > ended
    return stage_job.created > ended - timedelta(seconds=1)


class Phase(IntEnum):
    """How far a claim has come; each is reached only after the one before."""

    PROVING = 1
    """Its Job exists; whether it can run is not known yet. Nobody is disturbed."""
    DRAINING = 2
    """It can run: the borrowed slots leave the endpoints and finish what is in flight."""
    BINDING = 3
    """Its pods are on their way to their nodes; the borrowed slots stop."""
    HOLDING = 4
    """Its pods are on their nodes, or were."""


def job_of(stage_job: StageJobView) -> Key:
    """Key of the FineTuneJob of a stage Job; of itself, if it has none."""
    owner = stage_job.owner
    return job_key(stage_job.key.namespace, owner.name) if owner else stage_job.key


def phase(world: World, live: LiveClaim) -> Phase:
    """How far a claim has come, given that nothing speaks against it (see plan.job for what may)."""
    pods = trainer_pods(world, live.stage_job)
    if has_its_nodes(world, live.stage_job):
        return Phase.HOLDING
    if pods and all(pod.node or (not pod.gates and pod.nominated_node) for pod in pods):
        return Phase.BINDING
    return Phase.PROVING


def node_of(pod: PodView, claim: Claim) -> str:
    """The node to which a claim's pod goes; empty for a pod that the claim does not know."""
    return dict(enumerate(claim.nodes)).get(pod.index, "")


def gpus_of_slots(world: World, slots: Iterable[SlotRef]) -> int:
    """GPUs that some slots have when they run; those that a claim borrows may have more than it needs."""
    engines = (world.engines.get(engine_key(slot.namespace, slot.engine)) for slot in slots)
    return sum(engine.spec.resources.gpus for engine in engines if engine)


def taken_by(world: World, claim: Claim, node: str) -> int:
    """GPUs of a node that a claim keeps from all others: what is left of a larger slot goes back with it."""
    place = claim.on(node)
    return max(claim.gpus_on(node), gpus_of_slots(world, place.borrowed)) if place else 0
