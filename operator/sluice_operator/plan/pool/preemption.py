"""Does training give way to a job, and from when on (scheduling.interruption)?"""

from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob
from sluice_api.meta import is_extended
from sluice_api.reasons import Reason
from sluice_api.scheduling import GiveWay
from sluice_operator.facts.claims import LiveClaim, Phase, phase_by_pods, trainer_pods
from sluice_operator.facts.outcomes import waits_since
from sluice_operator.observe.world import World
from sluice_operator.plan.obstacle import Obstacle, clock, shown


def preemption_obstacle(world: World, live: LiveClaim, job: FineTuneJob, now: datetime) -> Obstacle | None:
    """Why a claim's training does not give way to a job now; None if it does."""
    name = shown(live.name, job)
    if why := _never_preempted(world, live, job):
        return Obstacle(Reason.WAITING_FOR_GPUS, f"{name} does not give way: {why}.")
    at = _preemptible_at(world, live, job)
    if at <= now:
        return None
    message = f"{name} gives way at {clock(at, now)}, or ends before."
    return Obstacle(Reason.WAITING_FOR_GPUS, message, at, ends_with=(live.key,))


def _never_preempted(world: World, live: LiveClaim, job: FineTuneJob) -> str:
    """Why a claim never gives way to a job, as part of a sentence; empty if it does now or may later."""
    if live.claim.host:
        return f"it trains beside {live.claim.host} and has no GPU of its own"
    if live.claim.borrowed and not is_extended(live.claim.resource):
        return "it trains on replicas that sleep"  # until it has saved its state, both would use the GPUs
    mine, theirs = live.job.spec.scheduling, job.spec.scheduling
    if mine.interruption.policy is not GiveWay.TO_HIGHER_PRIORITY:
        return f"its scheduling.interruption.policy is {mine.interruption.policy}"
    if theirs.priority <= mine.priority:
        return f"its priority {mine.priority} is not below {theirs.priority}"
    if live.stage_job.finished or phase_by_pods(world, live) is not Phase.HOLDING:
        return "it does not train yet, or has ended"
    return ""


def _preemptible_at(world: World, live: LiveClaim, job: FineTuneJob) -> datetime:
    """From when training gives way to a job: it has run for minRunSeconds, and the job waited for graceSeconds."""
    terms = live.job.spec.scheduling.interruption
    began = max(pod.bound_at or pod.created for pod in trainer_pods(world, live.stage_job))
    has_run = began + timedelta(seconds=terms.min_run_seconds)
    since = waits_since(job)
    return max(has_run, since + timedelta(seconds=terms.grace_seconds)) if since else has_run
