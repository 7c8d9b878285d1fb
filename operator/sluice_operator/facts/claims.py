"""What does a training Job claim: for which job, how much of the claim could be true, and how far has it come?

The claim is an annotation, and every user who may write Jobs may write it. `believed` is a guard behind the chart's
admission policy. No claim takes more than its job asks for. No claim disturbs an engine or a job that could not have
agreed to it. One gap remains: a user can forge a claim that the job could have been given later. The job then has its
GPUs before its turn, even below an engine's floor or above a quota.
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
    """Whether Sluice's scheduling gate is still on a pod."""
    return SCHEDULING_GATE in pod.gates


@dataclass(frozen=True, slots=True)
class LiveClaim:
    """A claim that is alive, with its job and the training Job that carries it."""

    job: FineTuneJob
    stage_job: StageJobView
    claim: Claim
    """The part of the Job's claim that could be true (`believed`)."""

    @property
    def key(self) -> Key:
        """The FineTuneJob's key."""
        return key_of(self.job)

    @property
    def is_overdrawn(self) -> bool:
        """Whether the Job's annotation claims more than could be true. A lender may have changed its terms since."""
        annotation = self.stage_job.claim
        return annotation is not None and annotation.places != self.claim.places

    @property
    def name(self) -> str:
        """The job, as namespace/name."""
        return self.job.metadata.full_name


def ends_at(live: LiveClaim) -> datetime | None:
    """When a claim's training ends, by the last report of its attempt; None if no report says so."""
    progress = live.job.status.progress
    if progress is None or progress.attempt != live.stage_job.attempt:
        return None
    if progress.seconds_left is None or progress.reported_at is None:
        return None
    return progress.reported_at + timedelta(seconds=progress.seconds_left)


def attempt_ref(live: LiveClaim, node: str) -> AttemptRef:
    """The attempt behind a claim, as a preemptor's claim on the same node names it."""
    metadata, gpus = live.job.metadata, live.claim.gpus_on(node)
    return AttemptRef(namespace=metadata.namespace, job=metadata.name, uid=live.stage_job.uid, gpus=gpus)


def owner_of(world: World, stage_job: StageJobView) -> FineTuneJob | None:
    """The FineTuneJob that made a stage Job; None if it is gone, or another job has its name now."""
    if stage_job.owner is None or not stage_job.is_ours:
        return None
    job = world.jobs.get(job_key(stage_job.key.namespace, stage_job.owner.name))
    return job if job and job.metadata.uid == stage_job.owner.uid else None


@once_a_world(lambda _world, _job, stage_job: stage_job.uid)
def believed(world: World, job: FineTuneJob, stage_job: StageJobView) -> Claim | None:
    """The part of a Job's claim that could be true.

    Returns:
        The claim without slots and attempts that could not make room for the job. None if the Job has no claim, or
        claims other GPUs, pods or another pool than the job's spec asks for.
    """
    claim, asked = stage_job.claim, job.spec.resources
    if claim is None or (claim.gpus, len(claim.nodes), claim.pool) != (asked.gpus, asked.nodes, asked.pool):
        return None
    places = tuple(_place(world, job, place) for place in claim.places)
    term = min(claim.term, world.term)  # no leader can have had a later term
    if (places, term) == (claim.places, claim.term):
        return claim
    fields = {name: getattr(claim, name) for name in Claim.model_fields}
    return Claim(**{**fields, "places": places, "term": term})  # not a copy: it would keep the old cached properties


def _place(world: World, job: FineTuneJob, place: NodeAllocation) -> NodeAllocation:
    borrowed = tuple(slot for slot in place.borrowed if _could_be_lent(world, job, slot))
    preempted = tuple(ref for ref in place.preempted if _could_give_way(world, job, ref))
    if (borrowed, preempted) == (place.borrowed, place.preempted):
        return place
    return place.model_copy(update={"borrowed": borrowed, "preempted": preempted})


def _could_be_lent(world: World, job: FineTuneJob, slot: SlotRef) -> bool:
    """Whether an engine's terms allow the loan of a slot now. A loan that its status already records outlives them.

    The terms are those of `lending_obstacle`, of which this looks only at what a forged claim could get around.
    """
    engine = world.engines.get(engine_key(slot.namespace, slot.engine))
    if engine is None:
        return True  # the engine is gone, so the loan disturbs none
    name = job.metadata.full_name
    if any((status.index, status.lent_to) == (slot.index, name) for status in engine.status.slots):
        return True
    if engine.metadata.deletion_timestamp:  # a finalizer keeps it, and nobody tells its replicas to drain
        return False
    if engine.spec.preemption.policy is LendingPolicy.NEVER or not lends_to(world, engine, job.metadata.namespace):
        return False
    pods = world.engine_pods.get((slot.namespace, slot.engine, slot.index), {}).values()
    exists = slot.index < engine.spec.replicas or slot.index in existing(world, engine)
    exists = exists or any(not pod.ended for pod in pods)  # a slot on its way out is lent while its pod is there
    return exists and engine.spec.preemption.priority <= job.spec.scheduling.priority


def _could_give_way(world: World, job: FineTuneJob, ref: AttemptRef) -> bool:
    """Whether an attempt's job gives way to this one. Both specs' terms are fixed while the jobs hold GPUs.

    `preemption_obstacle` has the same terms, and the moments that no claim can forge.
    """
    other = world.jobs.get(job_key(ref.namespace, ref.job))
    if other is None:
        return True  # the job is gone, so the preemption disturbs none
    theirs, mine = other.spec.scheduling, job.spec.scheduling
    return theirs.interruption.policy is GiveWay.TO_HIGHER_PRIORITY and theirs.priority < mine.priority


def lends_to(world: World, engine: InferenceEngine, namespace: str) -> bool:
    """Whether an engine's `lendTo` includes a namespace. The engine's lending policy is not looked at."""
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
    """Whether all pods of an attempt are on their nodes, or its Job has finished."""
    pods = trainer_pods(world, stage_job)
    return bool(stage_job.finished or (pods and all(pod.node for pod in pods)))


def preemptor_of(world: World, stage_job: StageJobView) -> StageJobView | None:
    """The attempt that has preempted this one and has its GPUs; None before all pods of this one have ended."""
    coming = world.preempting.get(stage_job.uid)
    if not coming or not all(pod.ended for pod in trainer_pods(world, stage_job)):
        return None
    return next(
        (other for other in coming.values() if has_its_nodes(world, other) and _preempts(world, other, stage_job)), None
    )


def _preempts(world: World, preemptor: StageJobView, stage_job: StageJobView) -> bool:
    """Whether the believed claim of an attempt preempts another attempt."""
    job = owner_of(world, preemptor)
    claim = believed(world, job, preemptor) if job else None
    return claim is not None and stage_job.uid in claim.preempted


def made_after(world: World, stage_job: StageJobView, ended: datetime) -> bool:
    """Whether a Job was made after its attempt had ended."""
    pods = trainer_pods(world, stage_job)
    if not pods or any(pod.ended for pod in pods):  # a pod that has ended is the recorded attempt's own
        return not pods and stage_job.created > ended
    return stage_job.created > ended - timedelta(seconds=1)  # Kubernetes cuts `created` to whole seconds


class Phase(IntEnum):
    """How far a claim has come. A claim goes through the phases in this order."""

    PROVING = 1
    """The Job exists, and it is not known yet whether it can run. No slot and no other training is disturbed."""
    DRAINING = 2
    """The claim can run. The borrowed slots leave the endpoints and finish the requests in flight."""
    BINDING = 3
    """The pods are ungated and go to their nodes. The borrowed slots stop."""
    HOLDING = 4
    """All pods are on their nodes, or the Job has finished."""


def job_of(stage_job: StageJobView) -> Key:
    """Key of a stage Job's FineTuneJob; the stage Job's own key if it has no owner."""
    owner = stage_job.owner
    return job_key(stage_job.key.namespace, owner.name) if owner else stage_job.key


def phase_by_pods(world: World, live: LiveClaim) -> Phase:
    """How far a claim has come by its pods alone. It is never DRAINING: `plan.preflight.phase_of` looks for that."""
    pods = trainer_pods(world, live.stage_job)
    if has_its_nodes(world, live.stage_job):
        return Phase.HOLDING
    # An ungated pod is on its way once a node is nominated for it.
    if pods and all(pod.node or (not pod.gates and pod.nominated_node) for pod in pods):
        return Phase.BINDING
    return Phase.PROVING


def node_of(pod: PodView, claim: Claim) -> str:
    """The node to which a claim's pod goes; empty if the claim has no pod of that index."""
    return dict(enumerate(claim.nodes)).get(pod.index, "")


def gpus_of_slots(world: World, slots: Iterable[SlotRef]) -> int:
    """GPUs that some slots have when they run. That may be more than a claim that borrows them needs."""
    engines = (world.engines.get(engine_key(slot.namespace, slot.engine)) for slot in slots)
    return sum(engine.spec.resources.gpus for engine in engines if engine)


def taken_by(world: World, claim: Claim, node: str) -> int:
    """GPUs of a node that a claim keeps from all others. It keeps the unused rest of a larger borrowed slot too."""
    place = claim.on(node)
    return max(claim.gpus_on(node), gpus_of_slots(world, place.borrowed)) if place else 0


def least_first(live: LiveClaim) -> tuple[int, float, str]:
    """Sort key for training that ends before it is done: the lowest priority first, then the newest.

    The newest has the least to lose.
    """
    return (live.job.spec.scheduling.priority, -live.stage_job.created.timestamp(), live.stage_job.uid)
