"""Who is next? The jobs of a pool that wait for GPUs, in their order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.gpupool import GPUPool
from sluice_api.stages import Stage
from sluice_operator.facts.live_claims import live_claims_of
from sluice_operator.facts.outcomes import done, recorded, waits_since
from sluice_operator.observe.fence import each
from sluice_operator.observe.memo import once_a_job
from sluice_operator.observe.world import World, identity, key_of
from sluice_operator.plan.avoided_nodes import avoided_until
from sluice_operator.plan.obstacle import Obstacle
from sluice_operator.plan.pool.refusals import refusal
from sluice_operator.plan.pool.scale_up import asking_obstacle
from sluice_operator.plan.readiness import MOST, asks, asks_until, readiness


def waiting_for_larger_nodes(world: World, pool: GPUPool, now: datetime) -> list[tuple[FineTuneJob, Obstacle]]:
    """Jobs that ask for nodes and fit on no node that exists, in their order, each with why.

    They can use nothing that is there. So they are not in the queue and hold back no other job, until a node has come.
    """

    def waits(job: FineTuneJob) -> bool:
        larger = asks(job, now) and refusal(world, job) and is_pending(world, job, now, nodes_may_come=True)
        return bool(larger) and not live_claims_of(world, job)

    return each(_in_order(world, pool, now, waits), key_of, lambda job: (job, _larger(world, job, now)))


def _larger(world: World, job: FineTuneJob, now: datetime) -> Obstacle:
    """Why the job waits for larger nodes.

    Raises:
        ValueError: the job does not ask for nodes, or nothing refuses it.
    """
    found, asking = refusal(world, job), asking_obstacle(world, job, now)
    if asking is None or found is None:
        raise ValueError(f"{job.metadata.name} waits for no larger nodes")
    return replace(asking, message=f"{asking.message} {found.message}")


def asking(pool: GPUPool, jobs: Iterable[FineTuneJob], now: datetime) -> tuple[FineTuneJob, ...]:
    """Of waiting jobs, the first `MOST` in the pool's order that ask for nodes now."""
    ask = (job for job in jobs if asks(job, now))
    return tuple(sorted(ask, key=lambda job: place_in_queue(pool, job, now))[:MOST])


def pending(world: World, pool: GPUPool, now: datetime) -> list[FineTuneJob]:
    """Jobs that are ready for GPUs and hold none, in their order: priority, then age."""
    return _in_order(world, pool, now, lambda job: is_pending(world, job, now) and not live_claims_of(world, job))


def _in_order(world: World, pool: GPUPool, now: datetime, belongs: Callable[[FineTuneJob], bool]) -> list[FineTuneJob]:
    """The pool's unfinished jobs for which `belongs` is true, in their order."""
    jobs = world.unfinished.get(pool.metadata.name, {}).values()
    places = each(jobs, key_of, lambda job: (place_in_queue(pool, job, now), job) if belongs(job) else None)
    return [job for _, job in sorted((found for found in places if found), key=lambda found: found[0])]


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


def is_pending(world: World, job: FineTuneJob, now: datetime, *, nodes_may_come: bool = False) -> bool:
    """Whether a job that holds no claim should get GPUs as soon as there are any.

    Args:
        nodes_may_come: do not refuse the job because it is larger than what exists.
    """
    if _is_training(world, job):
        return False
    return readiness(world, job).at(now) and refusal(world, job, nodes_may_come=nodes_may_come) is None


def ready_since(job: FineTuneJob) -> datetime | None:
    """When a job became ready for its first GPUs; None if it is not ready, or has had an attempt to train."""
    outcomes = recorded(job)
    prepared = done(outcomes, Stage.PREPARE)
    return prepared.ended_at if prepared and not outcomes.of(Stage.TRAIN) else None


def _is_training(world: World, job: FineTuneJob) -> bool:
    """Whether the job has a training attempt that has not ended."""
    stage_jobs = world.stage_jobs_of.get(identity(job), {}).values()
    return any(stage_job.stage is Stage.TRAIN and not stage_job.finished for stage_job in stage_jobs)


def next_turns(world: World, pool: GPUPool, now: datetime) -> Iterator[datetime | None]:
    """Moments at which time alone may change the decision about a job of the pool, or the order of all jobs."""
    jobs = world.unfinished.get(pool.metadata.name, {}).values()
    for moments in each(jobs, key_of, lambda job: () if _is_training(world, job) else _turns(world, job)):
        yield from moments
    if (seconds := pool.spec.ageing_seconds) and jobs:
        yield datetime.fromtimestamp((_periods(now, seconds) + 1) * seconds, UTC)


def _turns(world: World, job: FineTuneJob) -> Sequence[datetime | None]:
    """Moments at which time alone may change the decision about one job."""
    if world.stage_jobs_of.get(identity(job)):
        return (readiness(world, job).begins, asks_until(job), *avoided_until(job))
    return _turns_by_record(world, job)  # kept until the job changes, because thousands of waiting jobs are asked


@once_a_job
def _turns_by_record(world: World, job: FineTuneJob) -> Sequence[datetime | None]:
    return (readiness(world, job).begins, asks_until(job), *avoided_until(job))
