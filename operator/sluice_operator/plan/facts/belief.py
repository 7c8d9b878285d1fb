"""What of a claim could be true. The claim is an annotation, and whoever may write Jobs may write it.

A guard, behind the chart's admission policy: no claim takes more than its job asks for, and none disturbs anybody whose
terms could not have allowed it. What remains: who forges a claim that its job could have been given has it before its
turn, below an engine's floor and above a quota.
"""

from sluice_api.claim import AttemptRef, Claim, Place, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine, LendingPolicy, LendTo
from sluice_api.scheduling import GiveWay
from sluice_operator.observe.views import StageJobView
from sluice_operator.observe.world import World, engine_key, job_key
from sluice_operator.plan.facts.namespaces import selects
from sluice_operator.plan.facts.slots import existing


def owner_of(world: World, stage_job: StageJobView) -> FineTuneJob | None:
    """The FineTuneJob that a stage Job belongs to, if it is still the same one."""
    if stage_job.owner is None or not stage_job.is_ours:
        return None
    job = world.jobs.get(job_key(stage_job.key.namespace, stage_job.owner.name))
    return job if job and job.metadata.uid == stage_job.owner.uid else None


def believed(world: World, job: FineTuneJob, stage_job: StageJobView) -> Claim | None:
    """The part of a job's claim that could be true; None when none could. Asked often, so worked out once a state."""
    if stage_job.claim is None:
        return None
    asked = (believed, stage_job.uid)
    if asked not in world.worked_out:
        world.worked_out[asked] = _believed(world, job, stage_job.claim)
    claim: Claim | None = world.worked_out[asked]
    return claim


def _believed(world: World, job: FineTuneJob, claim: Claim) -> Claim | None:
    asked = job.spec.resources
    if (claim.gpus, len(claim.nodes), claim.pool) != (asked.gpus, asked.nodes, asked.pool):
        return None
    places = tuple(_place(world, job, place) for place in claim.places)
    term = min(claim.term, world.term)
    if (places, term) == (claim.places, claim.term):
        return claim
    said = {name: getattr(claim, name) for name in Claim.model_fields}
    return Claim(**{**said, "places": places, "term": term})  # not a copy, which would keep what was worked out of it


def _place(world: World, job: FineTuneJob, place: Place) -> Place:
    borrowed = tuple(slot for slot in place.borrowed if _could_be_lent(world, job, slot))
    displaced = tuple(ref for ref in place.displaced if _could_give_way(world, job, ref))
    if (borrowed, displaced) == (place.borrowed, place.displaced):
        return place
    return place.model_copy(update={"borrowed": borrowed, "displaced": displaced})


def _could_be_lent(world: World, job: FineTuneJob, slot: SlotRef) -> bool:
    """Whether an engine's terms allow a loan now, or its status says that it is made: a loan outlives its terms."""
    engine = world.engines.get(engine_key(slot.namespace, slot.engine))
    if engine is None:
        return True  # it is gone, and nobody is left to be disturbed
    name = job.metadata.full_name
    if any((said.index, said.lent_to) == (slot.index, name) for said in engine.status.slots):
        return True
    if engine.spec.preemption.policy is LendingPolicy.NEVER or not lends_to(world, engine, job.metadata.namespace):
        return False
    exists = slot.index < engine.spec.replicas or slot.index in existing(world, engine)
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
