"""Which claims are alive, and which of two that overlap gives way?

The training Job is the claim. It is alive from its creation until its Job is finished and no retry takes it over, or
the job is suspended or deleted, or a node of it is gone, or it has ended and its preemptor is there. Nothing is
remembered: every phase is read off the Job and its pods.
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
    """Whether a training Job still holds what its claim says."""
    if stage_job.claim is None or stage_job.deleting or job.metadata.deletion_timestamp or job.spec.suspend:
        return False
    if stage_job.finished and job.status.finished_at:
        return False
    if any(Key("Node", "", place.node) not in world.nodes for place in stage_job.claim.places):
        return False
    if preemptor_of(world, stage_job) or _is_lost_from_sight(world, stage_job):
        return False
    return not stage_job.finished or is_taken_over(world, job, stage_job)


def _is_lost_from_sight(world: World, stage_job: StageJobView) -> bool:
    """Whether a Job can't be read any more, so that nobody would hear of its end, and its pods are over."""
    return not stage_job.readable and all(pod.ended for pod in trainer_pods(world, stage_job))


def is_taken_over(world: World, job: FineTuneJob, stage_job: StageJobView) -> bool:
    """Whether a retry is due at once that takes this finished attempt's claim over.

    While the pod's last words are still on their way, nothing is known and the claim stays.
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
    """Attempts that are about to be stopped, and whose claim, that waits for its node, has their GPUs; by uid."""
    taking = [live for live in claims if live.claim.preempted]
    phases = each(taking, lambda live: live.key, lambda live: phase(world, live))
    return {
        uid: live.stage_job.uid
        for live, found in zip(taking, phases, strict=True)
        if found is not Phase.HOLDING
        for uid in live.claim.preempted
    }


def borrowers(world: World, claims: list[LiveClaim]) -> dict[SlotRef, LiveClaim]:
    """Which claim borrows which slot; of two claims on one slot, the one that stands."""
    found: dict[SlotRef, LiveClaim] = {}
    ranks = each(claims, lambda live: live.key, lambda live: precedence(world, live))
    for _, live in sorted(zip(ranks, claims, strict=True), key=lambda ranked: ranked[0], reverse=True):
        found.update(dict.fromkeys(live.claim.borrowed, live))
    return found


def precedence(world: World, live: LiveClaim) -> tuple[bool, int, datetime, str]:
    """Sort key: whoever comes first stands when two claims overlap.

    A leader makes a claim only after a list that shows every older one. So an overlap can only come
    from a paused former leader that woke up, and its claim has the lower term; or from a job that was
    suspended and resumed before anybody looked, and whoever is past its gate by then stands.
    """
    gated = phase(world, live) is Phase.PROVING
    return (gated, -live.claim.term, live.stage_job.created, live.stage_job.key.name)


def overlapped_by(world: World, mine: LiveClaim) -> LiveClaim | None:
    """The claim that mine must give way to: another attempt of the same job, the same slot, or one GPU too many.

    Attempts that mine displaces give way to it, wherever they stand.
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
    """Whether two claims can't have what they have of a slot at once: guests of one slot can."""
    lent, also_lent = set(one.borrowed), set(other.borrowed)
    return bool(lent & {*also_lent, other.host} or also_lent & {one.host})


def _crowded(world: World, mine: LiveClaim, before: Iterable[LiveClaim]) -> LiveClaim | None:
    """The last of the guests that came before mine, if beside their slot the memory is too little for mine too."""
    host = mine.claim.host
    engine = world.engines.get(engine_key(host.namespace, host.engine)) if host else None
    others = [live for live in before if live.claim.host == host]
    if engine is None or not others:
        return None
    asked = sum(live.claim.share.percent for live in [*others, mine] if live.claim.share)
    return others[-1] if asked > left_by(engine) else None


def _rivals(world: World, mine: LiveClaim) -> list[LiveClaim]:
    """The claims that might want what a claim has, oldest first: its job's, its nodes', its engines'."""
    lenders = {(slot.namespace, slot.engine) for slot in mine.claim.borrowed}
    groups = [
        world.stage_jobs_of.get(identity(mine.job), {}),
        *(world.claims_on.get(place.node, {}) for place in mine.claim.places),
        *(world.claims_from.get(lender, {}) for lender in lenders),
    ]
    return _alive(world, {view.key: view for group in groups for view in group.values()}.values())


def lent_indices(lent: Mapping[SlotRef, LiveClaim], engine: InferenceEngine) -> set[int]:
    """Which of an engine's slots are borrowed."""
    here = (engine.metadata.namespace, engine.metadata.name)
    return {slot.index for slot in lent if (slot.namespace, slot.engine) == here}
