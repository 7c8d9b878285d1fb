"""Which claims are alive, and which of two overlapping claims gives way?

A training Job carries its claim. The claim lives from the Job's creation until one of these: the Job has finished and
no retry takes the claim over; the FineTuneJob is suspended; either of the two is deleted; a node of the claim is gone;
the attempt's pods have ended and its preemptor has their GPUs; the Job can't be read any more and its pods have ended.
Nothing is remembered: every phase is read off the Job and its pods.
"""

from collections.abc import Iterable, Mapping

from sluice_api.claim import SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.facts.claims import (
    LiveClaim,
    Phase,
    believed,
    job_of,
    owner_of,
    phase_by_pods,
    preemptor_of,
    trainer_pods,
)
from sluice_operator.facts.outcomes import all_outcomes
from sluice_operator.facts.retries import after, failures
from sluice_operator.observe.fence import each
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import World, identity, oldest_first


def live_claims(world: World) -> list[LiveClaim]:
    """Every claim that is alive, oldest first."""
    return alive(world, world.claiming.values())


def live_claims_of(world: World, job: FineTuneJob) -> list[LiveClaim]:
    """One job's claims that are alive, oldest first."""
    return alive(world, world.stage_jobs_of.get(identity(job), {}).values())


def live_claims_on(world: World, node: str) -> list[LiveClaim]:
    """The claims on one node that are alive, oldest first."""
    return alive(world, world.claims_on.get(node, {}).values())


def live_claims_from(world: World, engine: InferenceEngine) -> list[LiveClaim]:
    """The claims that borrow from one engine and are alive, oldest first."""
    return alive(world, world.claims_from.get((engine.metadata.namespace, engine.metadata.name), {}).values())


def alive(world: World, stage_jobs: Iterable[StageJobView]) -> list[LiveClaim]:
    """The claims of some Jobs that are alive, oldest first."""

    def look(stage_job: StageJobView) -> LiveClaim | None:
        job = owner_of(world, stage_job)
        claim = believed(world, job, stage_job) if job else None
        return LiveClaim(job, stage_job, claim) if job and claim and is_live(world, job, stage_job) else None

    carriers = oldest_first(stage_job for stage_job in stage_jobs if stage_job.claim)
    return [live for live in each(carriers, job_of, look) if live]


def is_live(world: World, job: FineTuneJob, stage_job: StageJobView) -> bool:
    """Whether a training Job's claim is alive, as the module's docstring says."""
    if stage_job.claim is None or stage_job.deleting or job.metadata.deletion_timestamp or job.spec.suspend:
        return False
    if stage_job.finished and job.status.finished_at:  # the whole job is over: no attempt follows
        return False
    if any(Key("Node", "", place.node) not in world.nodes for place in stage_job.claim.places):
        return False
    if preemptor_of(world, stage_job) or _is_lost_from_sight(world, stage_job):
        return False
    return not stage_job.finished or is_taken_over(world, job, stage_job)


def _is_lost_from_sight(world: World, stage_job: StageJobView) -> bool:
    """Whether all pods of an unreadable Job have ended. The Job's own end would never be seen."""
    return not stage_job.readable and all(pod.ended for pod in trainer_pods(world, stage_job))


def is_taken_over(world: World, job: FineTuneJob, stage_job: StageJobView) -> bool:
    """Whether the next attempt takes over the claim of this finished attempt.

    The claim stays too while the attempt's outcome is not known, because the pods' last words are on their way.
    """
    siblings = world.stage_jobs_of.get(identity(job), {}).values()
    if any(other.stage is stage_job.stage and other.attempt > stage_job.attempt for other in siblings):
        return False
    outcomes = all_outcomes(world, job).of(stage_job.stage)
    last = outcomes[-1] if outcomes else None
    if last is None or last.attempt < stage_job.attempt:
        return True
    return (
        last.attempt == stage_job.attempt
        and after(last.reason).keeps_claim
        and failures(outcomes) < job.spec.retry.attempts
    )


def preemptors(world: World, claims: Iterable[LiveClaim]) -> dict[str, str]:
    """Attempts that are about to stop for a preemptor, each with that preemptor; both as uids of training Jobs.

    A preemptor whose pods are on their nodes already is left out: it waits for no other GPUs.
    """
    taking = [live for live in claims if live.claim.preempted]
    phases = each(taking, lambda live: live.key, lambda live: phase_by_pods(world, live))
    return {
        uid: live.stage_job.uid
        for live, found in zip(taking, phases, strict=True)
        if found is not Phase.HOLDING
        for uid in live.claim.preempted
    }


def lent_by_index(lent: Mapping[SlotRef, LiveClaim], engine: InferenceEngine) -> dict[int, LiveClaim]:
    """Of lent slots those of one engine, by index. The claims may borrow from other engines too."""
    here = (engine.metadata.namespace, engine.metadata.name)
    return {slot.index: live for slot, live in lent.items() if (slot.namespace, slot.engine) == here}
