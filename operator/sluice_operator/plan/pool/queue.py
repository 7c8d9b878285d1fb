"""Who is next? The jobs of a pool that wait for GPUs, in their order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import itemgetter

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.stages import Stage
from sluice_operator.facts.live_claims import live_claims_of
from sluice_operator.facts.outcomes import done, recorded, waits_since
from sluice_operator.observe.fence import each
from sluice_operator.observe.memo import once_a_record
from sluice_operator.observe.world import World, identity, key_of
from sluice_operator.plan.avoided_nodes import avoided_until
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.pool.refusals import refusal
from sluice_operator.plan.pool.scale_up import asking_obstacle
from sluice_operator.plan.readiness import MOST, Readiness, asks, asks_until, readiness


@dataclass(frozen=True, slots=True)
class Line:
    """How the unfinished jobs of a pool that do not train stand."""

    pending: list[FineTuneJob]
    """Those that are ready for GPUs and hold none, in their order: priority, then age."""
    for_larger_nodes: list[tuple[FineTuneJob, Obstacle]]
    """Those that ask for nodes and fit on no node that exists, in their order, each with why.

    They can use nothing that is there. So they hold back no other job until a node has come."""
    turns: list[datetime]
    """Moments at which time alone may change the decision about one of them, or the order of all."""


def line_up(world: World, pool: GPUPool, now: datetime) -> Line:
    """Look at each unfinished job of a pool once, as there may be thousands."""
    jobs = world.unfinished.get(pool.metadata.name, {}).values()
    pending: list[tuple[tuple[int, str, str], FineTuneJob]] = []
    larger: list[tuple[tuple[int, str, str], FineTuneJob, Obstacle]] = []
    turns: list[datetime] = []

    def look(job: FineTuneJob) -> None:
        stage_jobs = world.stage_jobs_of.get(identity(job), {})
        if any(stage_job.stage is Stage.TRAIN and not stage_job.finished for stage_job in stage_jobs.values()):
            return
        ready, moments = _ready(world, job)
        turns.extend(moments)
        if not ready.at(now) or (stage_jobs and live_claims_of(world, job)):
            return
        refused, place = refusal(world, job), place_in_queue(pool, job, now)
        if refused is None:
            pending.append((place, job))
        elif (asked := asking_obstacle(world, job, now)) and refusal(world, job, nodes_may_come=True) is None:
            larger.append((place, job, replace(asked, message=f"{asked.message} {refused.message}")))

    each(jobs, key_of, look)
    if (seconds := pool.spec.ageing_seconds) and jobs:
        turns.append(datetime.fromtimestamp((_periods(now, seconds) + 1) * seconds, UTC))
    return Line(
        [job for _, job in sorted(pending, key=itemgetter(0))],
        [(job, why) for _, job, why in sorted(larger, key=itemgetter(0))],
        turns,
    )


def asking(pool: GPUPool, jobs: Iterable[FineTuneJob], now: datetime) -> tuple[FineTuneJob, ...]:
    """Of waiting jobs, the first `MOST` in the pool's order that ask for nodes now."""
    ask = (job for job in jobs if asks(job, now))
    return tuple(sorted(ask, key=lambda job: place_in_queue(pool, job, now))[:MOST])


def place_in_queue(pool: GPUPool, job: FineTuneJob, now: datetime) -> tuple[int, str, str]:
    """Sort key: higher priority first, then the older job. With ageingSeconds each period of waiting raises a job by 1.

    All jobs share one clock of periods. So the order changes only when a period ends, however many jobs wait.
    """
    priority = job.spec.scheduling.priority
    if pool.spec.ageing_seconds and (since := waits_since(job)):
        priority += _periods(now, pool.spec.ageing_seconds) - _periods(since, pool.spec.ageing_seconds)
    return (-priority, str(job.metadata.creation_timestamp), job.metadata.uid)


def _periods(moment: datetime, seconds: int) -> int:
    """How many periods have begun since 1970."""
    return int(moment.timestamp() // seconds)


def ready_since(job: FineTuneJob) -> datetime | None:
    """When a job became ready for its first GPUs; None if it is not ready, or has had an attempt to train."""
    outcomes = recorded(job)
    prepared = done(outcomes, Stage.PREPARE)
    return prepared.ended_at if prepared and not outcomes.of(Stage.TRAIN) else None


@once_a_record
def _ready(world: World, job: FineTuneJob) -> tuple[Readiness, Sequence[datetime]]:
    """When a job wants GPUs, and the moments at which time alone may change the decision about it."""
    ready = readiness(world, job)
    return ready, [at for at in (ready.begins, asks_until(job), *avoided_until(job)) if at]
