"""Who has which GPU of a pool now?"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from sluice_api.claim import Claim, SlotRef
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.meta import STAGE_LABEL
from sluice_api.stages import Stage
from sluice_operator.facts.claims import LiveClaim, gpus_of_slots, taken_by, trainer_pods
from sluice_operator.facts.live_claims import lent_by_index, live_claims_from, live_claims_on, preemptors
from sluice_operator.facts.nodes import engines_of, holders, node_unusable, offered, pool_nodes
from sluice_operator.facts.overlap import borrowers
from sluice_operator.facts.sleeping import can_sleep, is_asleep
from sluice_operator.facts.slots import pod_of, ref, serves, sleeps, slot_of, template_of, wanted
from sluice_operator.observe.fence import each, looking_at
from sluice_operator.observe.memo import once_a_world
from sluice_operator.observe.views import BudgetView, NodeView, PodView
from sluice_operator.observe.world import World, existing, key_of
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.quotas import engine_denial, may_serve, quota_of, serving_obstacle
from sluice_operator.plan.reclaim import load_of
from sluice_operator.plan.startable import start_obstacle
from sluice_operator.plan.stock import UNBOUNDED, Held, NodeStock, PlacedSlot, Stock


@once_a_world(lambda _world, pool: (pool.metadata.name, id(pool)))  # the Stock keeps the pool, so no other gets its id
def take_stock(world: World, pool: GPUPool) -> Stock:
    """Count a pool's GPUs: claims first, then bound pods, then room for slots that should exist."""
    engines = engines_of(world, pool)
    lent = borrowers(world, [live for engine in engines for live in live_claims_from(world, engine)])
    counted = each(pool_nodes(world, pool), lambda node: node.key, lambda node: _count(world, pool, node, lent))
    stocks = {stock.name: stock for stock in counted}
    live = {live.stage_job.uid: live for stock in stocks.values() for live in stock.claims}
    held = _held_by_namespace(world, engines, lent, stocks.values(), live.values())
    waiting, refused = [], {}
    for engine, index in _unplaced(world, engines, lent, stocks):
        mine = held.get(engine.metadata.namespace, Held())
        with looking_at(key_of(engine)):
            no = _refused(world, pool, engine, mine)
        if no:
            refused[ref(engine, index)] = no
            continue
        home = _home(stocks.values(), engine.spec.resources.gpus)
        if home is None:
            waiting.append(ref(engine, index))
        else:
            stocks[home.name] = replace(home, slots=(*home.slots, _placed(world, engine, index, None)))
            held[engine.metadata.namespace] = mine.plus(serving=engine.spec.resources.gpus)
    going = preemptors(world, [live for stock in stocks.values() for live in stock.claims])
    losses = dict(each(engines, key_of, lambda engine: (engine.metadata.uid, may_lose(world, engine))))
    by_load = [engine for engine in engines if engine.spec.preemption.reclaim_above is not None]
    loads = dict(each(by_load, key_of, lambda engine: (engine.metadata.uid, load_of(world, engine))))
    lacking = sum(_gpus_lacking(world, pool, engines, lent, stocks.values(), held))
    homes: dict[str, dict[str, None]] = {}
    for node in stocks.values():
        for slot in node.slots:
            homes.setdefault(slot.engine.metadata.uid, {})[node.name] = None
    return Stock(
        pool, tuple(engines), stocks, homes, tuple(waiting), loads, losses, frozenset(going), refused, held, lacking
    )


def _gpus_lacking(
    world: World,
    pool: GPUPool,
    engines: Iterable[InferenceEngine],
    lent: Iterable[SlotRef],
    nodes: Iterable[NodeStock],
    held: Mapping[str, Held],
) -> Iterator[int]:
    """GPUs of the replicas of each engine that would start if there were GPUs, and that neither have a place nor are
    lent.
    """
    has = Counter((slot.namespace, slot.engine) for slot in {*lent, *(s.slot for node in nodes for s in node.slots)})
    held = dict(held)
    for engine in engines:
        namespace, gpus = engine.metadata.namespace, engine.spec.resources.gpus
        missing = engine.spec.replicas - has[namespace, engine.metadata.name]
        mine = held.get(namespace, Held())
        if missing <= 0 or key_of(engine) in world.refused:
            continue
        with looking_at(key_of(engine)):
            if _refused(world, pool, engine, mine):
                continue
        starting = min(missing, may_serve(quota_of(world, pool, namespace), mine) // gpus)
        held[namespace] = mine.plus(serving=starting * gpus)
        yield starting * gpus


def _held_by_namespace(
    world: World,
    engines: Iterable[InferenceEngine],
    lent: Mapping[SlotRef, LiveClaim],
    nodes: Iterable[NodeStock],
    claims: Iterable[LiveClaim],
) -> dict[str, Held]:
    """What each namespace has of a pool: its jobs' claims, and its replicas that have a place or are lent.

    A claim that is over counts until its pods are gone.
    """
    nodes, found = list(nodes), dict[str, Held]()
    for node in nodes:
        for namespace, gpus in node.ending.items():
            found[namespace] = found.get(namespace, Held()).plus(gpus)
    for live in claims:
        namespace = live.job.metadata.namespace
        found[namespace] = found.get(namespace, Held()).with_claim(world, live.claim, namespace)
    placed = {slot.slot: slot.gpus for node in nodes for slot in node.slots}
    sizes = {(e.metadata.namespace, e.metadata.name): e.spec.resources.gpus for e in engines}
    for slot in {*placed, *lent}:
        gpus = placed.get(slot) or sizes.get((slot.namespace, slot.engine), 0)
        found[slot.namespace] = found.get(slot.namespace, Held()).plus(serving=gpus)
    return found


def _refused(world: World, pool: GPUPool, engine: InferenceEngine, held: Held) -> Obstacle | None:
    """Why a pool starts no further replica of an engine, however many GPUs are free; None if it does."""
    quota = quota_of(world, pool, engine.metadata.namespace)
    starts = start_obstacle(world, pool, engine)
    return starts or engine_denial(world, pool, engine) or serving_obstacle(pool, quota, engine, held)


def _count(world: World, pool: GPUPool, node: NodeView, lent: Mapping[SlotRef, LiveClaim]) -> NodeStock:
    name = pool.spec.counted_as
    here = [live for live in live_claims_on(world, node.key.name) if live.claim.resource == name]
    going = preemptors(world, here)
    freed = {live.stage_job.uid: 0 for live in here}
    slots, leaving, others = [], 0, 0
    ending: dict[str, int] = {}
    for gpus, pod, owner in holders(world, node, name):
        attempt = pod.owner.uid if pod and pod.owner else ""
        if attempt in freed and attempt not in going:  # counted with its claim below
            continue
        borrower = lent.get(ref(*owner)) if owner else None
        preemptor = borrower.stage_job.uid if borrower else going.get(attempt, "")
        if preemptor in freed:  # still here, and on their way to a claim on this node
            freed[preemptor] += gpus
        elif borrower:  # the slot was lent from another node
            leaving += gpus
        elif owner:
            with looking_at(key_of(owner[0])):
                slot = _placed(world, *owner, pod)
                slots.append(_beside_jobs(world, slot, node, pod, here) if pool.spec.by_dra else slot)
        elif pod and pod.labels.get(STAGE_LABEL) == Stage.TRAIN:
            ending[pod.key.namespace] = ending.get(pod.key.namespace, 0) + gpus
        else:
            others += gpus
    staying = [(live.claim, live.stage_job.uid) for live in here if live.stage_job.uid not in going]
    claimed = sum(_held(world, claim, node.key.name, freed[uid]) for claim, uid in staying)
    return NodeStock(
        node=node,
        gpus=offered(world, node, name),
        unusable=node_unusable(node, name, pool),
        claims=tuple(here),
        claimed=claimed,
        slots=tuple(slots),
        leaving=leaving,
        ending=ending,
        others=others,
    )


def _held(world: World, claim: Claim, node: str, still_there: int) -> int:
    """GPUs of a node that a claim takes now. It is more than in the end while larger slots or attempts are still there.

    Args:
        still_there: GPUs on the node of slots and attempts that the claim takes over.
    """
    own, place = claim.gpus_on(node), claim.on(node)
    taken_over = sum(ref.gpus for ref in place.preempted) + gpus_of_slots(world, place.borrowed) if place else 0
    return max(taken_by(world, claim, node), still_there + max(0, own - taken_over))


def _beside_jobs(
    world: World, slot: PlacedSlot, node: NodeView, pod: PodView | None, claims: Iterable[LiveClaim]
) -> PlacedSlot:
    """A slot with what its guests use. A guest whose claim is over counts until its pods are gone."""
    alive = {live.stage_job.uid for live in claims}
    shared = sum(
        visit.claim.share.percent
        for visit in world.claims_on.get(node.key.name, {}).values()
        if visit.claim and visit.claim.share and visit.claim.host == slot.slot
        if visit.uid in alive or any(not pod.ended for pod in trainer_pods(world, visit))
    )
    return replace(slot, shared=shared, takes_guests=pod is not None and _takes_guests(world, slot, pod))


def _takes_guests(world: World, slot: PlacedSlot, pod: PodView) -> bool:
    """Whether a slot's vLLM stays, and takes as much memory as its spec says: no older spec, not asleep."""
    engine, index = slot.engine, slot.slot.index
    deployment = slot_of(world, engine, index)
    if pod.deleting or deployment is None or engine.metadata.deletion_timestamp or is_asleep(world, engine, index):
        return False
    return deployment.template == pod.template == template_of(engine)


def _unplaced(
    world: World, engines: Iterable[InferenceEngine], lent: Mapping[SlotRef, LiveClaim], stocks: Mapping[str, NodeStock]
) -> list[tuple[InferenceEngine, int]]:
    """Slots that need a place: they should exist, are not lent, and no pod of theirs is bound to any node.

    Returns:
        Engines with slot indices, in the order of `engines`, then by index.
    """
    bound = {slot.slot for stock in stocks.values() for slot in stock.slots}
    room = sum(stock.gpus for stock in stocks.values())

    def look(engine: InferenceEngine) -> list[tuple[InferenceEngine, int]]:
        found, indices = [], set(lent_by_index(lent, engine))
        for index in wanted(world, engine, indices, room):
            pod = pod_of(world, engine, index)
            elsewhere = pod is not None and bool(pod.node) and pod.node not in stocks
            if pod is None and key_of(engine) in world.refused:
                continue  # the slot can't start, so others may have its GPUs
            if index not in indices and ref(engine, index) not in bound and not elsewhere:
                found.append((engine, index))
        return found

    return [slot for slots in each(engines, key_of, look) for slot in slots]


def _home(stocks: Iterable[NodeStock], gpus: int) -> NodeStock | None:
    """The usable node with the least free GPUs that suffice, so that large gaps stay whole; None if none fits."""
    fitting = [stock for stock in stocks if not stock.unusable and stock.free >= gpus]
    return min(fitting, key=lambda stock: (stock.free, stock.name), default=None)


def _placed(world: World, engine: InferenceEngine, index: int, pod: PodView | None) -> PlacedSlot:
    reported = world.reports.get(pod.uid) if pod else None
    created = pod.created if pod else engine.metadata.creation_timestamp
    if created is None:
        raise ValueError(f"{engine.metadata.name} has no creation timestamp")
    return PlacedSlot(
        slot=ref(engine, index),
        engine=engine,
        gpus=engine.spec.resources.gpus,
        created=created,
        pod=pod.key if pod else None,
        serving=serves(pod),
        in_flight=reported.report.in_flight if reported else 0,
        stays=pod is None or slot_of(world, engine, index) is not None,
        lendable=not sleeps(engine) or can_sleep(world, engine, index),
    )


def may_lose(world: World, engine: InferenceEngine) -> int:
    """How many of an engine's serving replicas the strictest PodDisruptionBudget lets go now; UNBOUNDED without one.

    Replicas that are lent and still serve are going already, and are subtracted from what a budget allows.
    """
    budgets = world.budgets_in.get(engine.metadata.namespace, {}).values()
    if not budgets:
        return UNBOUNDED
    lent = {slot for live in live_claims_from(world, engine) for slot in live.claim.borrowed}
    serving = {i: pod for i in existing(world, engine) if serves(pod := pod_of(world, engine, i)) and pod}
    left = UNBOUNDED
    for budget in budgets:
        meant = {i for i, pod in serving.items() if _is_about(budget, pod)}
        going = sum(1 for index in meant if ref(engine, index) in lent)
        if meant:  # a budget that selects no serving replica bounds none
            left = min(left, max(0, budget.allowed - going))
    return left


def _is_about(budget: BudgetView, pod: PodView) -> bool:
    return budget.pods is not None and budget.pods.selects(pod.labels)
