"""A search for the places of a job's pods: what was found so far, and what that leaves of the pool."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from sluice_api.claim import Claim, Place, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World
from sluice_operator.plan.allocation.borrowing import Terms
from sluice_operator.plan.allocation.guests import is_guest
from sluice_operator.plan.allocation.interruption import attempt_ref
from sluice_operator.plan.allocation.inventory import NodeStock, PlacedSlot, Stock
from sluice_operator.plan.allocation.kept import Kept
from sluice_operator.plan.facts.attempts import trainer_pods
from sluice_operator.plan.facts.claims import LiveClaim, gpus_of_slots, taken_by
from sluice_operator.plan.facts.sharing import share_of
from sluice_operator.plan.facts.slots import sleeps
from sluice_operator.plan.obstacle import Obstacle


@dataclass(frozen=True, slots=True)
class Room:
    """One way to give some of a job's pods their GPUs, on one node."""

    node: NodeStock
    pods: int
    victims: tuple[PlacedSlot, ...] = ()
    """Slots that are lent to it."""
    displaced: tuple[LiveClaim, ...] = ()
    """Claims of lower priority that end for it."""
    inherited: tuple[SlotRef, ...] = ()
    """Slots that are lent to those already, and are lent to it from now on."""
    beside: PlacedSlot | None = None
    """The slot whose guest it is."""
    obstacles: tuple[Obstacle, ...] = ()
    """What keeps it from being used now."""

    @property
    def place(self) -> Place:
        """The same as a claim says it."""
        return Place(
            node=self.node.name,
            pods=self.pods,
            borrowed=(*self.inherited, *(victim.slot for victim in self.victims)),
            displaced=tuple(attempt_ref(live, self.node.name) for live in self.displaced),
            beside=self.beside.slot if self.beside else None,
        )


@dataclass(frozen=True)
class Search:
    """A job's pods, as far as they are placed."""

    world: World
    stock: Stock
    job: FineTuneJob
    terms: Terms
    kept: Kept
    now: datetime
    left_out: Mapping[str, Obstacle]
    """Nodes that take none of its pods now, by name."""
    strict: bool = True
    """Only room that nothing keeps from being used. Else what keeps it is noted, and the search goes on: the same
    checks that decide explain."""
    rooms: Mapping[str, Room] = field(default_factory=dict)
    leaving: frozenset[str] = frozenset()
    """Uids of attempts that will end for it, wherever its pods are."""

    @property
    def claim(self) -> Claim:
        """What they hold."""
        pool, gpus = self.stock.pool, self.job.spec.resources.gpus
        places = tuple(room.place for room in self.rooms.values())
        slots = [slot for place in places for slot in place.borrowed]
        own = 0 if is_guest(pool, self.job) else max(0, gpus - gpus_of_slots(self.world, slots))
        return Claim(
            pool=pool.metadata.name,
            resource=pool.spec.counted_as,
            gpus=gpus,
            places=places,
            share=share_of(pool, self.job),
            own_devices=own if pool.spec.by_dra else None,
            term=self.world.term,
        )

    @cached_property
    def going(self) -> set[str]:
        """Uids of the attempts that end for them."""
        return {*self.leaving, *(live.stage_job.uid for room in self.rooms.values() for live in room.displaced)}

    @cached_property
    def taken(self) -> set[SlotRef]:
        """Slots that are lent to them, but for those that they inherit."""
        return {victim.slot for room in self.rooms.values() for victim in room.victims}

    def without(self, node: str) -> "Search":
        """The same without what is on one node, and the stock and the terms that the rest leaves."""
        rest = replace(self, rooms={name: room for name, room in self.rooms.items() if name != node})
        if not rest.rooms:
            return rest
        borrowed = gpus_of_slots(self.world, rest.claim.borrowed)
        return replace(
            rest,
            stock=stock_after(self.world, self.stock, rest.claim),
            terms=self.terms.less(borrowed),
        )

    def room(self, node: NodeStock, pods: int, *obstacles: Obstacle | None, **how: Any) -> Room | None:
        """Room on a node; None if it is not to be used now and that is all that counts."""
        found = tuple(dict.fromkeys(filter(None, (*obstacles, self.left_out.get(node.name)))))
        return None if self.strict and found else Room(node, pods, obstacles=found, **how)


def stock_after(world: World, stock: Stock, claim: Claim) -> Stock:
    """The stock once a claim is made: later jobs see its GPUs as taken and its slots as lent.

    Slots that come back from displaced claims are their engines' again, and not free. What else these leave is
    nobody's until they are gone: they stay if the one that comes is deleted before.
    """
    stopped: Counter[str] = Counter()
    for place in claim.places:
        node = stock.nodes[place.node]
        gone = {ref.uid for ref in place.displaced}
        displaced = [live for live in node.claims if live.stage_job.uid in gone]
        theirs = [here for live in displaced if (here := live.claim.on(place.node))]
        returned = {slot for here in theirs for slot in here.borrowed} - {*place.borrowed}
        lent = [slot for slot in node.slots if slot.slot in place.borrowed]
        freed = sum(taken_by(world, live.claim, place.node) for live in displaced) - gpus_of_slots(world, returned)
        stopped.update(slot.engine.metadata.uid for slot in lent if slot.serving)
        stock = stock.with_node(
            replace(
                node,
                claims=tuple(live for live in node.claims if live not in displaced),
                claimed=node.claimed + max(0, taken_by(world, claim, place.node) - freed),
                slots=tuple(_with_guest(slot, place, claim) for slot in node.slots if slot.slot not in place.borrowed),
            )
        )
    may_lose = {uid: left - stopped[uid] for uid, left in stock.may_lose.items()} if stopped else stock.may_lose
    return replace(stock, may_lose=may_lose, going=stock.going | {*claim.displaced})


def _with_guest(slot: PlacedSlot, place: Place, claim: Claim) -> PlacedSlot:
    """A slot once a claim is made: with less memory left if that is its guest."""
    return (
        replace(slot, shared=slot.shared + claim.share.percent) if claim.share and slot.slot == place.beside else slot
    )


def leaving(world: World, room: Room) -> set[Key]:
    """Pods that are gone by the time the job's pods come."""
    slots = {victim.pod for victim in room.victims if victim.pod and not sleeps(victim.engine)}
    return slots | {pod.key for live in room.displaced for pod in trainer_pods(world, live.stage_job)}
