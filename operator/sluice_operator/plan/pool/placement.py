"""Where does a job fit: on which nodes, on which borrowed slots, in the place of which training?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_operator.facts.fit import exceeds, need_of, never_reaches, volume_claims_of
from sluice_operator.observe.world import World
from sluice_operator.plan.avoided_nodes import avoided
from sluice_operator.plan.obstacle import Obstacle, Remedy, WaysToStart
from sluice_operator.plan.pool.reservations import Reservations
from sluice_operator.plan.pool.terms import Terms
from sluice_operator.plan.pool.waiting import hardness, place_in_order
from sluice_operator.plan.pool.ways import (
    EXPLAINED_WAYS,
    NodeOption,
    Search,
    Way,
    beside,
    by_preemption,
    emptied,
    free,
    in_place_of_preempted,
    lent,
    no_slot,
    pods_that_leave,
)
from sluice_operator.plan.preflight import lack_on
from sluice_operator.plan.stock import NodeStock, Stock, is_guest

_NODES_EXPLAINED = 8
"""The most nodes that are searched for what keeps a job from them."""


_LACKS_EXPLAINED = 8
"""The most node options, the nearest, that are checked for what they lack besides GPUs."""


def place(
    world: World, stock: Stock, job: FineTuneJob, terms: Terms, reserved: Reservations, now: datetime
) -> Claim | None:
    """The best claim for all of a job's pods; None if one of the pods has no place.

    Pods are placed one by one: on free GPUs first, then on borrowed ones, then in the place of other training. When a
    node takes one pod more, what it gives to all of them is chosen again as a whole, so that it gives no more than
    needed.

    Args:
        reserved: what is kept for jobs in front. While they could use some node, no training gives way to this job.
    """
    search = _search(world, stock, job, terms, reserved, now, strict=True)
    nodes = [node for node in stock.nodes.values() if node.name not in search.left_out]
    group = _filled(search, _ways(search), nodes)
    if group and group.going and len(group.claim.nodes) > 1:  # who ends frees GPUs on other nodes too: use those first
        again = replace(group, rooms={}, ending=frozenset(group.going))
        group = _filled(again, _ways(again), nodes) or group
    return group.claim if group else None


def obstructed(
    world: World, stock: Stock, job: FineTuneJob, terms: Terms, reserved: Reservations, now: datetime
) -> WaysToStart:
    """The ways in which a job without a place could start, the nearest first, each with all its obstacles."""
    search = _search(world, stock, job, terms, reserved, now, strict=False)
    guest = is_guest(stock.pool, job)
    kinds: Sequence[tuple[Way, ...]] = [(beside,)] if guest else [(free, way) for way in EXPLAINED_WAYS]
    nodes = _explained(search)
    groups = ((kind, group) for kind in kinds if (group := _filled(search, kind, nodes)))
    found = [(emptied in kind, _met(group)) for kind, group in groups]
    ways = _needed(obstacles for _, obstacles in sorted(found, key=lambda one: (one[0], hardness(one[1]))))
    if not ways:
        ways = [(no_slot(job) if guest else search.too_few,)]
    if asks := terms.asks:
        # A job that asks for nodes is told that first, whatever else it met.
        ways = [(asks, *(obstacle for obstacle in ways[0] if obstacle != asks)), *ways[1:]]
    return ways


def _search(
    world: World, stock: Stock, job: FineTuneJob, terms: Terms, reserved: Reservations, now: datetime, *, strict: bool
) -> Search:
    """A search for the places of a job, on what the jobs in front leave.

    Args:
        strict: whether it decides (an obstacle ends a way) or explains (an obstacle is noted).
    """
    left = terms.kept(reserved.lenders)
    return Search(world, stock, job, left, reserved, now, _left_out(world, stock, job, now), strict)


def _met(search: Search) -> tuple[Obstacle, ...]:
    """The obstacles of all pods in the order in which they are shown: the job's own policy first.

    If several jobs are in front, only the first is shown.
    """
    found = dict.fromkeys(obstacle for room in search.rooms.values() for obstacle in room.obstacles)
    fronts = [obstacle for obstacle in found if obstacle.reason is Reason.BEHIND_IN_QUEUE]
    first = next((front for front in search.reserved.fronts if front in fronts), None)
    shown = (obstacle for obstacle in found if obstacle not in fronts or obstacle == first)
    return tuple(sorted(shown, key=lambda one: (one != search.terms.borrows, place_in_order(one))))


def _needed(ways: Iterable[tuple[Obstacle, ...]]) -> list[tuple[Obstacle, ...]]:
    """The ways without those that need everything that a nearer way needs."""
    found: list[tuple[Obstacle, ...]] = []
    for way in ways:
        if not any({*nearer} <= {*way} for nearer in found):
            found.append(way)
    return found


def _filled(search: Search, ways: Sequence[Way], nodes: Sequence[NodeStock]) -> Search | None:
    """The search with an option on one of these nodes for each pod; None if one pod has none."""
    if not ways:
        return None
    for _ in range(search.job.spec.resources.nodes):
        # Each pod that is placed may open a way or use it up, so the ways are asked for again.
        room = _next_room(search, nodes, _ways(search) if search.strict else ways)
        if room is None:
            return None
        search = replace(search, rooms={**search.rooms, room.node.name: room})
    return search


def _explained(search: Search) -> list[NodeStock]:
    """The nodes that a job is told about: those that could ever take a pod of it, first those with the most GPUs that
    are free or that engines lend to it.
    """

    def most_first(node: NodeStock) -> tuple[bool, int]:
        lent = sum(slot.gpus for slot in node.slots if slot.engine.metadata.uid in search.terms.reserves)
        return (node.name in search.left_out, -(node.free + lent))

    need, claims = need_of(search.job.spec.resources), volume_claims_of(search.world, search.job)
    found: list[NodeStock] = []
    for node in sorted(search.stock.nodes.values(), key=most_first):
        never = exceeds(search.world, node.node, need) or never_reaches(
            search.world, search.job.metadata.namespace, claims, node.node
        )
        if not never:
            found.append(node)
        if len(found) == _NODES_EXPLAINED:
            break
    return found


def _ways(search: Search) -> list[Way]:
    """The ways in which a job may get GPUs now, the best first. Most jobs of a long queue have none."""
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
    """The best option for one pod more: alone on a node, or together with the job's pods that are there already."""
    # A node that takes one pod more is searched as if none of the job's pods were on it yet.
    searches = {name: (search.without(name), room.pods + 1) for name, room in search.rooms.items()}
    first = (search.without(""), 1) if search.rooms else (search, 1)
    asked = [(node, *searches.get(node.name, first)) for node in nodes]
    noted: list[NodeOption] = []
    for way in ways:
        rooms = [room for node, seen, pods in asked if (room := way(seen, node, pods)) is not None]
        if not search.strict:
            noted += rooms
        elif (best := _best(search, rooms)) is not None:
            return best
    return _nearest(search, noted)


def _best(search: Search, rooms: Iterable[NodeOption]) -> NodeOption | None:
    """The option that disturbs the fewest others, among those where the pods also fit in everything besides GPUs."""
    for room in sorted(rooms, key=lambda room: _disruption(search, room)):
        kept = search.reserved.room_on(room.node)
        if not lack_on(search.world, room.node, search.job, pods_that_leave(search.world, room), room.pods, kept):
            return room
    return None


def _nearest(search: Search, rooms: Iterable[NodeOption]) -> NodeOption | None:
    """The option with the fewest obstacles, where a lack of anything besides GPUs counts too."""
    order = sorted(rooms, key=lambda room: (hardness(room.obstacles), _disruption(search, room)))
    whole: list[NodeOption] = []
    for room in order[:_LACKS_EXPLAINED]:
        whole.append(_with_lack(search, room))
        if whole[-1] is room:  # it lacks nothing else, and those after it have as many obstacles without that
            break
    return min(whole, key=lambda room: hardness(room.obstacles), default=None)


def _with_lack(search: Search, room: NodeOption) -> NodeOption:
    """The option, with what it lacks besides GPUs as an obstacle."""
    gone = pods_that_leave(search.world, room)
    if lack := lack_on(search.world, room.node, search.job, gone, room.pods):
        return replace(room, obstacles=(*room.obstacles, lack))
    front = search.reserved.nodes.get(room.node.name)
    kept = search.reserved.room_on(room.node)
    if front and front not in room.obstacles and lack_on(search.world, room.node, search.job, gone, room.pods, kept):
        # Cpu, memory or disk that it needs there is kept for the job in front.
        return replace(room, obstacles=(front, *room.obstacles))
    return room


def _disruption(search: Search, room: NodeOption) -> tuple[int, int, int, int, str]:
    """Sort key for options of one kind: least additional disruption first, then the tightest fit."""
    victims = [victim for victim in room.victims if victim.slot not in search.taken]
    preempted = sum(1 for live in room.preempted if live.stage_job.uid not in search.going)
    in_flight = sum(slot.in_flight for slot in (*victims, *filter(None, [room.beside])))
    return (preempted, len(victims), in_flight, room.node.free, room.node.name)


def _left_out(world: World, stock: Stock, job: FineTuneJob, now: datetime) -> Mapping[str, Obstacle]:
    """Nodes that take no pod of the job now, by name, with why."""
    refused = {node.name: _refused(node) for node in stock.nodes.values() if node.unusable}
    return {**{name: one.obstacle for name, one in avoided(world, stock, job, now).items()}, **refused}


def _refused(node: NodeStock) -> Obstacle:
    remedies = (Remedy(f"have {node.name} take pods again", key=node.node.key), Remedy("add a node"))
    return Obstacle(Reason.NO_NODES, f"{node.name} is {node.unusable}.", ends_with=(node.node.key,), remedies=remedies)
