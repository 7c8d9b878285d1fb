"""Where does it fit: the nodes of a job's pods, the slots that it borrows, the training whose place it takes?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_operator.observe.world import World
from sluice_operator.plan.obstacle import Obstacle, Remedy, Ways
from sluice_operator.plan.pool.reservations import Reservations
from sluice_operator.plan.pool.terms import Terms
from sluice_operator.plan.pool.ways import (
    EXPLAINED,
    NodeOption,
    Search,
    Way,
    beside,
    by_preemption,
    emptied,
    free,
    in_place_of_preempted,
    leaving,
    lent,
    no_slot,
    preemption_obstacles,
)
from sluice_operator.plan.preflight import lack_on
from sluice_operator.plan.readiness import avoided
from sluice_operator.plan.stock import NodeStock, Stock, is_guest

_NODES_EXPLAINED = 16
"""Nodes of which is looked for what keeps a job from them: those with the most free GPUs."""


_LACKS_EXPLAINED = 8
"""Of the rooms there, the nearest, those of which is looked for what else than GPUs they lack."""


def place(
    world: World, stock: Stock, job: FineTuneJob, terms: Terms, reserved: Reservations, now: datetime
) -> Claim | None:
    """The best places for all of a job's pods; None while one of them has none.

    Pod by pod: on free GPUs before borrowed ones, and on those before another's. What a node gives to several of
    them is chosen anew as a whole, so nothing is taken there that could be spared.

    Args:
        reserved: for jobs that wait in front of it. While they could use any node, nobody gives way.
    """
    search = _search(world, stock, job, terms, reserved, now, strict=True)
    group = _filled(search, _ways(search))
    if group and group.going and len(group.claim.nodes) > 1:  # who ends leaves room on other nodes too: that first
        again = replace(group, rooms={}, leaving=frozenset(group.going))
        group = _filled(again, _ways(again)) or group
    return group.claim if group else None


class Obstructed(NamedTuple):
    """What keeps a job from GPUs."""

    ways: Ways
    later: tuple[Obstacle, ...]
    """Why training does not give way to it now, wherever that is."""


def obstructed(
    world: World, stock: Stock, job: FineTuneJob, terms: Terms, reserved: Reservations, now: datetime
) -> Obstructed:
    """What keeps a job that has no place from each way in which it could have one, the nearest way first."""
    search = _search(world, stock, job, terms, reserved, now, strict=False)
    guest = is_guest(stock.pool, job)
    kinds: Sequence[tuple[Way, ...]] = [(beside,)] if guest else [(free, way) for way in EXPLAINED]
    groups = ((kind, group) for kind in kinds if (group := _filled(search, kind)))
    found = [(emptied in kind, _met(group)) for kind, group in groups]
    ways = _needed(obstacles for _, obstacles in sorted(found, key=lambda one: (one[0], hardness(one[1]))))
    if not ways:
        ways = [(no_slot(job),)]
    if asks := terms.asks:
        ways = [(asks, *(obstacle for obstacle in ways[0] if obstacle != asks)), *ways[1:]]
    return Obstructed(ways, tuple(preemption_obstacles(search)))


def _search(
    world: World, stock: Stock, job: FineTuneJob, terms: Terms, reserved: Reservations, now: datetime, *, strict: bool
) -> Search:
    """The search for the places of a job, on what those in front leave to it."""
    left = terms.kept(reserved.lenders)
    return Search(world, stock, job, left, reserved, now, _left_out(world, stock, job, now), strict)


def _met(search: Search) -> tuple[Obstacle, ...]:
    """The obstacles of all pods, in the order in which they are told: the job's own policy first.

    Of several jobs in front the first stands for all.
    """
    found = dict.fromkeys(obstacle for room in search.rooms.values() for obstacle in room.obstacles)
    fronts = [obstacle for obstacle in found if obstacle.reason is Reason.BEHIND_IN_QUEUE]
    first = next((front for front in search.reserved.fronts if front in fronts), None)
    shown = (obstacle for obstacle in found if obstacle not in fronts or obstacle == first)
    return tuple(sorted(shown, key=lambda one: (one != search.terms.borrows, _place_in_order(one))))


def _needed(ways: Iterable[tuple[Obstacle, ...]]) -> list[tuple[Obstacle, ...]]:
    """Without those that need all that a nearer one needs, and more."""
    found: list[tuple[Obstacle, ...]] = []
    for way in ways:
        if not any({*nearer} <= {*way} for nearer in found):
            found.append(way)
    return found


def _filled(search: Search, ways: Sequence[Way]) -> Search | None:
    """The search with a room for each pod; None if there is none for one of them."""
    if not ways:
        return None
    nodes = [node for node in search.stock.nodes.values() if not (search.strict and node.name in search.left_out)]
    if not search.strict:
        nodes = sorted(nodes, key=lambda node: (node.name in search.left_out, -node.free))[:_NODES_EXPLAINED]
    for _ in range(search.job.spec.resources.nodes):
        room = _next_room(search, nodes, _ways(search) if search.strict else ways)
        if room is None:
            return None
        search = replace(search, rooms={**search.rooms, room.node.name: room})
    return search


def _ways(search: Search) -> list[Way]:
    """How a job may come to GPUs now, the best way first; none for most of a long queue."""
    terms, reserved = search.terms, search.reserved
    if is_guest(search.stock.pool, search.job):
        return [beside] if terms.lenders else []
    ways: list[Way] = []
    if terms.takes_free is None and (not reserved.nodes or reserved.leaves_free(search.stock, search.job)):
        ways += [free, in_place_of_preempted] if search.going else [free]
    if terms.most > 0 and terms.lenders:
        ways.append(lent)
    if terms.preempts is None and not reserved.nodes:
        ways.append(by_preemption)
    return ways


def _next_room(search: Search, nodes: Sequence[NodeStock], ways: Sequence[Way]) -> NodeOption | None:
    """The best room for one pod more: on a node of its own, or together with those that are on one already."""
    elsewhere = {name: search.without(name) for name in ("", *search.rooms)}
    noted: list[NodeOption] = []
    for way in ways:
        rooms = []
        for node in nodes:
            pods = search.rooms[node.name].pods + 1 if node.name in search.rooms else 1
            room = way(elsewhere.get(node.name, elsewhere[""]), node, pods)
            if room is not None:
                rooms.append(room)
        if not search.strict:
            noted += rooms
        elif (best := _best(search, rooms)) is not None:
            return best
    return _nearest(search, noted)


def _best(search: Search, rooms: Iterable[NodeOption]) -> NodeOption | None:
    """The room where the fewest are disturbed, of those where the pods fit for every other reason than GPUs too."""
    for room in sorted(rooms, key=lambda room: _disruption(search, room)):
        kept = search.reserved.room_on(room.node)
        if not lack_on(search.world, room.node, search.job, leaving(search.world, room), room.pods, kept):
            return room
    return None


def _nearest(search: Search, rooms: Iterable[NodeOption]) -> NodeOption | None:
    """The room with the fewest obstacles, what it lacks besides GPUs among them."""
    order = sorted(rooms, key=lambda room: (hardness(room.obstacles), _disruption(search, room)))
    whole = (_with_lack(search, room) for room in order[:_LACKS_EXPLAINED])
    return min(whole, key=lambda room: hardness(room.obstacles), default=None)


def _with_lack(search: Search, room: NodeOption) -> NodeOption:
    gone = leaving(search.world, room)
    if lack := lack_on(search.world, room.node, search.job, gone, room.pods):
        return replace(room, obstacles=(*room.obstacles, lack))
    front = search.reserved.nodes.get(room.node.name)
    kept = search.reserved.room_on(room.node)
    if front and front not in room.obstacles and lack_on(search.world, room.node, search.job, gone, room.pods, kept):
        return replace(
            room, obstacles=(front, *room.obstacles)
        )  # what else it needs there is kept for the one in front
    return room


def _disruption(search: Search, room: NodeOption) -> tuple[int, int, int, int, str]:
    """Sort key, of rooms of one kind: whoever is disturbed the least beyond what is settled, then the tightest fit."""
    victims = [victim for victim in room.victims if victim.slot not in search.taken]
    preempted = sum(1 for live in room.preempted if live.stage_job.uid not in search.going)
    in_flight = sum(slot.in_flight for slot in (*victims, *filter(None, [room.beside])))
    return (preempted, len(victims), in_flight, room.node.free, room.node.name)


def _left_out(world: World, stock: Stock, job: FineTuneJob, now: datetime) -> Mapping[str, Obstacle]:
    refused = {node.name: _refused(node) for node in stock.nodes.values() if node.refusal}
    return {**{name: one.obstacle for name, one in avoided(world, stock, job, now).items()}, **refused}


def _refused(node: NodeStock) -> Obstacle:
    remedy = Remedy(f"have {node.name} take pods again, or add a node", key=node.node.key)
    return Obstacle(Reason.NO_NODES, f"{node.name} is {node.refusal}.", ends_with=(node.node.key,), remedies=(remedy,))


_ORDER = (
    Reason.SCALING_UP,
    Reason.BEHIND_IN_QUEUE,
    Reason.NODE_AVOIDED,
    Reason.ENGINE_MUST_SLEEP,
    Reason.ENGINE_CANNOT_SLEEP,
    Reason.ENGINE_NEVER_LENDS,
    Reason.ENGINE_LENDS_ELSEWHERE,
    Reason.ENGINE_PRIORITY_HIGHER,
    Reason.MULTI_NODE_BORROWS_NONE,
    Reason.TIME_ZONE_UNKNOWN,
    Reason.ENGINE_LENDS_LATER,
    Reason.ENGINE_COOLS_DOWN,
    Reason.ENGINE_IN_DEMAND,
    Reason.ENGINE_HAS_GUESTS,
    Reason.ENGINE_NOT_READY_TO_SLEEP,
    Reason.ENGINE_AT_FLOOR,
    Reason.ENGINE_PROTECTED,
    Reason.NAMESPACE_QUOTA,
)
"""Which of several obstacles of one way is told first; all others after them."""


_EASE = {
    **dict.fromkeys((Reason.SCALING_UP, Reason.NODE_AVOIDED, Reason.ENGINE_COOLS_DOWN, Reason.ENGINE_LENDS_LATER), 0),
    **dict.fromkeys((Reason.ENGINE_IN_DEMAND, Reason.BEHIND_IN_QUEUE), 1),
    **dict.fromkeys((Reason.ENGINE_AT_FLOOR, Reason.ENGINE_PROTECTED), 2),
    **dict.fromkeys((Reason.ENGINE_HAS_GUESTS, Reason.ENGINE_NOT_READY_TO_SLEEP, Reason.NAMESPACE_QUOTA), 3),
    **dict.fromkeys((Reason.UNSCHEDULABLE, Reason.WAITING_FOR_GPUS, Reason.WAITING_FOR_SHARE), 5),
    Reason.NO_NODES: 6,
}


_TERMS = 4
"""All others: what a lender agrees to."""


def hardness(obstacles: Sequence[Obstacle]) -> tuple[int, ...]:
    """Sort key of ways to start: fewer obstacles first, then those that pass by themselves, then those that others can
    lift, and last those about which nobody can do anything.
    """
    helpless = sum(1 for obstacle in obstacles if obstacle.until is None and not obstacle.remedies)
    return (len(obstacles), *sorted(_EASE.get(obstacle.reason, _TERMS) for obstacle in obstacles), helpless)


def _place_in_order(obstacle: Obstacle) -> int:
    return _ORDER.index(obstacle.reason) if obstacle.reason in _ORDER else len(_ORDER)
