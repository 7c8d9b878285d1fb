"""Writes status.progress when it is due: the newest value only, one write per job at a time, few at once."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob, Progress
from sluice_operator.cluster.errors import ApiError, Gone, NotLeading
from sluice_operator.progress.coalesce import Written, due

AT_ONCE = 4
"""Writes in flight: the API server has more to do than to note progress."""
LONGEST_PAUSE = timedelta(seconds=30)

log = logging.getLogger(__name__)

Write = Callable[[FineTuneJob, Progress], Awaitable[None]]
"""Writes status.progress of exactly this job. It may raise Gone, NotLeading and ApiError."""


@dataclass(slots=True)
class _Job:
    """The newest progress of one job and what its status says."""

    job: FineTuneJob
    newest: Progress
    written: Written | None
    failures: int = 0
    not_before: datetime | None = None
    timer: asyncio.TimerHandle | None = None
    writing: bool = False


class ProgressWriter:
    """Coalesces accepted reports into writes."""

    def __init__(self, write: Write, leads: Callable[[], bool], clock: Callable[[], datetime]) -> None:
        """`write` writes, only while this replica `leads`; `clock` is the operator's."""
        self._write_status = write
        self._leads = leads
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._ready: asyncio.Queue[str] = asyncio.Queue()

    def newest(self, job: FineTuneJob) -> Progress | None:
        """What the next report of a job builds on: the newest one, or what its status kept over a restart."""
        known = self._jobs.get(job.metadata.uid)
        return known.newest if known else job.status.progress

    def offer(self, job: FineTuneJob, progress: Progress) -> None:
        """Take the newest progress of a job; it is written when it is due."""
        known = self._jobs.get(job.metadata.uid)
        if known is None:
            kept = job.status.progress
            written = Written(kept, kept.reported_at) if kept and kept.reported_at else None
            known = self._jobs[job.metadata.uid] = _Job(job, progress, written)
        known.job, known.newest = job, progress
        self._plan(known)

    def forget(self, uid: str) -> None:
        """Drop a job that is gone, with what was not written yet."""
        known = self._jobs.pop(uid, None)
        if known and known.timer:
            known.timer.cancel()

    @property
    def jobs(self) -> frozenset[str]:
        """Uids of the jobs that it knows."""
        return frozenset(self._jobs)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write what is due until the block ends."""
        async with asyncio.TaskGroup() as group:
            writers = [group.create_task(self._write_ready()) for _ in range(AT_ONCE)]
            try:
                yield
            finally:
                for writer in writers:
                    writer.cancel()
                for uid in self.jobs:
                    self.forget(uid)

    def _due_at(self, known: _Job) -> datetime | None:
        at = due(known.written, known.newest)
        return None if at is None else max(at, known.not_before or at)

    def _plan(self, known: _Job) -> None:
        """Set the time of the next write anew."""
        if known.timer:
            known.timer.cancel()
            known.timer = None
        at = self._due_at(known)
        if at is None or known.writing:
            return
        wait = (at - self._clock()).total_seconds()
        known.timer = asyncio.get_running_loop().call_later(
            max(wait, 0), self._ready.put_nowait, known.job.metadata.uid
        )

    async def _write_ready(self) -> None:
        while True:
            known = self._jobs.get(await self._ready.get())
            if known is None or known.writing:
                continue
            if not self._leads():
                self.forget(known.job.metadata.uid)
                continue
            at = self._due_at(known)
            if at is not None and at <= self._clock():
                await self._write(known)
            if known.job.metadata.uid in self._jobs:
                self._plan(known)

    async def _write(self, known: _Job) -> None:
        """Write the newest progress. A failure is tried again later, with what is the newest then."""
        progress = known.newest
        known.writing = True
        try:
            await self._write_status(known.job, progress)
        except (Gone, NotLeading):
            self.forget(known.job.metadata.uid)
        except ApiError as error:
            self._failed(known, str(error))
        else:
            known.written, known.failures, known.not_before = Written(progress, self._clock()), 0, None
        finally:
            known.writing = False

    def _failed(self, known: _Job, why: str) -> None:
        known.failures += 1
        pause = min(timedelta(seconds=2.0 ** min(known.failures, 10)), LONGEST_PAUSE)
        known.not_before = self._clock() + pause
        log.warning("progress not written", extra={"job": str(known.job.metadata.name), "error": why})
