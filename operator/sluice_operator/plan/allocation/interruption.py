"""Training that gives way: whose place a job of higher priority may take, and when a claim ends before its job does.

Both ends are read off what is there. A job takes another's place by a claim that names the attempt: it is proven and
bound like any other, and only then the attempt is told to stop, so nobody stops for a job that can't run. An engine
asks for its replicas in its slots' status.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sluice_api.claim import AttemptRef
from sluice_api.finetunejob import FineTuneJob
from sluice_api.inferenceengine import SlotState
from sluice_api.meta import is_extended
from sluice_api.reasons import Reason
from sluice_api.scheduling import GiveWay
from sluice_operator.observe.world import World, engine_key
from sluice_operator.plan.allocation.inventory import take_stock
from sluice_operator.plan.facts.attempts import trainer_pods
from sluice_operator.plan.facts.claims import LiveClaim, Phase, live_claims_on, phase, taken_by
from sluice_operator.plan.facts.outcomes import waits_since
from sluice_operator.plan.facts.pools import find_pool
from sluice_operator.plan.obstacle import Obstacle


@dataclass(frozen=True, slots=True)
class Interruption:
    """Why a claim ends before its job does."""

    reason: Reason
    by: str
    """The job or the engine, as namespace/name."""
    message: str


def interruption(world: World, live: LiveClaim) -> Interruption | None:
    """Who has a claim's GPUs from now on; None while it may keep them, and when its trainer has ended by itself."""
    if any(pod.ended for pod in trainer_pods(world, live.stage_job)):
        return None
    for slot in live.claim.borrowed:
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        if engine and any(
            (said.index, said.state, said.lent_to) == (slot.index, SlotState.RECLAIMING, live.name)
            and said.since
            and said.since >= live.stage_job.created
            for said in engine.status.slots
        ):
            name = engine.metadata.full_name
            return Interruption(Reason.RECLAIMED, name, f"Engine {name} needs its replica {slot.index} back.")
    for node, other in ((at.node, other) for at in live.claim.places for other in live_claims_on(world, at.node)):
        if live.stage_job.uid in other.claim.displaced and _takes_its_place(world, other, node):
            priority = other.job.spec.scheduling.priority
            message = f"Job {other.name}, of priority {priority}, has its GPUs."
            return Interruption(Reason.PREEMPTED, other.name, message)
    return None


def _takes_its_place(world: World, heir: LiveClaim, node: str) -> bool:
    """Whether a claim that comes in another's place needs it: not if it is on the node by a GPU that came free.

    What a third one leaves of a larger replica is not free, though the scheduler takes it to be: the node is crowded
    then, and the replica could not come back.
    """
    found = phase(world, heir)
    if found is not Phase.HOLDING:
        return found is Phase.BINDING
    pool = find_pool(world, heir.claim.pool)
    stock = take_stock(world, pool).nodes.get(node) if pool else None
    if stock is None or not stock.is_crowded:
        return False
    return any(taken_by(world, live.claim, node) > live.claim.gpus_on(node) for live in stock.claims)


def why_it_stays(world: World, live: LiveClaim, job: FineTuneJob) -> str:
    """Why a claim never gives way to a job; empty if it does, now or later."""
    if live.claim.host:
        return f"it trains beside {live.claim.host} and has no GPU of its own"
    if live.claim.borrowed and not is_extended(live.claim.resource):
        return "it trains on replicas that sleep"  # both would have their GPUs, until it had saved its state
    mine, theirs = live.job.spec.scheduling, job.spec.scheduling
    if mine.interruption.policy is not GiveWay.TO_HIGHER_PRIORITY:
        return f"its scheduling.interruption.policy is {mine.interruption.policy}"
    if theirs.priority <= mine.priority:
        return f"its priority {mine.priority} is not below {theirs.priority}"
    if live.stage_job.finished or phase(world, live) is not Phase.HOLDING:
        return "it does not train yet, or has ended"
    return ""


def gives_way_at(world: World, live: LiveClaim, job: FineTuneJob) -> datetime | None:
    """From when on a claim gives way to a job; None if it never does."""
    if why_it_stays(world, live, job):
        return None
    terms = live.job.spec.scheduling.interruption
    began = max(pod.bound_at or pod.created for pod in trainer_pods(world, live.stage_job))
    has_run = began + timedelta(seconds=terms.min_run_seconds)
    since = waits_since(job)
    return max(has_run, since + timedelta(seconds=terms.grace_seconds)) if since else has_run


def yield_obstacle(world: World, live: LiveClaim, job: FineTuneJob, now: datetime) -> Obstacle | None:
    """Why training does not give way to a job now; None if it does."""
    name = shown(live.name, job)
    at = gives_way_at(world, live, job)
    if at is None:
        return Obstacle(Reason.WAITING_FOR_GPUS, f"{name} does not give way: {why_it_stays(world, live, job)}.")
    if at <= now:
        return None
    message = f"{name} gives way at {at:%H:%M:%S} UTC, or ends before."
    return Obstacle(Reason.WAITING_FOR_GPUS, message, at, (live.key,))


def shown(name: str, job: FineTuneJob) -> str:
    """Another job, as the reader of this one's status knows it."""
    return name.removeprefix(f"{job.metadata.namespace}/")


def attempt_ref(live: LiveClaim, node: str) -> AttemptRef:
    """The attempt behind a claim, as another claim on the same node names it."""
    metadata, gpus = live.job.metadata, live.claim.gpus_on(node)
    return AttemptRef(namespace=metadata.namespace, job=metadata.name, uid=live.stage_job.uid, gpus=gpus)
