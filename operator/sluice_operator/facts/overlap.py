"""Which of two overlapping claims stands, and which gives way?"""

from collections.abc import Iterable
from datetime import datetime

from sluice_api.claim import Claim, SlotRef
from sluice_operator.facts.claims import LiveClaim, Phase, phase_by_pods, taken_by
from sluice_operator.facts.live_claims import alive, preemptors
from sluice_operator.facts.nodes import offered
from sluice_operator.facts.slots import left_by
from sluice_operator.observe.fence import each
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, engine_key, identity


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
    gated = phase_by_pods(world, live) is Phase.PROVING
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
    return alive(world, {view.key: view for group in groups for view in group.values()}.values())
