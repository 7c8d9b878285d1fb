"""Where a job stands in the queue, and when it may start: told so that it is seldom written anew."""

from datetime import datetime, timedelta

import pytest

from sluice_api.finetunejob import Progress
from sluice_operator.observe.world import job_key
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.pool.waiting import settled
from sluice_operator.settings import Limits
from sluice_operator.status.job import job_status
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, parse


def reports(builder: WorldBuilder, name: str, seconds_left: int) -> None:
    job = builder.world.jobs[job_key("team", name)]
    progress = Progress(attempt=1, seconds_left=seconds_left, reported_at=NOW)
    builder.version += 1000
    metadata = job.metadata.model_copy(update={"resource_version": str(builder.version)})
    builder.put(
        job.model_copy(update={"metadata": metadata, "status": job.status.model_copy(update={"progress": progress})})
    )


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        ("the next starts when enough comes back", "a: needs 1, on n1 | b: needs 1, on n1 | x: needs 2, queue", 600),
        ("one GPU is back earlier", "a: needs 1, on n1 | b: needs 1, on n1 | x: needs 1, queue", 60),
        (
            "who is in front takes it first",
            "a: needs 1, on n1 | b: needs 1, on n1 | y: needs 1, queue, priority 1 | x: needs 1, queue",
            600,
        ),
        ("nobody knows when a job ends that says nothing", "c: needs 2, on n1 | x: needs 1, queue", None),
    ],
)
def test_estimated_start_is_when_enough_gpus_come_back(rule: str, world: str, expected: int | None) -> None:
    builder = parse(f"pool: 2 gpus | {world}")
    for name, seconds in (("a", 60), ("b", 600)):
        if job_key("team", name) in builder.world.jobs:
            reports(builder, name, seconds)
    wait = allocated(builder).waits[job_key("team", "x")]
    assert wait.starts_at == moment(expected), rule


def test_status_has_queue_position_and_expected_return() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, on n1 | b: needs 1, queue | c: needs 1, queue")
    reports(builder, "a", 300)
    wait = allocated(builder).waits[job_key("team", "c")]
    job = builder.world.jobs[job_key("team", "c")]
    status = job_status(builder.world, job, plan_job(builder.world, job, NOW, Limits(), wait), NOW)
    assert status.queue is not None
    assert (status.queue.position, status.queue.estimated_start) == ("2", None)
    holder = builder.world.jobs[job_key("team", "a")]
    allocation = job_status(builder.world, holder, plan_job(builder.world, holder, NOW, Limits()), NOW).allocation
    assert allocation is not None
    assert allocation.expected_return == NOW + timedelta(seconds=300)


def test_queue_position_far_behind_is_a_round_number() -> None:
    builder = parse("pool: 1 gpus | z: needs 1, on n1")
    for number in range(120):
        builder.job(f"j{number:03}", scheduling={"policy": "Queue"})
    before = allocated(builder).waits
    assert before[job_key("team", "j009")].position == "10"
    assert before[job_key("team", "j010")].position == "more than 10"
    assert before[job_key("team", "j119")].position == "more than 100"
    first = builder.world.jobs[job_key("team", "j000")]
    builder.store.remove(job_key("team", "j000"), first.metadata.uid)
    after = allocated(builder).waits
    changed = [key.name for key, wait in after.items() if before[key] != wait]
    assert changed == [f"j{number:03}" for number in (*range(1, 11), 100)]


@pytest.mark.parametrize(
    ("rule", "before", "after", "expected"),
    [
        ("the first estimate is taken", None, 100, 100),
        ("one that is gone is gone", 100, None, None),
        ("seconds are not worth a write", 100, 130, 100),
        ("nor is a fifth of a long time", 10_000, 11_000, 10_000),
        ("what is wrong is corrected", 1000, 3000, 3000),
    ],
)
def test_estimated_start_ignores_small_changes(
    rule: str, before: int | None, after: int | None, expected: int | None
) -> None:
    assert settled(moment(before), moment(after), NOW) == moment(expected), rule


def moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else NOW + timedelta(seconds=seconds)
