"""Where a job goes: the node, the slots that it borrows, the training of lower priority whose place it takes."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sluice_api.claim import Claim, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, engine_key
from sluice_operator.plan.borrowing import Terms
from sluice_operator.plan.claims import LiveClaim, trainer_pods
from sluice_operator.plan.fit import lack_on
from sluice_operator.plan.interruption import attempt_ref, may_displace
from sluice_operator.plan.inventory import NodeStock, PlacedSlot, Stock, gpus_of_slots
from sluice_operator.plan.outcomes import all_outcomes
from sluice_operator.plan.victims import choose_victims

_AVOIDED_FOR = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Placement:
    """One way to give a job its GPUs."""

    node: NodeStock
    victims: tuple[PlacedSlot, ...] = ()
    """Slots that are lent to it."""
    displaced: tuple[LiveClaim, ...] = ()
    """Claims of lower priority that end for it."""
    inherited: tuple[SlotRef, ...] = ()
    """Slots that are lent to those already, and are lent to it from now on."""

    @property
    def cost(self) -> tuple[int, int, int, int, str]:
        """Sort key, of placements of one kind: whoever is disturbed the least, then the tightest fit."""
        in_flight = sum(victim.in_flight for victim in self.victims)
        return (len(self.displaced), len(self.victims), in_flight, self.node.free, self.node.name)


def place(world: World, stock: Stock, job: FineTuneJob, terms: Terms, others_wait: bool, now: datetime) -> Claim | None:
    """The best place for a job, free GPUs before borrowed ones and those before another's; None when there is none now.

    Args:
        others_wait: jobs in front of it wait. What is free is theirs then, and so is anybody's place.
    """
    ways: list[Callable[[NodeStock], Placement | None]] = []
    if not others_wait:
        ways.append(lambda node: _free(node, job))
    if terms.most > 0 and terms.lenders:
        ways.append(lambda node: _lent(stock, node, job, terms, min(0, node.spare) if others_wait else node.spare))
    if not others_wait:
        ways.append(lambda node: _instead(world, stock, node, job, terms, now))
    if not ways:
        return None
    avoided = _avoided(world, job, now)
    nodes = [node for node in stock.nodes.values() if not node.refusal and node.name not in avoided]
    for way in ways:
        rooms = sorted(filter(None, map(way, nodes)), key=lambda room: room.cost)
        for room in rooms:
            if not lack_on(world, room.node, job, _leaving(world, room)):
                return _claim(world, stock, job, room)
    return None


def stock_after(world: World, stock: Stock, job: FineTuneJob, claim: Claim) -> Stock:
    """The stock once a claim is made: later jobs see its GPUs as taken and its slots as lent.

    Slots that come back from displaced claims are their engines' again, and not free.
    """
    node = stock.nodes[claim.node]
    gone = {ref.uid for ref in claim.displaced}
    displaced = [live for live in node.claims if live.stage_job.uid in gone]
    returned = {slot for live in displaced for slot in live.claim.borrowed} - {*claim.borrowed}
    lent = sum(slot.gpus for slot in node.slots if slot.slot in claim.borrowed)
    freed = sum(live.claim.gpus for live in displaced) - gpus_of_slots(world, returned)
    stopped = Counter(slot.engine.metadata.uid for slot in node.slots if slot.serving and slot.slot in claim.borrowed)
    may_lose = {uid: left - stopped[uid] for uid, left in stock.may_lose.items()} if stopped else stock.may_lose
    return (
        replace(stock, may_lose=may_lose)
        .with_node(
            replace(
                node,
                claims=tuple(live for live in node.claims if live not in displaced),
                claimed=node.claimed - freed + max(claim.gpus, lent),
                slots=tuple(slot for slot in node.slots if slot.slot not in claim.borrowed),
            )
        )
        .with_granted(job)
    )


def _claim(world: World, stock: Stock, job: FineTuneJob, room: Placement) -> Claim:
    return Claim(
        pool=stock.pool.metadata.name,
        resource=stock.pool.spec.resource_name,
        node=room.node.name,
        gpus=job.spec.resources.gpus,
        borrowed=(*room.inherited, *(victim.slot for victim in room.victims)),
        displaced=tuple(attempt_ref(live) for live in room.displaced),
        term=world.term,
    )


def _free(node: NodeStock, job: FineTuneJob) -> Placement | None:
    """Room among what nobody has."""
    return Placement(node) if node.free >= job.spec.resources.gpus else None


def _lent(stock: Stock, node: NodeStock, job: FineTuneJob, terms: Terms, spare: int) -> Placement | None:
    """Room with slots that are lent, and so many spare GPUs."""
    lacking = job.spec.resources.gpus - spare
    if not 0 < lacking <= terms.most or sum(slot.gpus for slot in node.slots) < lacking:
        return None
    victims = choose_victims(stock, node, lacking, terms.lenders)
    return Placement(node, victims) if victims is not None else None


def _instead(
    world: World, stock: Stock, node: NodeStock, job: FineTuneJob, terms: Terms, now: datetime
) -> Placement | None:
    """Room in the place of as few as possible that train there. None of them could be spared."""
    candidates = may_displace(world, node.claims, job, now)
    for count in range(1, len(candidates) + 1):
        found = _in_place_of(world, stock, node, job, terms, candidates[:count])
        if found is None:
            continue
        for spared in candidates[: count - 1]:
            fewer = [live for live in found.displaced if live is not spared]
            found = _in_place_of(world, stock, node, job, terms, fewer) or found
        return found
    return None


def _in_place_of(
    world: World, stock: Stock, node: NodeStock, job: FineTuneJob, terms: Terms, displaced: Sequence[LiveClaim]
) -> Placement | None:
    """Room once these are gone: their own GPUs, the slots that they borrowed if they are lent on, and other slots."""
    own = sum(max(0, live.claim.gpus - gpus_of_slots(world, live.claim.borrowed)) for live in displaced)
    lacking = job.spec.resources.gpus - node.spare - own
    if lacking > max(0, terms.most):
        return None
    inherited: list[SlotRef] = []
    for slot in (slot for live in displaced for slot in live.claim.borrowed):
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        if lacking > 0 and engine and engine.metadata.uid in terms.lenders:
            inherited.append(slot)
            lacking -= engine.spec.resources.gpus
    victims = choose_victims(stock, node, lacking, terms.lenders) if lacking > 0 else ()
    return Placement(node, victims, tuple(displaced), tuple(inherited)) if victims is not None else None


def _leaving(world: World, room: Placement) -> set[Key]:
    """Pods that are gone by the time the job's pod comes."""
    slots = {victim.pod for victim in room.victims if victim.pod}
    return slots | {pod.key for live in room.displaced for pod in trainer_pods(world, live.stage_job)}


def _avoided(world: World, job: FineTuneJob, now: datetime) -> set[str]:
    """Nodes on which the job could not be bound a moment ago."""
    return {
        outcome.node
        for outcome in all_outcomes(world, job).of(Stage.TRAIN)
        if outcome.reason == Reason.NOT_BOUND and outcome.ended_at and now < outcome.ended_at + _AVOIDED_FOR
    }
