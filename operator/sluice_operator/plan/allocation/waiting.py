"""Why a job waits for GPUs: for whom, since when, and what would end the wait."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from math import log10

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import NamespaceQuota
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_api.scheduling import Policy
from sluice_operator.observe.world import World
from sluice_operator.plan.allocation.avoided import Avoided, avoided
from sluice_operator.plan.allocation.borrowing import Terms
from sluice_operator.plan.allocation.fit import lack_everywhere
from sluice_operator.plan.allocation.guests import is_guest, why_not_beside
from sluice_operator.plan.allocation.interruption import Departure
from sluice_operator.plan.allocation.inventory import Stock
from sluice_operator.plan.allocation.lending import cooled_down, is_unknown, lending_refusal, window_opens
from sluice_operator.plan.allocation.scale_up import asks_until
from sluice_operator.plan.facts.estimate import starts_at
from sluice_operator.plan.facts.outcomes import waits_since
from sluice_operator.plan.facts.podless import starved
from sluice_operator.plan.facts.pools import named
from sluice_operator.plan.facts.sleeping import sleep_refusal
from sluice_operator.plan.facts.slots import floor_of
from sluice_operator.plan.facts.tenants import Held, quota_of


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job waits for GPUs."""

    reason: Reason
    message: str
    position: str = ""
    """Its place among those that wait: exact for the first, then a bound, as every change is a write."""
    starts_at: datetime | None = None
    """When it may start, if that is known."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that gets nothing now, and what there is to say of it."""

    world: World
    stock: Stock
    """What the pool has once those in front have theirs."""
    job: FineTuneJob
    terms: Terms
    ahead: Sequence[FineTuneJob]
    """Who waits in front."""
    gives_way: Departure | None
    """Whose place it would take next."""
    now: datetime


EXPLAINED = 10
"""So many of a queue are told everything about their wait. Of those behind, whom would it help?"""


def far_behind(world: World, job: FineTuneJob, ahead: int) -> Wait:
    """Why a job waits that is far from the head of the queue: told in round numbers, which seldom change."""
    least = 10 ** int(log10(ahead))
    in_front = f"At least {least} jobs are in front"
    message = f"{_asked(world, job)}. {in_front}. Next: they get theirs, or raise scheduling.priority."
    return Wait(Reason.BEHIND_IN_QUEUE, message, f"more than {least}")


def over_quota(world: World, job: FineTuneJob, quota: NamespaceQuota, held: Held, ahead: Held) -> Wait:
    """Why a job waits that would bring its namespace above its quota, with its jobs that wait in front."""
    in_front = f", and its jobs in front wait for {ahead.gpus} more" if ahead.gpus else ""
    namespace = job.metadata.namespace
    if quota.max_gpus is not None and held.gpus + ahead.gpus + job.spec.resources.all_gpus > quota.max_gpus:
        has = f"Namespace {namespace} holds {held.gpus} of the {quota.max_gpus} that it may have there at once"
        remedy = "one of its jobs ends, or raise maxGPUs in the pool's spec.quotas"
    else:
        has = (
            f"Jobs and replicas of namespace {namespace} have {held.total} of the {quota.max_total_gpus} that they may "
            "have there together"
        )
        remedy = (
            "one of its jobs ends, one of its engines lends a replica or is made smaller, or raise maxTotalGPUs in the "
            "pool's spec.quotas"
        )
    return Wait(Reason.NAMESPACE_QUOTA, f"{_asked(world, job)}. {has}{in_front}. Next: {remedy}.")


def scaling_up(
    world: World, stock: Stock, job: FineTuneJob, ahead: Sequence[FineTuneJob], now: datetime, too_large: str = ""
) -> Wait:
    """Why a job waits that asks for nodes before it borrows.

    Args:
        too_large: why it fits no node that exists, if it fits none.
    """
    until = f"{asks_until(job):%Y-%m-%d %H:%M:%S} UTC"
    then = (
        "borrows from engines" if job.spec.scheduling.policy is Policy.PREEMPT else "asks for none and goes on waiting"
    )
    lacking = starved(world, job.metadata.namespace, now)
    asks = (
        f"asks for no nodes while {lacking} has no pod, as a quota may count both, and"
        if lacking
        else "asks for nodes and"
    )
    parts = [
        f"{_asked(world, job)}. It {asks} borrows nothing until {until} (scheduling.scaleUpFirst).",
        too_large,
        f"{_short(ahead[0].metadata.full_name, job)} is in front." if ahead else "",
        f"Next: a node is added, or GPUs come free; from then on it {'is refused' if too_large else then}.",
    ]
    message = " ".join(part for part in parts if part)
    if too_large:
        return Wait(Reason.SCALING_UP, message)
    return Wait(Reason.SCALING_UP, message, str(len(ahead) + 1), _starts_at(stock, job, ahead, now))


def explain(w: Waiting) -> Wait:
    """Why a job waits, whom it waits for and what would end the wait."""
    world, stock, job, gives_way = w.world, w.stock, w.job, w.gives_way
    reason, why = _main_reason(w)
    rivals = [live for live in stock.claims if bool(live.claim.host) is is_guest(stock.pool, job)]
    holders = [_short(name, job) for name in islice(chain((live.name for live in rivals), stock.granted), 3)]
    parts = [f"{_asked(world, job)}. {why}"]
    if reason is not Reason.NODE_AVOIDED and (left_out := avoided(world, stock, job, w.now)):
        parts.append(f"{_named(left_out)}.")
    if w.ahead:
        parts.append(f"{_short(w.ahead[0].metadata.full_name, job)} is in front.")
        if reason is Reason.WAITING_FOR_GPUS:
            reason = Reason.BEHIND_IN_QUEUE
    if gives_way:
        parts.append(f"Next: {_short(gives_way.name, job)} gives way at {gives_way.at:%H:%M:%S} UTC, or ends before.")
    elif holders:
        parts.append(f"Next: {', '.join(holders)} ends and gives back what it holds, or {_remedy(reason, job)}")
    else:
        parts.append(f"Next: {_remedy(reason, job)}")
    return Wait(reason, " ".join(parts), str(len(w.ahead) + 1), _starts_at(stock, job, w.ahead, w.now))


def _starts_at(stock: Stock, job: FineTuneJob, ahead: Sequence[FineTuneJob], now: datetime) -> datetime | None:
    free = sum(node.free for node in stock.nodes.values() if not node.refusal)
    rivals = [live for live in stock.claims if not live.claim.host]
    return None if is_guest(stock.pool, job) else starts_at(rivals, free, [*ahead, job], now)


def _remedy(reason: Reason, job: FineTuneJob) -> str:
    """What the reader can do, as the end of a sentence."""
    if reason is Reason.WAITING_FOR_GPUS and job.spec.scheduling.policy is Policy.QUEUE:
        return "set scheduling.policy: Preempt to borrow from engines."
    if reason is Reason.WAITING_FOR_GPUS:
        return "add GPUs to the pool."
    if reason is Reason.BEHIND_IN_QUEUE:
        return "raise scheduling.priority."
    return reason.next_step[0].lower() + reason.next_step[1:]


def asked(job: FineTuneJob) -> str:
    """What it asks for: 1 GPU, 4 GPUs, 2 x 8 GPUs, 30% of a GPU."""
    wanted = job.spec.resources
    if job.spec.scheduling.policy is Policy.SHARED:
        return f"{job.spec.scheduling.share} of a GPU"
    times = f"{wanted.nodes} x " if wanted.nodes > 1 else ""
    return f"{times}{wanted.gpus} GPU{'s' if wanted.all_gpus > 1 else ''}"


def _asked(world: World, job: FineTuneJob) -> str:
    """What it waits for, and since when."""
    noted = world.noted(job)
    if _asked not in noted:
        noted[_asked] = f"Waiting for {asked(job)} in pool {job.spec.resources.pool}{_since(job)}"
    return str(noted[_asked])


def _since(job: FineTuneJob) -> str:
    """Since when it waits: its data was prepared, or its last attempt ended."""
    since = waits_since(job)
    return f" since {since:%H:%M} UTC" if since else ""


def _short(name: str, job: FineTuneJob) -> str:
    """A job's name without its namespace where that is the reader's own."""
    return name.removeprefix(f"{job.metadata.namespace}/")


def _main_reason(w: Waiting) -> tuple[Reason, str]:
    stock, job = w.stock, w.job
    left_out = avoided(w.world, stock, job, w.now)
    usable = [node for node in stock.nodes.values() if not node.refusal and node.name not in left_out]
    if not usable:
        if left_out:
            return Reason.NODE_AVOIDED, f"{_named(left_out)}."
        return Reason.NO_NODES, "No node of the pool can take a pod now."
    guest = is_guest(stock.pool, job)
    if lack := lack_everywhere(w.world, stock, job, frozenset() if guest else w.terms.lenders):
        return Reason.UNSCHEDULABLE, f"GPUs alone would not do: {lack}."
    if guest:
        return Reason.WAITING_FOR_SHARE, why_not_beside(stock, job)
    wanted = job.spec.resources
    enough = [node for node in usable if node.free >= wanted.gpus]
    if sum(node.free // wanted.gpus for node in enough) >= wanted.nodes:
        return Reason.WAITING_FOR_GPUS, f"GPUs are free on {enough[0].name}, but not for this job yet."
    if job.spec.scheduling.policy is not Policy.PREEMPT or not any(node.slots for node in usable):
        free = sum(node.free for node in usable)
        where = "on one node" if wanted.nodes == 1 else "for all pods at once"
        return Reason.WAITING_FOR_GPUS, f"{free} are free, not enough {where}." if free else "None is free."
    return _why_nothing_is_lent(w)


def _named(left_out: Mapping[str, Avoided]) -> str:
    """The nodes that a job leaves out, the first of many."""
    return named([str(one) for one in left_out.values()])


def _why_nothing_is_lent(w: Waiting) -> tuple[Reason, str]:
    world, stock, job, terms = w.world, w.stock, w.job, w.terms
    quota = quota_of(world, stock.pool, job.metadata.namespace)
    if terms.most < job.spec.resources.all_gpus:
        return Reason.NAMESPACE_QUOTA, (
            f"Namespace {job.metadata.namespace} may borrow {quota.max_borrowed_gpus} at once, and "
            f"{max(terms.most, 0)} more now."
        )
    slots = [slot for node in stock.nodes.values() if not node.refusal for slot in node.slots]
    engines = {slot.engine.metadata.uid: slot.engine for slot in slots}
    refusals = [(engine, lending_refusal(world, stock, engine, job, w.now)) for engine in engines.values()]
    for engine, refused in refusals:
        if refused is None:
            return _why_it_lends_no_more(stock, engine, bool(w.ahead))
    told = (_terms_of(world, stock, engine, refused, job, w.now) for engine, refused in refusals if refused)
    engine, refused = refusals[0]
    other = f"{engine.metadata.name} does not lend to this job."
    return next((found for found in told if found), (refused or Reason.WAITING_FOR_GPUS, other))


def _why_it_lends_no_more(stock: Stock, engine: InferenceEngine, others_wait: bool) -> tuple[Reason, str]:
    """Why an engine that lends to a job has nothing for it now."""
    name, uid, floor = engine.metadata.name, engine.metadata.uid, floor_of(engine)
    nodes = [node for node in stock.nodes.values() if not node.refusal]
    homes = [(node, slot) for node in nodes for slot in node.slots if slot.engine.metadata.uid == uid]
    slots = [slot for _, slot in homes]
    if len(slots) > floor and others_wait:
        return Reason.BEHIND_IN_QUEUE, f"What {name} may lend is kept for those in front."
    if not stock.may_lose.get(uid, 1):
        return Reason.ENGINE_PROTECTED, f"a PodDisruptionBudget lets none of the replicas of {name} go now."
    if len(slots) > floor and all(slot.shared for slot in slots):
        return Reason.ENGINE_HAS_GUESTS, f"Jobs train beside each replica of {name} (scheduling.policy: Shared)."
    if len(slots) > floor and not any(slot.lendable for slot in slots):
        return Reason.ENGINE_WAKES, f"No replica of {name} that could go to sleep serves now."
    if len(slots) > floor and (crowded := sorted({node.name for node, _ in homes if node.is_crowded})):
        where = ", ".join(crowded)
        return Reason.WAITING_FOR_GPUS, f"On {where}, with {name}, more GPUs are spoken for than there are."
    at = f"{len(slots)} of {engine.spec.replicas} replicas are left, its floor is {floor}"
    return Reason.ENGINE_AT_FLOOR, f"{name} can lend no more: {at}."


def _terms_of(
    world: World, stock: Stock, engine: InferenceEngine, refused: Reason, job: FineTuneJob, now: datetime
) -> tuple[Reason, str] | None:
    """A refusal of which there is more to say than its reason; None for any other."""
    name = engine.metadata.name
    if refused is Reason.ENGINE_MUST_SLEEP:
        return (
            refused,
            f"{name} has preemption.policy: {engine.spec.preemption.policy}, and its GPUs are served by DRA.",
        )
    if refused is Reason.GROUP_BORROWS_NONE:
        nodes = f"spec.resources.nodes: {job.spec.resources.nodes}"
        return refused, f"{nodes}, and where DRA serves the GPUs only jobs of one pod borrow."
    if refused is Reason.ENGINE_CANNOT_SLEEP:
        return refused, f"{name} does not lend: {sleep_refusal(engine, stock.pool)}"
    if refused is Reason.ENGINE_LENDS_LATER and (opens := window_opens(engine, now)):
        return refused, f"{name} lends from {opens:%A %H:%M} UTC on."
    if refused is Reason.ENGINE_COOLS_DOWN and (cooled := cooled_down(world, engine)):
        return refused, f"{name} has got a replica back; it lends from {cooled:%H:%M:%S} UTC on at the latest."
    if refused is Reason.ENGINE_IN_DEMAND and is_unknown(world, engine, now):
        return refused, f"{name} lends when its load is known: for half a minute, since another operator has led."
    if refused is Reason.ENGINE_IN_DEMAND:
        return refused, f"{name} needs its replicas itself (preemption.reclaim: OnDemand)."
    return None
