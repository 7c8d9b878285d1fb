"""Which claims are alive, and which of two overlapping claims gives way?

A training Job carries its claim. The claim lives from the Job's creation until one of these: the Job has finished and
no retry takes the claim over; the FineTuneJob is suspended; either of the two is deleted; a node of the claim is gone;
the attempt's pods have ended and its preemptor has their GPUs; the Job can't be read any more and its pods have ended.
Nothing is remembered: every phase is read off the Job and its pods.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from sluice_api.claim import Claim, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import InferenceEngine
from sluice_operator.facts.claims import (
    LiveClaim,
    Phase,
    believed,
    job_of,
    owner_of,
    phase,
    preemptor_of,
    taken_by,
    trainer_pods,
)
from sluice_operator.facts.nodes import offered
from sluice_operator.facts.outcomes import all_outcomes, failures
from sluice_operator.facts.retries import after
from sluice_operator.facts.slots import left_by
from sluice_operator.observe.fence import each
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import World, engine_key, identity, oldest_first


def live_claims(world: World) -> list[LiveClaim]:
    """Every claim that is alive, oldest first."""
    return _alive(world, world.claiming.values())


def live_claims_of(world: World, job: FineTuneJob) -> list[LiveClaim]:
    """One job's claims that are alive, oldest first."""
    return _alive(world, world.stage_jobs_of.get(identity(job), {}).values())


def live_claims_on(world: World, node: str) -> list[LiveClaim]:
    """The claims on one node that are alive, oldest first."""
    return _alive(world, world.claims_on.get(node, {}).values())


def live_claims_from(world: World, engine: InferenceEngine) -> list[LiveClaim]:
    """The claims that borrow from one engine and are alive, oldest first."""
    return _alive(world, world.claims_from.get((engine.metadata.namespace, engine.metadata.name), {}).values())


def _alive(world: World, stage_jobs: Iterable[StageJobView]) -> list[LiveClaim]:
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
    phases = each(taking, lambda live: live.key, lambda live: phase(world, live))
    return {
        uid: live.stage_job.uid
        for live, found in zip(taking, phases, strict=True)
        if found is not Phase.HOLDING
        for uid in live.claim.preempted
    }


def borrowers(world: World, claims: list[LiveClaim]) -> dict[SlotRef, LiveClaim]:
    """The claim that borrows each lent slot. Of two claims on one slot it is the one that comes first."""
    found: dict[SlotRef, LiveClaim] = {}
    ranks = each(claims, lambda live: live.key, lambda live: precedence(world, live))
    # The claim that comes first is written last, and so replaces the others.
    for _, live in sorted(zip(ranks, claims, strict=True), key=lambda ranked: ranked[0], reverse=True):
        found.update(dict.fromkeys(live.claim.borrowed, live))
    return found


def precedence(world: World, live: LiveClaim) -> tuple[bool, int, datetime, str]:
    """Sort key: of two overlapping claims the first one stands, and the other gives way.

    A leader makes a claim only after it has listed every older one. So an overlap has one of two causes. A paused
    former leader woke up and made a claim: that claim has the lower term, and the higher term comes first. Or a job was
    suspended and resumed before an operator looked: then a claim that is past its gate comes first.
    """
    gated = phase(world, live) is Phase.PROVING
    return (gated, -live.claim.term, live.stage_job.created, live.stage_job.key.name)


def overlapped_by(world: World, mine: LiveClaim) -> LiveClaim | None:
    """The claim that `mine` must give way to; None if it may stand.

    Such a claim comes first by `precedence`. It is of another unfinished attempt of the same job, or has the same slot,
    or leaves too few GPUs on a node or too little memory beside a slot. An attempt that `mine` preempts is never it.
    """
    my_place = precedence(world, mine)
    below = {mine.stage_job.uid, *mine.claim.preempted}
    rivals = _rivals(world, mine)
    before = [c for c in rivals if c.stage_job.uid not in below and precedence(world, c) < my_place]
    for other in before:
        same_job = other.job.metadata.uid == mine.job.metadata.uid and not other.stage_job.finished
        if same_job or _same_slot(other.claim, mine.claim):
            return other
    if crowd := _crowded(world, mine, before):
        return crowd
    going = preemptors(world, rivals)
    staying = [c for c in before if c.claim.resource == mine.claim.resource and c.stage_job.uid not in going]
    for place in mine.claim.places:
        node = world.nodes.get(Key("Node", "", place.node))
        room = offered(world, node, mine.claim.resource) if node else 0
        here = [c for c in staying if c.claim.gpus_on(place.node)]
        asked = taken_by(world, mine.claim, place.node)
        if here and asked and asked + sum(taken_by(world, c.claim, place.node) for c in here) > room:
            return here[-1]
    return None


def _same_slot(one: Claim, other: Claim) -> bool:
    """Whether two claims can't both have a slot: one borrows it, the other borrows it or is its guest."""
    lent, also_lent = set(one.borrowed), set(other.borrowed)
    return bool(lent & {*also_lent, other.host} or also_lent & {one.host})


def _crowded(world: World, mine: LiveClaim, before: Iterable[LiveClaim]) -> LiveClaim | None:
    """The last guest that came before `mine` to its slot, if the slot's memory is too little for `mine` as well."""
    host = mine.claim.host
    engine = world.engines.get(engine_key(host.namespace, host.engine)) if host else None
    others = [live for live in before if live.claim.host == host]
    if engine is None or not others:
        return None
    asked = sum(live.claim.share.percent for live in [*others, mine] if live.claim.share)
    return others[-1] if asked > left_by(engine) else None


def _rivals(world: World, mine: LiveClaim) -> list[LiveClaim]:
    """The live claims that may overlap a claim, oldest first: of its job, on its nodes, and from its lenders."""
    lenders = {(slot.namespace, slot.engine) for slot in mine.claim.borrowed}
    groups = [
        world.stage_jobs_of.get(identity(mine.job), {}),
        *(world.claims_on.get(place.node, {}) for place in mine.claim.places),
        *(world.claims_from.get(lender, {}) for lender in lenders),
    ]
    return _alive(world, {view.key: view for group in groups for view in group.values()}.values())


def lent_indices(lent: Mapping[SlotRef, LiveClaim], engine: InferenceEngine) -> set[int]:
    """Indices of an engine's slots that are lent."""
    here = (engine.metadata.namespace, engine.metadata.name)
    return {slot.index for slot in lent if (slot.namespace, slot.engine) == here}
