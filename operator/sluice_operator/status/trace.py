"""What is decided about one job, in full and for a person? Its claim and how far that is, or its place in the queue,
and for each node, training and engine why it does not help.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

from sluice_api.claim import AttemptRef, Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import ASLEEP, InferenceEngine
from sluice_operator.facts.claims import LiveClaim, Phase, phase_by_pods
from sluice_operator.facts.live_claims import live_claims, live_claims_of
from sluice_operator.facts.nodes import engines_of, find_pool
from sluice_operator.facts.sleeping import is_asleep
from sluice_operator.facts.slots import floor_of, is_drained, pod_of, sleeps
from sluice_operator.observe.world import World, engine_key, key_of
from sluice_operator.plan.avoided_nodes import Avoided, avoided
from sluice_operator.plan.floor import spare_obstacle
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.claim_steps import advance, interruption
from sluice_operator.plan.obstacle import Wait, shown
from sluice_operator.plan.pool.allocate import Allocation, allocate_fenced
from sluice_operator.plan.pool.lending import lending_obstacle
from sluice_operator.plan.pool.preemption import preemption_obstacle
from sluice_operator.plan.pool.queue import line_up
from sluice_operator.plan.pool.refusals import refusal_at
from sluice_operator.plan.pool.scale_up import scale_ups_of
from sluice_operator.plan.pool.victims import spared
from sluice_operator.plan.pool.waiting import asked
from sluice_operator.plan.preflight import lack_on, phase_of
from sluice_operator.plan.stock import NodeStock, Stock
from sluice_operator.settings import Limits

_MOST = 20
"""The most lines of a section that are shown; the others are counted."""


def trace(world: World, job: FineTuneJob, now: datetime, limits: Limits) -> Iterator[str]:
    """Lines that say what is decided about a job now, and why."""
    resources, scheduling = job.spec.resources, job.spec.scheduling
    yield (
        f"{job.metadata.full_name}: {asked(job)} of pool {resources.pool}, policy {scheduling.policy}, "
        f"priority {scheduling.priority}"
    )
    pool = find_pool(world, resources.pool)
    refused = refusal_at(world, job, now)
    if pool is None or refused:
        yield f"  refused: {refused.reason}: {refused.message}" if refused else f"  there is no pool {resources.pool}"
        return
    allocation = allocate_fenced(world, pool, now)
    yield f"  {_verdict(world, job, allocation)}"
    stock = take_stock(world, pool)
    mine = live_claims_of(world, job)
    for live in mine:
        yield from _section("claim", list(_claim(world, live, now, limits)))
    yield from _section("queue", list(_queue(world, pool, job, allocation, now)))
    if ways := list(_ways(allocation.waits.get(key_of(job)))):
        yield from _section("could start", [shown(way, job) for way in ways])
    left_out = avoided(world, stock, job, now)
    yield from _section("nodes", [_node(world, node, job, left_out.get(node.name)) for node in stock.nodes.values()])
    others = [live for live in stock.claims if live.job is not job]
    gives_way = ("" if mine else f"; {_training(world, live, job, allocation, now)}" for live in others)
    yield from _section("training", [f"{_has(live)}{way}" for live, way in zip(others, gives_way, strict=True)])
    yield from _section("engines", [_engine(world, stock, engine, job, now) for engine in engines_of(world, pool)])
    if pods := [
        pod for pod in scale_ups_of(world, pool.metadata.name) if pod.owner and pod.owner.uid == job.metadata.uid
    ]:
        yield from _section("asks for nodes", [f"{pod.key.name}: {pod.node or 'has none'}" for pod in pods])


def _verdict(world: World, job: FineTuneJob, allocation: Allocation) -> str:
    for live in live_claims_of(world, job):
        return f"holds {_spelled(live.claim)}"
    if claim := allocation.claims.get(key_of(job)):
        return f"is given {_spelled(claim)}"
    if wait := allocation.waits.get(key_of(job)):
        return f"waits: {wait.reason}: {wait.message}"
    return "asks for no GPUs now: see its conditions"


def _spelled(claim: Claim) -> str:
    slots = ", ".join(map(str, claim.borrowed)) or "no engine"
    gone = ", ".join(sorted(f"{ref.namespace}/{ref.job}" for place in claim.places for ref in place.preempted))
    if claim.share and claim.host:
        return f"{claim.share.percent}% of a GPU on {claim.summary}, beside {claim.host}"
    return f"{claim.all_gpus} GPU on {claim.summary}, borrowed from {slots}" + (f", in place of {gone}" if gone else "")


def _queue(world: World, pool: GPUPool, job: FineTuneJob, allocation: Allocation, now: datetime) -> Iterator[str]:
    for place, other in enumerate(line_up(world, pool, now).pending, start=1):
        wait = allocation.waits.get(key_of(other))
        mark, what = "*" if other is job else " ", wait.reason if wait else "starts"
        yield f"{mark} {place}. {other.metadata.full_name}, priority {other.spec.scheduling.priority}: {what}"


def _node(world: World, node: NodeStock, job: FineTuneJob, left_out: Avoided | None) -> str:
    claims = ", ".join(live.name for live in node.claims)
    slots = ", ".join(f"{s.slot} (jobs beside it use {s.shared}%)" if s.shared else str(s.slot) for s in node.slots)
    has = [
        f"{node.free} of {node.gpus} free",
        f"{node.claimed} claimed by {claims}" if claims else "",
        f"{node.inference} for {slots}" if slots else "",
        f"{node.others} used by others" if node.others else "",
    ]
    found = left_out.obstacle if left_out else lack_on(world, node, job, set())
    lack = node.unusable or (found.message if found else "")
    return f"{node.name}: {', '.join(filter(None, has))}" + (f"; no: {lack}" if lack else "")


def _has(live: LiveClaim) -> str:
    return f"{live.name}: {live.claim.all_gpus} GPU on {live.claim.summary}"


def _claim(world: World, live: LiveClaim, now: datetime, limits: Limits) -> Iterator[str]:
    """How far a claim is, what it waits for, and which claim preempts it."""
    step = advance(world, live, now, limits, "")
    yield f"attempt {live.stage_job.attempt}, {phase_of(world, live).name.lower()}: {step.reason}: {step.message}"
    for slot in live.claim.borrowed:
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        yield f"{slot}: {_makes_room(world, engine, slot.index, now) if engine else 'has stopped'}"
    claims = live_claims(world)
    for ref in (ref for place in live.claim.places for ref in place.preempted):
        yield f"in place of {ref.namespace}/{ref.job}: {_gives_way(world, ref, claims, phase_by_pods(world, live))}"
    for other in claims:
        if live.stage_job.uid in other.claim.preempted:
            yield f"gives way to {other.name}, which has its claim already"


def _gives_way(world: World, ref: AttemptRef, claims: Sequence[LiveClaim], heirs_phase: Phase) -> str:
    """How far an attempt is that a claim preempts.

    Args:
        heirs_phase: the phase of that claim.
    """
    if all(pod.ended for pod in world.pods_of.get((ref.namespace, ref.uid), {}).values()):
        return "has stopped"
    mine = next((live for live in claims if live.stage_job.uid == ref.uid), None)
    if mine is None or interruption(world, mine):
        return "is told to stop"
    if heirs_phase is Phase.HOLDING:
        return "goes on, as a GPU came free"
    return "trains until this claim is proven and bound"


def _makes_room(world: World, engine: InferenceEngine, index: int, now: datetime) -> str:
    """How far a borrowed slot is."""
    if pod_of(world, engine, index) is None:
        return "has stopped"
    if not is_drained(world, engine, index, now):
        return "still serves or drains"
    if not sleeps(engine):
        return "is drained"
    return "sleeps" if is_asleep(world, engine, index) else "goes to sleep"


def _training(world: World, live: LiveClaim, job: FineTuneJob, allocation: Allocation, now: datetime) -> str:
    """What becomes of a claim's training now: why it does not give way to the job, or that it does."""
    if obstacle := preemption_obstacle(world, live, job, now):
        return obstacle.message
    preemptor = next((other for other in live_claims(world) if live.stage_job.uid in other.claim.preempted), None)
    if preemptor is not None:
        return f"{preemptor.name} takes its place already."
    claim = allocation.claims.get(key_of(job))
    if claim is None:
        return "It would give way now."
    chosen = live.stage_job.uid in claim.preempted
    return "It gives way now, to this job." if chosen else "It is spared: there is room without its place."


def _ways(wait: Wait | None) -> Iterator[str]:
    """The ways in which a job could start, the nearest first, each with all its obstacles."""
    for number, way in enumerate(wait.ways if wait else (), start=1):
        for obstacle in way:
            remedies = " or ".join(remedy.text for remedy in obstacle.remedies)
            remedy = f" Next: {remedies}." if remedies else ""
            yield f"{number}. {obstacle.reason}: {obstacle.message}{remedy}"


def _engine(world: World, stock: Stock, engine: InferenceEngine, job: FineTuneJob, now: datetime) -> str:
    slots = stock.slots_of(engine)
    asleep = sum(1 for slot in engine.status.slots if slot.state in ASLEEP) if sleeps(engine) else 0
    has = [
        f"{len(slots)} of {engine.spec.replicas} replicas",
        f"{asleep} asleep" if asleep else "",
        f"floor {floor_of(engine)}",
    ]
    terms = f"{engine.metadata.full_name}: {', '.join(filter(None, has))}"
    if obstacle := lending_obstacle(world, stock, engine, job, now):
        return f"{terms}; no: {obstacle.reason}: {shown(obstacle.message, job)}"
    lent = spared(stock, slots, now)
    if not lent and (kept := next((no for slot in slots if (no := spare_obstacle(stock, [slot], engine, now))), None)):
        return f"{terms}; no: {kept.reason}: {shown(kept.message, job)}"
    return f"{terms}; may lend {len(lent)}"


def _section(title: str, lines: list[str]) -> Iterator[str]:
    yield f"{title}:" if lines else f"{title}: none"
    yield from (f"  {line}" for line in lines[:_MOST])
    if len(lines) > _MOST:
        yield f"  and {len(lines) - _MOST} more"
