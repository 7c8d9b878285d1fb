"""The decision about one job, spelled out: the queue, each node, training, engine, and why not. For a person."""

from collections.abc import Iterator
from datetime import datetime

from sluice_api.claim import Claim
from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import ASLEEP, InferenceEngine
from sluice_operator.observe.world import World, key_of
from sluice_operator.plan.allocation import Allocation, allocate, pending
from sluice_operator.plan.claims import LiveClaim, live_claims_of
from sluice_operator.plan.fit import lack_on
from sluice_operator.plan.interruption import gives_way_at, why_it_stays
from sluice_operator.plan.inventory import NodeStock, Stock, engines_of, take_stock
from sluice_operator.plan.lending import lending_refusal
from sluice_operator.plan.pools import find_pool
from sluice_operator.plan.refusals import refusal
from sluice_operator.plan.slots import floor_of, sleeps
from sluice_operator.plan.waiting import asked

_MOST = 20
"""Lines of one section; of a long one the end is counted."""


def trace(world: World, job: FineTuneJob, now: datetime) -> Iterator[str]:
    """Lines that say what is decided about a job now, and from what."""
    resources, scheduling = job.spec.resources, job.spec.scheduling
    yield (
        f"{job.metadata.full_name}: {asked(job)} of pool {resources.pool}, policy {scheduling.policy}, "
        f"priority {scheduling.priority}"
    )
    pool = find_pool(world, resources.pool)
    refused = refusal(world, job)
    if pool is None or refused:
        yield f"  refused: {refused[0]}: {refused[1]}" if refused else f"  there is no pool {resources.pool}"
        return
    allocation = allocate(world, pool, now)
    yield f"  {_verdict(world, job, allocation)}"
    stock = take_stock(world, pool)
    yield from _section("queue", list(_queue(world, pool, job, allocation, now)))
    yield from _section("nodes", [_node(world, node, job) for node in stock.nodes.values()])
    others = [live for live in stock.claims if live.job is not job]
    yield from _section("training", [_training(world, live, job, now) for live in others])
    yield from _section("engines", [_engine(world, stock, engine, job, now) for engine in engines_of(world, pool)])


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
    gone = ", ".join(sorted(f"{ref.namespace}/{ref.job}" for place in claim.places for ref in place.displaced))
    return f"{claim.all_gpus} GPU on {claim.summary}, borrowed from {slots}" + (f", in place of {gone}" if gone else "")


def _queue(world: World, pool: GPUPool, job: FineTuneJob, allocation: Allocation, now: datetime) -> Iterator[str]:
    for place, other in enumerate(pending(world, pool, now), start=1):
        wait = allocation.waits.get(key_of(other))
        mark, what = "*" if other is job else " ", wait.reason if wait else "starts"
        yield f"{mark} {place}. {other.metadata.full_name}, priority {other.spec.scheduling.priority}: {what}"


def _node(world: World, node: NodeStock, job: FineTuneJob) -> str:
    claims = ", ".join(live.name for live in node.claims)
    slots = ", ".join(str(slot.slot) for slot in node.slots)
    has = [
        f"{node.free} of {node.gpus} free",
        f"{node.claimed} claimed by {claims}" if claims else "",
        f"{node.inference} for {slots}" if slots else "",
        f"{node.others} used by others" if node.others else "",
    ]
    lack = node.refusal or lack_on(world, node, job, set())
    return f"{node.name}: {', '.join(filter(None, has))}" + (f"; no: {lack}" if lack else "")


def _training(world: World, live: LiveClaim, job: FineTuneJob, now: datetime) -> str:
    has = f"{live.name}: {live.claim.all_gpus} GPU on {live.claim.summary}"
    stays, at = why_it_stays(world, live, job), gives_way_at(world, live, job)
    if stays or at is None:
        return f"{has}; no: {stays}"
    return f"{has}; gives way " + ("now" if at <= now else f"from {at:%H:%M:%S} UTC on")


def _engine(world: World, stock: Stock, engine: InferenceEngine, job: FineTuneJob, now: datetime) -> str:
    has = len(stock.slots_of.get(engine.metadata.uid, ()))
    refused = lending_refusal(world, stock, engine, job, now)
    name = engine.metadata.full_name
    asleep = sum(1 for slot in engine.status.slots if slot.state in ASLEEP) if sleeps(engine) else 0
    terms = f"{has} of {engine.spec.replicas} replicas, {asleep} asleep, floor {floor_of(engine)}"
    if not asleep:
        terms = f"{has} of {engine.spec.replicas} replicas, floor {floor_of(engine)}"
    if refused:
        return f"{name}: {terms}; no: {refused}: {refused.meaning}"
    return f"{name}: {terms}; may lend {max(0, has - floor_of(engine))}"


def _section(title: str, lines: list[str]) -> Iterator[str]:
    yield f"{title}:" if lines else f"{title}: none"
    yield from (f"  {line}" for line in lines[:_MOST])
    if len(lines) > _MOST:
        yield f"  and {len(lines) - _MOST} more"
