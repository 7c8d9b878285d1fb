"""The writer: the newest only, again after a failure, never for a job that is gone, never for who does not lead."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from sluice_api.finetunejob import FineTuneJob, Progress
from sluice_operator.cluster.errors import ApiError, Gone, NotLeading
from sluice_operator.progress import coalesce, writer
from sluice_operator.progress.writer import AT_ONCE, ProgressWriter
from tests.unit.progress.worlds import job


def clock() -> datetime:
    return datetime.now(UTC)


def at_step(step: int, activity: str = "Training") -> Progress:
    return Progress(step=step, activity=activity, attempt=1, reported_at=clock())


class Status:
    """Takes writes, or fails."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.failures: list[Exception] = []
        self.written = asyncio.Event()
        self.hold: asyncio.Event | None = None
        self.at_once = self.most_at_once = 0

    async def write(self, _job: FineTuneJob, progress: Progress) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hold:
                await self.hold.wait()
            if self.failures:
                raise self.failures.pop(0)
            self.steps.append(progress.step)
        finally:
            self.at_once -= 1
            self.written.set()

    async def next(self) -> None:
        await asyncio.wait_for(self.written.wait(), 5)
        self.written.clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalesce, "EVERY", timedelta(seconds=0.2))
    monkeypatch.setattr(writer, "LONGEST_PAUSE", timedelta(seconds=0.1))


async def test_writer_writes_the_first_progress_then_the_newest() -> None:
    status = Status()
    progress = ProgressWriter(status.write, lambda: True, clock)
    async with progress.running():
        progress.offer(job(), at_step(1))
        await status.next()
        for step in (2, 3, 4):
            progress.offer(job(), at_step(step))
        await status.next()
        progress.offer(job(), at_step(5, "Finished"))
        await status.next()
    assert status.steps == [1, 4, 5]


async def test_progress_offered_during_a_write_is_not_lost() -> None:
    status = Status()
    status.hold = asyncio.Event()
    progress = ProgressWriter(status.write, lambda: True, clock)
    async with progress.running():
        progress.offer(job(), at_step(1))
        await asyncio.sleep(0)
        progress.offer(job(), at_step(2, "Saving"))
        await asyncio.sleep(0.05)
        progress.offer(job(), at_step(3, "Finished"))
        assert status.most_at_once == 1
        status.hold.set()
        await status.next()
        while status.steps[-1] != 3:
            await status.next()
    assert status.steps[-1] == 3
    assert status.most_at_once == 1


async def test_a_failed_write_is_tried_again_with_the_newest() -> None:
    status = Status()
    status.failures = [ApiError(500, "InternalError", "no"), ApiError(0, "Timeout", "no answer")]
    progress = ProgressWriter(status.write, lambda: True, clock)
    async with progress.running():
        progress.offer(job(), at_step(1))
        await status.next()
        for step in range(2, 9):  # reports go on: they must not put the next try off for ever
            progress.offer(job(), at_step(step))
            await asyncio.sleep(0.05)
        await status.next()
    assert status.steps[0] > 1


@pytest.mark.parametrize("failure", [Gone("it is deleted"), NotLeading("another one does")])
async def test_progress_is_dropped_if_gone_or_not_leading(failure: Exception) -> None:
    status = Status()
    status.failures = [failure]
    progress = ProgressWriter(status.write, lambda: True, clock)
    async with progress.running():
        progress.offer(job(), at_step(1))
        await status.next()
        await asyncio.sleep(0)
        assert progress.jobs == frozenset()
    assert status.steps == []


async def test_a_forgotten_job_is_not_written() -> None:
    status = Status()
    progress = ProgressWriter(status.write, lambda: True, clock)
    async with progress.running():
        progress.offer(job(), at_step(1))
        await status.next()
        progress.offer(job(), at_step(2))
        progress.forget("job-uid")
        await asyncio.sleep(0.3)
    assert status.steps == [1]


async def test_writer_writes_nothing_while_not_leading() -> None:
    status = Status()
    progress = ProgressWriter(status.write, lambda: False, clock)
    async with progress.running():
        progress.offer(job(), at_step(1))
        await asyncio.sleep(0.05)
        assert progress.jobs == frozenset()
    assert status.steps == []


async def test_many_jobs_are_written_a_few_at_once() -> None:
    status = Status()
    progress = ProgressWriter(status.write, lambda: True, clock)
    status.hold = asyncio.Event()
    async with progress.running():
        for number in range(50):
            progress.offer(job(f"job-{number}", f"uid-{number}"), at_step(number))
        await asyncio.sleep(0.05)
        status.hold.set()
        while len(status.steps) < 50:
            await status.next()
    assert status.most_at_once == AT_ONCE
    assert sorted(status.steps) == list(range(50))


async def test_restarted_operator_does_not_repeat_progress_in_the_status() -> None:
    said = {"progress": {"step": 7, "activity": "Training", "attempt": 1, "reportedAt": clock().isoformat()}}
    status = Status()
    progress = ProgressWriter(status.write, lambda: True, clock)
    async with progress.running():
        progress.offer(job(status=said), at_step(7))
        await asyncio.sleep(0.3)
    assert status.steps == []
