"""Where a job's pods go: the nodes, the slots that it borrows, the training of lower priority whose place it takes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from sluice_api.claim import Claim, Place, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, engine_key
from sluice_operator.plan.allocation.avoided import avoided
from sluice_operator.plan.allocation.borrowing import Terms
from sluice_operator.plan.allocation.fit import lack_on
from sluice_operator.plan.allocation.guests import best_beside, is_guest
from sluice_operator.plan.allocation.interruption import attempt_ref, may_displace
from sluice_operator.plan.allocation.inventory import NodeStock, PlacedSlot, Stock
from sluice_operator.plan.allocation.kept import Kept
from sluice_operator.plan.allocation.victims import choose_victims, staying
from sluice_operator.plan.facts.attempts import trainer_pods
from sluice_operator.plan.facts.claims import LiveClaim, gpus_of_slots, taken_by
from sluice_operator.plan.facts.sharing import share_of
from sluice_operator.plan.facts.slots import floor_of, sleeps


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
class Group:
    """A job's pods, as far as they are placed."""

    world: World
    stock: Stock
    job: FineTuneJob
    terms: Terms
    kept: Kept
    now: datetime
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

    def without(self, node: str) -> "Group":
        """The same without what is on one node, and the stock and the terms that the rest leaves."""
        rest = replace(self, rooms={name: room for name, room in self.rooms.items() if name != node})
        if not rest.rooms:
            return rest
        borrowed = gpus_of_slots(self.world, rest.claim.borrowed)
        return replace(
            rest,
            stock=stock_after(self.world, self.stock, self.job, rest.claim),
            terms=replace(self.terms, most=self.terms.most - borrowed),
        )


def place(world: World, stock: Stock, job: FineTuneJob, terms: Terms, kept: Kept, now: datetime) -> Claim | None:
    """The best places for all of a job's pods; None while one of them has none.

    Pod by pod: on free GPUs before borrowed ones, and on those before another's. What a node gives to several of
    them is chosen anew as a whole, so nothing is taken there that could be spared.

    Args:
        kept: for jobs that wait in front of it. While they could use any node, nobody gives way.
    """
    group = _filled(Group(world, stock, job, terms, kept, now))
    if group and group.going and len(group.claim.nodes) > 1:  # who ends leaves room on other nodes too: that first
        group = _filled(replace(group, rooms={}, leaving=frozenset(group.going))) or group
    return group.claim if group else None


def _filled(group: Group) -> Group | None:
    """The group with a room for each pod; None if there is none for one of them."""
    if not _ways(group):
        return None
    left_out = avoided(group.world, group.stock, group.job, group.now)
    nodes = [node for node in group.stock.nodes.values() if not node.refusal and node.name not in left_out]
    for _ in range(group.job.spec.resources.nodes):
        room = _next_room(group, nodes, _ways(group))
        if room is None:
            return None
        group = replace(group, rooms={**group.rooms, room.node.name: room})
    return group


def stock_after(world: World, stock: Stock, job: FineTuneJob, claim: Claim) -> Stock:
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
    return replace(stock, may_lose=may_lose).with_granted(job, claim)


def _with_guest(slot: PlacedSlot, place: Place, claim: Claim) -> PlacedSlot:
    """A slot once a claim is made: with less memory left if that is its guest."""
    return (
        replace(slot, shared=slot.shared + claim.share.percent) if claim.share and slot.slot == place.beside else slot
    )


Way = Callable[[Group, NodeStock, int], Room | None]
"""Room for a number of pods on a node, given what is elsewhere."""


def _ways(group: Group) -> list[Way]:
    """How a job may come to GPUs now, the best way first; none for most of a long queue."""
    if is_guest(group.stock.pool, group.job):
        return [_beside] if group.terms.lenders else []
    ways: list[Way] = []
    if group.terms.takes_free and (not group.kept.nodes or group.kept.leaves_free(group.stock, group.job)):
        ways += [_free, _in_place_of_leavers] if group.going else [_free]
    if group.terms.most > 0 and group.terms.lenders:
        ways.append(_lent)
    if group.terms.displaces and not group.kept.nodes:
        ways.append(_instead)
    return ways


def _next_room(group: Group, nodes: Sequence[NodeStock], ways: Sequence[Way]) -> Room | None:
    """The best room for one pod more: on a node of its own, or together with those that are on one already."""
    elsewhere = {name: group.without(name) for name in ("", *group.rooms)}
    for way in ways:
        rooms = []
        for node in nodes:
            pods = group.rooms[node.name].pods + 1 if node.name in group.rooms else 1
            room = way(elsewhere.get(node.name, elsewhere[""]), node, pods)
            if room is not None:
                rooms.append(room)
        for room in sorted(rooms, key=lambda room: _cost(group, room)):
            kept = group.kept.room_on(room.node)
            if not lack_on(group.world, room.node, group.job, _leaving(group.world, room), room.pods, kept):
                return room
    return None


def _cost(group: Group, room: Room) -> tuple[int, int, int, int, str]:
    """Sort key, of rooms of one kind: whoever is disturbed the least beyond what is settled, then the tightest fit."""
    victims = [victim for victim in room.victims if victim.slot not in group.taken]
    displaced = sum(1 for live in room.displaced if live.stage_job.uid not in group.going)
    in_flight = sum(slot.in_flight for slot in (*victims, *filter(None, [room.beside])))
    return (displaced, len(victims), in_flight, room.node.free, room.node.name)


def _free(group: Group, node: NodeStock, pods: int) -> Room | None:
    """Room among what nobody has."""
    if node.name in group.kept.nodes:
        return None
    return Room(node, pods) if node.free >= pods * group.job.spec.resources.gpus else None


def _beside(group: Group, node: NodeStock, pods: int) -> Room | None:
    """Room for a guest."""
    slot = best_beside(node, group.job, group.terms.lenders)
    return Room(node, pods, beside=slot) if slot else None


def _lent(group: Group, node: NodeStock, pods: int) -> Room | None:
    """Room with slots that are lent, and what is spare unless it belongs to those in front."""
    spare = 0 if node.name in group.kept.nodes or not group.terms.takes_free else node.soon
    lacking = pods * group.job.spec.resources.gpus - spare
    if node.is_crowded or not 0 < lacking <= group.terms.most or sum(slot.gpus for slot in node.slots) < lacking:
        return None
    victims = choose_victims(group.stock, node, lacking, group.terms.lenders)
    return Room(node, pods, victims) if victims is not None else None


def _in_place_of_leavers(group: Group, node: NodeStock, pods: int) -> Room | None:
    """Room in the place of attempts that end for the job's other pods anyway."""
    leavers = [live for live in node.claims if live.stage_job.uid in group.going]
    return _in_place_of(group, node, pods, leavers) if leavers else None


def _instead(group: Group, node: NodeStock, pods: int) -> Room | None:
    """Room in the place of as few as possible that train there. None of them could be spared."""
    yielding = [live for live in node.yielding if live.stage_job.uid not in group.stock.going]
    candidates = may_displace(group.world, yielding, group.job, group.now) if yielding else []
    for count in range(1, len(candidates) + 1):
        found = _in_place_of(group, node, pods, candidates[:count])
        if found is None:
            continue
        for spared in candidates[: count - 1]:
            fewer = [live for live in found.displaced if live is not spared]
            found = _in_place_of(group, node, pods, fewer) or found
        return found
    return None


def _in_place_of(group: Group, node: NodeStock, pods: int, displaced: Sequence[LiveClaim]) -> Room | None:
    """Room once these are gone: their own GPUs, the slots that they borrowed if they are lent on, and other slots."""
    if node.is_crowded:
        return None
    theirs = [(live.claim.gpus_on(node.name), place) for live in displaced if (place := live.claim.on(node.name))]
    own = sum(max(0, gpus - gpus_of_slots(group.world, place.borrowed)) for gpus, place in theirs)
    lacking = pods * group.job.spec.resources.gpus - node.soon - own
    if lacking > max(0, group.terms.most):
        return None
    inherited = _lent_on(group, [slot for _, place in theirs for slot in place.borrowed], lacking)
    lacking -= gpus_of_slots(group.world, inherited)
    victims = choose_victims(group.stock, node, lacking, group.terms.lenders) if lacking > 0 else ()
    return Room(node, pods, victims, tuple(displaced), tuple(inherited)) if victims is not None else None


def _lent_on(group: Group, slots: Sequence[SlotRef], gpus: int) -> list[SlotRef]:
    """Which of the slots that others borrow now, for about so many GPUs, go on being lent.

    An engine may have a higher floor than when it lent them. Then some come back to it instead.
    """
    found: list[SlotRef] = []
    back = Counter((slot.namespace, slot.engine) for slot in slots)
    for slot in slots:
        its = (slot.namespace, slot.engine)
        engine = group.world.engines.get(engine_key(*its))
        if engine is None or engine.metadata.uid not in group.terms.lenders:
            continue
        above_floor = len(staying(group.stock, engine)) + back[its] > floor_of(engine)
        if above_floor and gpus_of_slots(group.world, found) < gpus:
            found.append(slot)
            back[its] -= 1
    return found


def _leaving(world: World, room: Room) -> set[Key]:
    """Pods that are gone by the time the job's pods come."""
    slots = {victim.pod for victim in room.victims if victim.pod and not sleeps(victim.engine)}
    return slots | {pod.key for live in room.displaced for pod in trainer_pods(world, live.stage_job)}
