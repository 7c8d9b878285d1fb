"""The next step of a live claim: prove, drain, bind, train; or give up, and why."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sluice_api.reasons import Reason
from sluice_operator.observe.views import PodView
from sluice_operator.observe.world import World, engine_key
from sluice_operator.plan.claims import LiveClaim, Phase, overlapped_by, trainer_pods
from sluice_operator.plan.interruption import interruption
from sluice_operator.plan.proof import doubt, is_gated, phase_of
from sluice_operator.plan.slots import is_drained

IMAGE_TROUBLE = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})
"""What the kubelet says of a container whose image it cannot get."""
_STALL_STEPS = 5
_STALLED_AFTER = timedelta(seconds=120)
_STALL_GRACE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a claim may take for each step."""

    pod: timedelta = timedelta(seconds=3)
    """Until its pod exists; then quota or admission is said to refuse it."""
    bind: timedelta = timedelta(seconds=60)
    """From the gate's removal to the node; and for a claim that can't be proven, to be proven."""
    start: timedelta = timedelta(seconds=600)
    """Until the pod's container has started."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a claim needs now."""

    reason: Reason
    message: str
    admitted: bool = False
    """Its pod is on the node."""
    bind: tuple[PodView, ...] = ()
    give_up: bool = False
    by: str = ""
    """Whom it gives way to, if to anybody."""
    again_at: datetime | None = None


def advance(world: World, live: LiveClaim, now: datetime, limits: Limits, refused_pod: str) -> Step:
    """Bring a claim one step further, or end it for somebody else."""
    if stopped := interruption(world, live):
        message = f"{stopped.message} The state is saved; training goes on from there."
        return Step(stopped.reason, message, give_up=True, by=stopped.by)
    match phase_of(world, live):
        case Phase.PROVING:
            return _prove(world, live, now, limits, refused_pod)
        case Phase.DRAINING:
            return _drain(world, live, now)
        case Phase.BINDING:
            return _await_node(world, live, now, limits)
        case Phase.HOLDING:
            return _train(world, live, now, limits)


def _prove(world: World, live: LiveClaim, now: datetime, limits: Limits, refused_pod: str) -> Step:
    pods = trainer_pods(world, live.stage_job)
    half_bound = tuple(pod for pod in pods if not is_gated(pod.gates) and not pod.nominated_node)
    if half_bound:
        return Step(Reason.BINDING, "The training pod goes to its node.", bind=half_bound)
    found = doubt(world, live)
    reason, message = found or (Reason.CLAIMED, "")
    age = now - live.stage_job.created
    if not pods and age >= limits.pod and reason is Reason.CLAIMED:
        reason = Reason.QUOTA_EXCEEDED
        message = f"The training pod is refused, so nothing is drained: {refused_pod or 'see the events of the Job.'}"
    lost = overlapped_by(world, live) is not None
    return Step(reason, message, give_up=lost or age >= limits.bind, again_at=now + timedelta(seconds=1))


def _drain(world: World, live: LiveClaim, now: datetime) -> Step:
    busy = []
    for slot in live.claim.borrowed:
        engine = world.engines.get(engine_key(slot.namespace, slot.engine))
        if engine and not is_drained(world, engine, slot.index, now):
            busy.append(str(slot))
    if busy:
        message = f"{', '.join(busy)} finish{'es' if len(busy) == 1 else ''} the requests in flight."
        return Step(Reason.DRAINING, message, again_at=now + timedelta(seconds=1))
    pods = tuple(trainer_pods(world, live.stage_job))
    return Step(Reason.BINDING, f"The training pod goes to {live.claim.node}.", bind=pods)


def _await_node(world: World, live: LiveClaim, now: datetime, limits: Limits) -> Step:
    pods = trainer_pods(world, live.stage_job)
    since = min((pod.bound_at for pod in pods if pod.bound_at), default=now)
    if now >= since + limits.bind:
        why = next((pod.unschedulable for pod in pods if pod.unschedulable), "the scheduler did not say why")
        message = f"The training pod was not bound to {live.claim.node} within {limits.bind.seconds} s: {why}"
        return Step(Reason.NOT_BOUND, message, give_up=True)
    return Step(Reason.BINDING, f"The training pod goes to {live.claim.node}.", again_at=since + limits.bind)


def _train(world: World, live: LiveClaim, now: datetime, limits: Limits) -> Step:
    pods = trainer_pods(world, live.stage_job)
    pod = pods[-1] if pods else None
    if pod is None or pod.ended or pod.deleting:
        return Step(Reason.TRAINING, "The training pod has ended; its result is being read.", admitted=True)
    if not pod.running:
        return _starts(pod, live, now, limits)
    silent = _silence(world, live, now, limits)
    if silent is None:
        unused = f" It uses 1 of its {live.claim.gpus} GPUs." if live.claim.gpus > 1 else ""
        message = f"On {live.claim.node}, attempt {live.stage_job.attempt}.{unused}"
        return Step(Reason.TRAINING, message, admitted=True, again_at=now + timedelta(seconds=30))
    message = f"No report from {pod.key.name} for {silent.seconds} s."
    over = silent >= _stalled_after(world, live, limits) + _STALL_GRACE
    return Step(Reason.STALLED, message, admitted=True, give_up=over, again_at=now + timedelta(seconds=10))


def _starts(pod: PodView, live: LiveClaim, now: datetime, limits: Limits) -> Step:
    over = now >= (pod.bound_at or live.stage_job.created) + limits.start
    why = pod.waiting_message or pod.waiting_reason
    if pod.waiting_reason in IMAGE_TROUBLE:
        return Step(
            Reason.IMAGE_NOT_PULLED,
            f"Pod {pod.key.name}: {why}",
            True,
            give_up=over,
            again_at=now + timedelta(seconds=5),
        )
    if over:
        return Step(Reason.POD_NOT_STARTED, f"Pod {pod.key.name}: {why or 'it has not started'}", True, give_up=True)
    return Step(
        Reason.TRAINING, f"The training pod starts on {live.claim.node}.", True, again_at=now + timedelta(seconds=5)
    )


def _silence(world: World, live: LiveClaim, now: datetime, limits: Limits) -> timedelta | None:
    """How long a trainer that once reported has been silent, if that is too long.

    Silence before this process led proves nothing: nobody listened.
    """
    heartbeat = world.heartbeats.get(live.stage_job.uid)
    progress = live.job.status.progress
    if heartbeat is not None:
        heard = heartbeat.at
    elif progress and progress.attempt == live.stage_job.attempt and progress.reported_at and world.since:
        heard = max(progress.reported_at, world.since)
    else:
        return None
    silent = now - heard
    return silent if silent >= _stalled_after(world, live, limits) else None


def _stalled_after(world: World, live: LiveClaim, limits: Limits) -> timedelta:
    """Five median steps, and at least two minutes; before the first step the model may take as long as a start."""
    heartbeat = world.heartbeats.get(live.stage_job.uid)
    if heartbeat is None or heartbeat.step_seconds is None:
        return max(limits.start, _STALLED_AFTER)
    return max(timedelta(seconds=_STALL_STEPS * heartbeat.step_seconds), _STALLED_AFTER)
