"""Does an engine lend to a job now, and does it need its replicas itself?"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.inferenceengine import InferenceEngine, LendingPolicy
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import lends_to
from sluice_operator.facts.sleeping import sleep_refusal
from sluice_operator.facts.slots import pod_of, serves, sleeps
from sluice_operator.observe.world import World, existing, key_of
from sluice_operator.plan.obstacle import Obstacle, Remedy, clock
from sluice_operator.plan.reclaim import own_need
from sluice_operator.plan.stock import Stock

_STARTS_WITHIN = timedelta(minutes=10)
"""How long a returned replica may take to serve. After that its engine lends again in any case."""


def lending_obstacle(
    world: World, stock: Stock, engine: InferenceEngine, job: FineTuneJob, now: datetime
) -> Obstacle | None:
    """Why an engine does not lend to a job now; None when it may. Its floor and its slots are not looked at here."""
    return _terms(world, stock.pool, engine, job) or _moment(world, stock, engine, now)


def _terms(world: World, pool: GPUPool, engine: InferenceEngine, job: FineTuneJob) -> Obstacle | None:
    """Why the engine never lends to such a job, given both specs; None if it does at some time."""
    terms = engine.spec.preemption
    if engine.metadata.deletion_timestamp:
        return _no(engine, Reason.ENGINE_NEVER_LENDS, "is being deleted.")
    if terms.policy is LendingPolicy.NEVER:
        message = "does not lend (preemption.policy: Never)."
        return _no(engine, Reason.ENGINE_NEVER_LENDS, message, _lend(pool, engine))
    if why := sleep_refusal(engine, pool):
        return _no(engine, Reason.ENGINE_CANNOT_SLEEP, f"does not lend: {why}", _lend(pool, engine))
    if pool.spec.by_dra and (no := _by_dra(pool, engine, job)):
        return no
    if not lends_to(world, engine, job.metadata.namespace):
        text = f"set preemption.lendTo: Anywhere on {engine.metadata.full_name}"
        # Beside lendToNamespaces the API server refuses that.
        anywhere = [] if terms.lend_to_namespaces else [Remedy(text, key_of(engine), "preemption.lendTo", "Anywhere")]
        message = f"does not lend to namespace {job.metadata.namespace} (preemption.lendTo: {terms.lend_to})."
        return _no(engine, Reason.ENGINE_LENDS_ELSEWHERE, message, *anywhere)
    if terms.priority > job.spec.scheduling.priority:
        text = f"raise scheduling.priority to {terms.priority}"
        raised = Remedy(text, field="scheduling.priority", value=terms.priority)
        message = f"lends to jobs of priority {terms.priority} or more (preemption.priority)."
        return _no(engine, Reason.ENGINE_PRIORITY_HIGHER, message, raised)
    return None


def _by_dra(pool: GPUPool, engine: InferenceEngine, job: FineTuneJob) -> Obstacle | None:
    """Why the engine never lends to such a job where DRA serves the GPUs; None if it does at some time.

    With DRA no nomination keeps a returned device for a pod, so any pod could take the device of a slot that stops. A
    slot that sleeps keeps its device: the trainer uses the slot's own ResourceClaim. A ResourceClaim can be used in its
    own namespace only, and by one pod of a job only, since all pods of a multi-node job are made from the same
    template.
    """
    if not sleeps(engine):
        message = f"has preemption.policy: {engine.spec.preemption.policy}, and its GPUs are served by DRA."
        return _no(engine, Reason.ENGINE_MUST_SLEEP, message, _lend(pool, engine))
    if engine.metadata.namespace != job.metadata.namespace:
        message = "lends to no other namespace where DRA serves the GPUs."
        return _no(engine, Reason.ENGINE_LENDS_ELSEWHERE, message)
    if job.spec.resources.nodes > 1:
        nodes = f"spec.resources.nodes: {job.spec.resources.nodes}"
        message = f"lends to jobs of one pod only where DRA serves the GPUs ({nodes})."
        return _no(engine, Reason.MULTI_NODE_BORROWS_NONE, message)
    return None


def _no(engine: InferenceEngine, reason: Reason, message: str, *remedies: Remedy) -> Obstacle:
    return Obstacle(reason, f"{engine.metadata.full_name} {message}", ends_with=(key_of(engine),), remedies=remedies)


def _lend(pool: GPUPool, engine: InferenceEngine) -> Remedy:
    policy = "Sleep" if pool.spec.by_dra else "ScaleDown"
    text = f"set preemption.policy: {policy} on {engine.metadata.full_name}"
    return Remedy(text, key_of(engine), "preemption.policy", policy)


def _moment(world: World, stock: Stock, engine: InferenceEngine, now: datetime) -> Obstacle | None:
    """Why the engine does not lend at this moment: its borrow windows, its cool-down, or its own need."""
    name, terms, key = engine.metadata.full_name, engine.spec.preemption, key_of(engine)
    if terms.borrow_windows and not any(window.is_open(now) for window in terms.borrow_windows):
        opens = window_opens(engine, now)
        if opens is None:
            message = f"{name} names a time zone that nobody knows in preemption.borrowWindows."
            return Obstacle(Reason.TIME_ZONE_UNKNOWN, message, ends_with=(key,))
        return Obstacle(
            Reason.ENGINE_LENDS_LATER, f"{name} lends from {opens:%A %H:%M} UTC on.", opens, ends_with=(key,)
        )
    if (cooled := cooled_down(world, engine)) and now < cooled:
        message = f"{name} has got a replica back; it lends from {clock(cooled, now)} on at the latest."
        return Obstacle(Reason.ENGINE_COOLS_DOWN, message, cooled, ends_with=(key,))
    return own_need(world, stock, engine, now)


def window_ends(engines: Iterable[InferenceEngine], now: datetime) -> Iterator[datetime]:
    """When the open borrow windows of some engines end: then those lend no more, and jobs wait for another reason."""
    for engine in engines:
        yield from (end for window in engine.spec.preemption.borrow_windows if (end := window.ends_after(now)))


def window_opens(engine: InferenceEngine, now: datetime) -> datetime | None:
    """When the engine's next borrow window opens; None if none ever does."""
    openings = (window.opens_after(now) for window in engine.spec.preemption.borrow_windows)
    return min((opening for opening in openings if opening), default=None)


def cooled_down(world: World, engine: InferenceEngine) -> datetime | None:
    """When the cool-down after the last returned replica ends at the latest; None if there is nothing to wait for.

    It does not end before that replica serves: lent again while it starts, it would never have served at all.
    """
    pause = timedelta(seconds=engine.spec.preemption.cool_down_seconds)
    if not pause:
        return None
    moments = (
        slot.restarted_at + (pause if serves(pod_of(world, engine, index)) else max(pause, _STARTS_WITHIN))
        for index, slot in existing(world, engine).items()
        if slot.restarted_at and slot.size
    )
    return max(moments, default=None)
