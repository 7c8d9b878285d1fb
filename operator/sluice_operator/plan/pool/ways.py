"""In which ways may a node have room for a job: free GPUs, lent slots, the place of other training, or once that ended?

Each way is the same function for deciding and for explaining. In a strict search an obstacle ends the way. In the other
search the obstacle is noted.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property

from sluice_api.claim import Claim, NodeAllocation, SlotRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import LiveClaim, attempt_ref, ends_at, gpus_of_slots, least_first, trainer_pods
from sluice_operator.facts.slots import floor_of, pod_of, sleeps
from sluice_operator.observe.fence import each
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import World, engine_key, key_of
from sluice_operator.plan.colocation import best_beside
from sluice_operator.plan.floor import replicas_kept
from sluice_operator.plan.obstacle import Obstacle, Remedy, shown
from sluice_operator.plan.pool.preemption import preemption_obstacle
from sluice_operator.plan.pool.reservations import Reservations
from sluice_operator.plan.pool.terms import Terms
from sluice_operator.plan.pool.victims import Victims, choose_victims
from sluice_operator.plan.stock import NodeStock, PlacedSlot, Stock, is_guest, share_of


@dataclass(frozen=True, slots=True)
class NodeOption:
    """One way to give some of a job's pods their GPUs, on one node."""

    node: NodeStock
    pods: int
    victims: tuple[PlacedSlot, ...] = ()
    """Slots that are lent to the job."""
    preempted: tuple[LiveClaim, ...] = ()
    """Claims of lower priority that end for the job."""
    inherited: tuple[SlotRef, ...] = ()
    """Slots that are lent to these claims now, and to the job afterwards."""
    beside: PlacedSlot | None = None
    """The slot beside which the job trains, as a guest."""
    obstacles: tuple[Obstacle, ...] = ()
    """What keeps the option from being used now."""

    @property
    def place(self) -> NodeAllocation:
        """The option as a claim spells it."""
        return NodeAllocation(
            node=self.node.name,
            pods=self.pods,
            borrowed=(*self.inherited, *(victim.slot for victim in self.victims)),
            preempted=tuple(attempt_ref(live, self.node.name) for live in self.preempted),
            beside=self.beside.slot if self.beside else None,
        )


def pods_that_leave(world: World, room: NodeOption) -> set[Key]:
    """Pods that are gone by the time the job's pods come."""
    slots = {victim.pod for victim in room.victims if victim.pod and not sleeps(victim.engine)}
    return slots | {pod.key for live in room.preempted for pod in trainer_pods(world, live.stage_job)}


@dataclass(frozen=True)
class Search:
    """The search for places of a job's pods, as far as they are placed."""

    world: World
    stock: Stock
    job: FineTuneJob
    terms: Terms
    reserved: Reservations
    now: datetime
    left_out: Mapping[str, Obstacle]
    """Nodes that take none of its pods now, by name, with why."""
    strict: bool = True
    """True: an obstacle ends a way. False: it is noted, so that the checks that decide also explain."""
    rooms: Mapping[str, NodeOption] = field(default_factory=dict)
    """The options chosen so far, by node."""
    ending: frozenset[str] = frozenset()
    """Uids of attempts that end for this job in any case, on whatever nodes its pods are."""

    @property
    def claim(self) -> Claim:
        """What the pods placed so far hold."""
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
        """Uids of the attempts that end for the job."""
        return {*self.ending, *(live.stage_job.uid for room in self.rooms.values() for live in room.preempted)}

    @cached_property
    def taken(self) -> set[SlotRef]:
        """Slots that are newly lent to the job, without those that it inherits."""
        return {victim.slot for room in self.rooms.values() for victim in room.victims}

    @cached_property
    def too_few(self) -> Obstacle:
        """The obstacle that the pool has too few free GPUs."""
        return _too_few(self.world, self.stock, self.job)

    def without(self, node: str) -> "Search":
        """The same search without its pods on one node, with the stock and the terms that its other pods leave."""
        rest = replace(self, rooms={name: room for name, room in self.rooms.items() if name != node})
        if not rest.rooms:
            return rest
        claim = rest.claim
        less = self.terms.less(gpus_of_slots(self.world, claim.borrowed))
        return replace(rest, stock=self.stock.after(self.world, claim), terms=less)

    def usable(self, room: NodeOption, *obstacles: Obstacle | None) -> NodeOption | None:
        """The option with all obstacles: those given, its own, its node's. None if the search is strict and there are
        any.
        """
        found = [*filter(None, (*obstacles, *room.obstacles, self.left_out.get(room.node.name)))]
        if not found:
            return room
        return None if self.strict else replace(room, obstacles=tuple(dict.fromkeys(found)))


def beside(search: Search, node: NodeStock, pods: int) -> NodeOption | None:
    """Room for a guest beside a replica."""
    engines = search.terms.lenders if search.strict else search.terms.engines.keys()
    found = best_beside(node, search.job, engines, strict=search.strict)
    if found is None:
        return None
    front = search.terms.engines[found.slot.engine.metadata.uid]
    guests = [live for live in node.claims if live.claim.host == found.slot.slot]
    ends = tuple(remedy for live in guests for remedy in _holds(live, search.job).remedies)
    obstacles = (replace(obstacle, remedies=ends) for obstacle in found.obstacles)
    return search.usable(NodeOption(node, pods, beside=found.slot), front, *obstacles)


Way = Callable[[Search, NodeStock, int], NodeOption | None]
"""The option that a node offers to this many of the job's pods, given where the others are; None if it has no room."""


def free(search: Search, node: NodeStock, pods: int) -> NodeOption | None:
    """Room on free GPUs."""
    if node.free < pods * search.job.spec.resources.gpus:
        return None
    return search.usable(NodeOption(node, pods), search.terms.takes_free, search.reserved.nodes.get(node.name))


def lent(search: Search, node: NodeStock, pods: int) -> NodeOption | None:
    """Room on lent slots, with spare GPUs of the node unless they are reserved for jobs in front."""
    terms = search.terms
    if not node.slots or (search.strict and not any(s.engine.metadata.uid in terms.lenders for s in node.slots)):
        return None
    spare = 0 if node.name in search.reserved.nodes or terms.takes_free else node.soon
    lacking = pods * search.job.spec.resources.gpus - spare
    beyond = terms.beyond(lacking) or terms.borrows
    if lacking <= 0 or (search.strict and (node.is_crowded or beyond)):
        return None
    if sum(slot.gpus for slot in node.slots) < lacking:
        return None
    found = choose_victims(search.stock, node, lacking, terms.engines, search.now, strict=search.strict)
    if found is None:
        return None
    return search.usable(NodeOption(node, pods, found.slots), terms.borrows, beyond, _crowd(node), *found.obstacles)


def _crowd(node: NodeStock) -> Obstacle | None:
    """Why nothing on a node is lent or preempted: pods there already wait for others' GPUs. None if none do."""
    if not node.is_crowded:
        return None
    message = f"On {node.name} more GPUs are spoken for than there are."
    return Obstacle(Reason.WAITING_FOR_GPUS, message, ends_with=(node.node.key,))


def in_place_of_preempted(search: Search, node: NodeStock, pods: int) -> NodeOption | None:
    """Room in the place of attempts that end for the job's other pods anyway."""
    leavers = [live for live in node.claims if live.stage_job.uid in search.going]
    return _in_place_of(search, node, pods, leavers) if leavers else None


def by_preemption(search: Search, node: NodeStock, pods: int) -> NodeOption | None:
    """Room in the place of as few attempts as possible that train there and give way. Each of them is needed."""
    if not node.preemptible:
        return None
    preemptible = [live for live in node.preemptible if live.stage_job.uid not in search.stock.going]
    looks = each(
        preemptible, _key, lambda live: (live, preemption_obstacle(search.world, live, search.job, search.now))
    )
    # When explaining, training that gives way later counts too: its obstacle says when.
    known = {live.stage_job.uid: no for live, no in looks if no is None or (not search.strict and no.until)}
    candidates = [live for live, _ in looks if live.stage_job.uid in known]
    candidates.sort(key=lambda live: (known[live.stage_job.uid] is not None, *least_first(live)))
    found = _fewest(search, node, pods, candidates)
    if found is None:
        return None
    held = (known[live.stage_job.uid] for live in found.preempted)
    return search.usable(found, search.terms.preempts, search.reserved.preempts, _crowd(node), *held)


def once_ended(search: Search, node: NodeStock, pods: int) -> NodeOption | None:
    """Room once as few attempts as possible that hold GPUs there have ended."""
    holders = (live for live in node.claims if live.claim.gpus_on(node.name))
    found = _fewest(search, node, pods, sorted(holders, key=_ends_first))
    if found is None:
        return None
    ending = (_holds(live, search.job) for live in found.preempted)
    front = search.reserved.nodes.get(node.name)
    return search.usable(found, search.terms.takes_free, front, *ending)


def _holds(live: LiveClaim, job: FineTuneJob) -> Obstacle:
    """The obstacle that a claim has GPUs."""
    name = shown(live.name, job)
    ends = Remedy(f"{name} ends and gives back what it holds", key=live.key)
    message = f"{name} has {live.claim.all_gpus} GPU{'s' if live.claim.all_gpus > 1 else ''} on {live.claim.summary}."
    return Obstacle(Reason.WAITING_FOR_GPUS, message, ends_with=(live.key,), remedies=(ends,))


def emptied(search: Search, node: NodeStock, pods: int) -> NodeOption | None:
    """Room once whatever holds a node's GPUs has left it. The obstacle does not say what that is."""
    if pods * search.job.spec.resources.gpus > node.gpus:
        return None
    front = search.reserved.nodes.get(node.name)
    return search.usable(NodeOption(node, pods), search.terms.takes_free, front, search.too_few)


def _too_few(world: World, stock: Stock, job: FineTuneJob) -> Obstacle:
    """The obstacle that the pool has too few free GPUs. Replicas without a GPU come first, and some that have one may
    never serve.
    """
    asked = job.spec.resources.all_gpus
    first = f", and engines wait for {stock.lacking}, which are first" if stock.lacking else ""
    where = "for all pods at once" if job.spec.resources.nodes > 1 else "on one node"
    free = f"{stock.free} are" if stock.free else "None is"
    of = f"{stock.gpus} GPU{'s' if stock.gpus > 1 else ''}"
    message = f"{free} free of {of}, {asked} {'is' if asked == 1 else 'are'} needed {where}{first}."
    more = asked + stock.lacking
    added = Remedy(f"add {more} GPU{'s' if more > 1 else ''} to the pool", value=more)
    failing = _failing(world, stock)
    why = "which holds a GPU and can't start to serve (see its condition Ready)"
    mended = (Remedy(f"mend or delete engine {name}, {why}", key=key) for name, key in failing.items())
    ends_with = (key_of(stock.pool), *failing.values())
    return Obstacle(Reason.WAITING_FOR_GPUS, message, ends_with=ends_with, remedies=(added, *mended))


def _failing(world: World, stock: Stock) -> dict[str, Key]:
    """Engines with a replica that has GPUs and has failed to start, by their full names."""
    slots = (slot for node in stock.nodes.values() for slot in node.slots if slot.pod and not slot.serving)
    pods = ((slot.engine, pod_of(world, slot.engine, slot.slot.index)) for slot in slots)
    return {
        engine.metadata.full_name: key_of(engine) for engine, pod in pods if pod and (pod.failure or pod.fetch_failure)
    }


def _key(live: LiveClaim) -> Key:
    return live.key


def _ends_first(live: LiveClaim) -> tuple[bool, float, float]:
    """Sort key: the earliest expected end first, and claims without one last; then the oldest."""
    at = ends_at(live)
    return (at is None, at.timestamp() if at else 0.0, live.stage_job.created.timestamp())


def _fewest(search: Search, node: NodeStock, pods: int, candidates: Sequence[LiveClaim]) -> NodeOption | None:
    """Room in the place of the first candidates, as few as suffice, all of them needed; None if they never suffice."""
    for count in range(1, len(candidates) + 1):
        found = _in_place_of(search, node, pods, candidates[:count])
        if found is None:
            continue
        for spared in candidates[: count - 1]:
            fewer = [live for live in found.preempted if live is not spared]
            found = _in_place_of(search, node, pods, fewer) or found
        return found
    return None


def _in_place_of(search: Search, node: NodeStock, pods: int, preempted: Sequence[LiveClaim]) -> NodeOption | None:
    """Room once these claims are gone: on their own GPUs, on their borrowed slots if lent on, on other slots."""
    # Pods here already wait for GPUs that others have: what ends here would be theirs.
    if search.strict and node.is_crowded:
        return None
    terms = search.terms
    theirs = [(live.claim.gpus_on(node.name), place) for live in preempted if (place := live.claim.on(node.name))]
    own = sum(max(0, gpus - gpus_of_slots(search.world, place.borrowed)) for gpus, place in theirs)
    lacking = pods * search.job.spec.resources.gpus - node.soon - own
    beyond = terms.beyond(lacking) or terms.borrows if lacking > 0 else None
    if search.strict and beyond:
        return None
    inherited = _lent_on(search, [slot for _, place in theirs for slot in place.borrowed], lacking)
    lacking -= gpus_of_slots(search.world, inherited)
    victims = Victims(())
    if lacking > 0:
        found = choose_victims(search.stock, node, lacking, terms.engines, search.now, strict=search.strict)
        if found is None:
            return None
        victims = found
    crowd = _crowd(node) if node.soon + own < 0 else None
    found_there = NodeOption(node, pods, victims.slots, tuple(preempted), tuple(inherited))
    return search.usable(found_there, beyond, crowd, *victims.obstacles)


EXPLAINED_WAYS: tuple[Way, ...] = (lent, by_preemption, once_ended, emptied)
"""Besides `free`, the ways that are explained to a waiting job."""


def _lent_on(search: Search, slots: Sequence[SlotRef], gpus: int) -> list[SlotRef]:
    """Which of the slots that others borrow now are lent on to the job, for about this many GPUs.

    The engine's floor may have been raised since it lent them. Then some of the slots return to the engine instead.
    """
    found: list[SlotRef] = []
    back = Counter((slot.namespace, slot.engine) for slot in slots)
    for slot in slots:
        its = (slot.namespace, slot.engine)
        engine = search.world.engines.get(engine_key(*its))
        if engine is None or engine.metadata.uid not in search.terms.lenders:
            continue
        above_floor = len(replicas_kept(search.stock, engine)) + back[its] > floor_of(engine)
        if above_floor and gpus_of_slots(search.world, found) < gpus:
            found.append(slot)
            back[its] -= 1
    return found


def no_slot(job: FineTuneJob) -> Obstacle:
    """Why a guest waits when no replica runs that would have room for it."""
    name, share = job.metadata.namespace, job.spec.scheduling.share
    message = f"No replica of namespace {name} that leaves {share} of a GPU runs on a usable node now."
    return Obstacle(Reason.WAITING_FOR_SHARE, message)
