"""How does a live claim go on: prove, drain, bind, train; or does it give up, and for which job or engine?

A claim ends before its job does for a job of higher priority, or for an engine that needs its replicas. Both are read
off the present objects. A preemptor's claim names the attempt that must give way. The claim is proven and bound like
any other, and only then the attempt is told to stop. So no training stops for a job that can't run. An engine asks for
its replicas in its slots' status.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sluice_api.claim import SlotRef
from sluice_api.inferenceengine import SlotState
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import LiveClaim, Phase, is_gated, node_of, phase_by_pods, taken_by, trainer_pods
from sluice_operator.facts.live_claims import live_claims_on
from sluice_operator.facts.nodes import find_pool, unreachable
from sluice_operator.facts.overlap import overlapped_by
from sluice_operator.facts.retries import refusal_reason
from sluice_operator.facts.sleeping import agent_message, is_awake, sleep_requested_at, sleeps_no_more
from sluice_operator.facts.slots import is_drained
from sluice_operator.observe.views import PodView
from sluice_operator.observe.world import World, engine_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.stall import silence_of
from sluice_operator.plan.missing_pods import PODS_WITHIN
from sluice_operator.plan.preflight import phase_of, preflight_obstacle
from sluice_operator.settings import Limits

_RESULT = "The training pod has ended; its result is being read."


@dataclass(frozen=True, slots=True)
class Interruption:
    """Why a claim ends before its job does."""

    reason: Reason
    by: str
    """The job or the engine that gets the GPUs, as namespace/name."""
    message: str


def interruption(world: World, live: LiveClaim) -> Interruption | None:
    """Which engine or job gets a claim's GPUs now; None if the claim may keep them, or its trainer has ended."""
    if any(pod.main_ended for pod in trainer_pods(world, live.stage_job)):
        return None
    for slot in live.claim.borrowed:
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        if engine and any(
            (slot_status.index, slot_status.state, slot_status.lent_to) == (slot.index, SlotState.RECLAIMING, live.name)
            and slot_status.since
            and slot_status.since >= live.stage_job.created  # an older status is about an earlier claim of the job
            for slot_status in engine.status.slots
        ):
            name = engine.metadata.full_name
            return Interruption(Reason.RECLAIMED, name, f"Engine {name} needs its replica {slot.index} back.")
    for node, other in ((at.node, other) for at in live.claim.places for other in live_claims_on(world, at.node)):
        if live.stage_job.uid in other.claim.preempted and _takes_its_place(world, other, node):
            priority = other.job.spec.scheduling.priority
            message = f"Job {other.name}, of priority {priority}, has its GPUs."
            return Interruption(Reason.PREEMPTED, other.name, message)
    return None


def _takes_its_place(world: World, preemptor: LiveClaim, node: str) -> bool:
    """Whether a preemptor takes the GPUs of an attempt on a node now.

    Before phase BINDING it does not; in that phase it does. In phase HOLDING its pods found other GPUs free, and it
    does not, with one exception. The scheduler sees the unused rest of another claim's larger slot as free, and may
    have given it away. The node is then crowded, and the slot could not return, so the attempt must still stop.
    """
    found = phase_by_pods(world, preemptor)
    if found is not Phase.HOLDING:
        return found is Phase.BINDING
    pool = find_pool(world, preemptor.claim.pool)
    stock = take_stock(world, pool).nodes.get(node) if pool else None
    if stock is None or not stock.is_crowded:
        return False
    return any(taken_by(world, live.claim, node) > live.claim.gpus_on(node) for live in stock.claims)


@dataclass(frozen=True, slots=True)
class Step:
    """What a claim needs now."""

    reason: Reason
    message: str
    admitted: bool = False
    """Whether all pods are on their nodes."""
    bind: tuple[tuple[PodView, str], ...] = ()
    """Pods that may go to their nodes now, each with its node."""
    give_up: bool = False
    """Whether the attempt ends now, and its Job is deleted."""
    node: str = ""
    """The node where the claim failed; empty if it is not about one node."""
    by: str = ""
    """The job or engine to which the claim gives way, as namespace/name; empty if there is none."""
    again_at: datetime | None = None
    """When to look again even if nothing happens."""


def advance(world: World, live: LiveClaim, now: datetime, limits: Limits, refused_pod: str) -> Step:
    """Bring a claim one step further, or end it: it failed, or its GPUs go to another job or an engine."""
    if stopped := interruption(world, live):
        message = f"{stopped.message} The state is saved; training goes on from there."
        return Step(stopped.reason, message, give_up=True, by=stopped.by)
    found = phase_of(world, live)
    if live.is_overdrawn and found < Phase.BINDING:
        message = "The claim names replicas or training that do not make room for this job; it is given up."
        return Step(Reason.CLAIMED, message, give_up=True)
    match found:
        case Phase.PROVING:
            return _prove(world, live, now, limits, refused_pod)
        case Phase.DRAINING:
            return _drain(world, live, now, limits)
        case Phase.BINDING:
            return _await_node(world, live, now, limits)
        case Phase.HOLDING:
            return _train(world, live, now, limits)


def _prove(world: World, live: LiveClaim, now: datetime, limits: Limits, refused_pod: str) -> Step:
    pods = trainer_pods(world, live.stage_job)
    if any(not is_gated(pod) for pod in pods):  # the binding of the pods began, and stopped halfway
        return _bind(live, [pod for pod in pods if is_gated(pod) or not (pod.node or pod.nominated_node)])
    found = preflight_obstacle(world, live)
    reason, message = (found.reason, found.message) if found else (Reason.CLAIMED, "")
    age = now - live.stage_job.created
    if len(pods) < len(live.claim.nodes) and age >= PODS_WITHIN and reason is Reason.CLAIMED:
        reason = refusal_reason(refused_pod)
        which = "The training pod is" if len(live.claim.nodes) == 1 else "A training pod is"
        message = f"{which} refused, so nothing is drained: {refused_pod or 'see the events of the Job.'}"
        if refused_pod:  # the pod will not be made in a moment either, so other jobs may have the GPUs meanwhile
            return Step(reason, message, give_up=True)
    lost = overlapped_by(world, live) is not None
    return Step(reason, message, give_up=lost or age >= limits.bind, again_at=now + timedelta(seconds=1))


def _drain(world: World, live: LiveClaim, now: datetime, limits: Limits) -> Step:
    if lender := sleeps_no_more(world, live):
        message = (
            f"Engine {lender.metadata.name} sleeps for no job any more: its preemption.policy is "
            f"{lender.spec.preemption.policy} now, and its GPUs are served by DRA."
        )
        return Step(Reason.ENGINE_MUST_SLEEP, message, give_up=True)
    busy, awake = [], []
    for slot in live.claim.borrowed:
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        if engine and not is_drained(world, engine, slot.index, now):
            busy.append(str(slot))
        elif engine and is_awake(world, engine, slot.index):
            awake.append(slot)
    if busy:
        message = f"{', '.join(busy)} finish{'es' if len(busy) == 1 else ''} the requests in flight."
        return Step(Reason.DRAINING, message, again_at=now + timedelta(seconds=1))
    if awake:
        return _await_sleep(world, live, awake, now, limits)
    return _bind(live, trainer_pods(world, live.stage_job))


def _await_sleep(world: World, live: LiveClaim, awake: list[SlotRef], now: datetime, limits: Limits) -> Step:
    """Wait until the awake slots have freed their GPUs' memory, which the trainer needs; give up if one is late."""
    names = ", ".join(map(str, awake))
    late = next(
        (slot for slot in awake if (since := sleep_requested_at(world, slot)) and now >= since + limits.sleep), None
    )
    if late is None:
        message = f"{names} go{'es' if len(awake) == 1 else ''} to sleep."
        return Step(Reason.WAITING_FOR_SLEEP, message, again_at=now + timedelta(seconds=1))
    why = agent_message(world, late) or "its agent does not say why."
    message = f"{late} did not free its GPUs within {limits.sleep.seconds} s: {why}"
    return Step(Reason.ENGINE_DOES_NOT_SLEEP, message, give_up=True, node=live.claim.home_of(late))


def _bind(live: LiveClaim, pods: Iterable[PodView]) -> Step:
    """Send each of some pods to its own node."""
    bind = tuple((pod, node) for pod in pods if (node := node_of(pod, live.claim)))
    return Step(Reason.BINDING, _goes(live), bind=bind)


def _goes(live: LiveClaim) -> str:
    pods = "The training pod goes" if len(live.claim.nodes) == 1 else "The training pods go"
    return f"{pods} to {live.claim.summary}."


def _await_node(world: World, live: LiveClaim, now: datetime, limits: Limits) -> Step:
    waiting = [pod for pod in trainer_pods(world, live.stage_job) if not pod.node]
    since = min((pod.bound_at for pod in waiting if pod.bound_at), default=now)
    if now < since + limits.bind:
        return Step(Reason.BINDING, _goes(live), again_at=since + limits.bind)
    late = next((pod for pod in waiting if pod.unschedulable), waiting[0])
    node, why = node_of(late, live.claim), late.unschedulable or "the scheduler did not say why"
    message = f"The training pod was not bound to {node} within {limits.bind.seconds} s: {why}"
    return Step(Reason.NOT_BOUND, message, give_up=True, node=node)


def _train(world: World, live: LiveClaim, now: datetime, limits: Limits) -> Step:
    pods = trainer_pods(world, live.stage_job)
    away = unreachable(world, pods)
    if not pods or any(pod.main_ended or pod.deleting for pod in pods):
        step = _ends(pods, now, limits)
        return replace(step, reason=Reason.NODE_NOT_READY, message=away) if away else step
    starting = next((pod for pod in pods if pod.starts), None)
    if starting:
        return _of_the_node(_starts(starting, live, now, limits), away)
    silence = silence_of(world, live, limits)
    if silence is None or now < silence.stalled_at:
        message = f"On {live.claim.summary}, attempt {live.stage_job.attempt}."
        return Step(Reason.TRAINING, message, admitted=True, again_at=silence.stalled_at if silence else None)
    heartbeat = world.heartbeats.get(live.stage_job.uid)
    trouble = f" It said: {heartbeat.trouble}" if heartbeat and heartbeat.trouble else ""
    name = min(pods, key=lambda pod: pod.index).key.name
    message = f"No step from {name} since {silence.since:%H:%M:%S} UTC.{trouble}"
    over = now >= silence.given_up_at
    step = Step(Reason.STALLED, message, admitted=True, give_up=over, again_at=silence.given_up_at)
    return _of_the_node(step, away)


def _ends(pods: Iterable[PodView], now: datetime, limits: Limits) -> Step:
    """Wait for the end of a pod whose trainer has ended: its Job has no result before. A container may prevent it."""
    for pod in pods:
        if pod.ended or pod.termination is None or pod.termination.finished_at is None:
            continue
        until = pod.termination.finished_at + limits.start
        if now < until:
            return Step(Reason.TRAINING, _RESULT, admitted=True, again_at=until)
        message = (
            f"The training has ended, but pod {pod.key.name} has not: another container in it, such as the sidecar of "
            "a mesh, still runs. End that container; the result is read then."
        )
        return Step(Reason.TRAINING, message, admitted=True)
    return Step(Reason.TRAINING, _RESULT, admitted=True)


def _of_the_node(step: Step, away: str) -> Step:
    """The step, blamed on the node if `away` is not empty: what is wrong with the pod is not the pod's fault then."""
    if not away:
        return step
    reason = Reason.NODE_LOST if step.give_up else Reason.NODE_NOT_READY
    return replace(step, reason=reason, message=f"{step.message} {away}")


def _starts(pod: PodView, live: LiveClaim, now: datetime, limits: Limits) -> Step:
    until = (pod.bound_at or live.stage_job.created) + limits.start
    over = now >= until
    why = pod.waiting_message or pod.waiting_reason
    if pod.waits_for_image:
        return Step(
            Reason.IMAGE_NOT_PULLED,
            f"Pod {pod.key.name}: {why}",
            True,
            give_up=over,
            again_at=until,
        )
    if over:
        return Step(Reason.POD_NOT_STARTED, f"Pod {pod.key.name}: {why or 'it has not started'}", True, give_up=True)
    return Step(Reason.TRAINING, f"The training pod starts on {pod.node}.", True, again_at=until)
