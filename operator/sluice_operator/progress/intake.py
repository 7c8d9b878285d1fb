"""What an accepted report changes: the store, the queue, and in a while status.progress."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from sluice_api.finetunejob import FineTuneJob
from sluice_api.reports import Activity, EngineReport, TrainingReport
from sluice_api.stages import Stage
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from sluice_operator.observe.world import Heartbeat, Reported, World, identity, job_key
from sluice_operator.progress.accept import Attempt, Mark, Position, accept, must_be_newer
from sluice_operator.progress.coalesce import progress_after
from sluice_operator.progress.effects import concerned
from sluice_operator.progress.identity import Replica, Trainer
from sluice_operator.progress.writer import ProgressWriter


class Intake:
    """Takes reports of known posters, each only if it is newer than the last."""

    def __init__(self, store: Store, writer: ProgressWriter, wake: Callable[[Key], None]) -> None:
        """Nothing is kept here that a restart must not lose."""
        self._store = store
        self._writer = writer
        self._wake = wake
        self._term = 0
        self._positions: dict[tuple[str, Stage], Position] = {}
        self._marks: dict[str, Mark] = {}
        """Of engines' pods, by their uid."""
        self.training: dict[str, TrainingReport] = {}
        """The newest report of each job's training, by the job's uid."""

    def take_training(self, trainer: Trainer, report: TrainingReport, now: datetime) -> None:
        """Take what a trainer says.

        A report that is too old is a sign of life all the same: whoever has stolen the pod's token can make its reports
        too old, and must not make it silent.

        Raises:
            Refused: it is not newer than the last of this stage.
        """
        job, stage_job = trainer.job, trainer.stage_job
        uid, stage = job.metadata.uid, stage_job.stage
        key = job_key(job.metadata.namespace, job.metadata.name)
        world = self._this_term()
        last = self._positions.get((uid, stage)) or recovered(job, stage)
        pod = Attempt(stage_job.attempt, stage_job.uid, newest_attempt(world, job, stage))
        position = self._positions[uid, stage] = accept(last, pod, report.attempt, report.sequence)
        if not position.mark.accepted and not report.message:
            self.hear(trainer, now)
        must_be_newer(report.sequence, position.mark)

        before = world.heartbeats.get(stage_job.uid)
        alive = before.at if before and report.message else now  # one that says it stands still does not go on
        step_seconds = None if report.activity is Activity.SAVING else report.step_seconds
        self._store.findings.heartbeat(
            stage_job.uid, Heartbeat(stage_job.attempt, alive, step_seconds, report.message or "")
        )
        self._writer.offer(job, progress_after(self._writer.newest(job), stage, report, now))
        if stage is Stage.TRAIN:
            self.training[uid] = report
        first = last is None or last.stage_job_uid != stage_job.uid
        if first or report.activity is Activity.FINISHED:
            self._wake(key)

    def hear(self, trainer: Trainer, now: datetime) -> None:
        """Take as a sign of life what a trainer posts and is not accepted, for its number or because it is too much."""
        before = self._this_term().heartbeats.get(trainer.stage_job.uid)
        if before is not None:
            self._store.findings.heartbeat(trainer.stage_job.uid, replace(before, at=now))

    def take_engine(self, replica: Replica, report: EngineReport, now: datetime) -> None:
        """Take what the agent of a slot says.

        Raises:
            Refused: it is not newer than the last of this pod.
        """
        world, uid = self._this_term(), replica.pod.uid
        mark = self._marks[uid] = self._marks.get(uid, Mark()).after(report.sequence)
        must_be_newer(report.sequence, mark)
        before = world.reports.get(uid)
        keys = list(concerned(world, replica, before.report if before else None, report))
        self._store.findings.report(uid, before.then(report, now) if before else Reported(report, now))
        for key in keys:
            self._wake(key)

    def forget_gone(self) -> None:
        """Drop what is kept of jobs and pods that are no more."""
        world = self._this_term()
        jobs = {job.metadata.uid for job in world.jobs.values()}
        pods = {pod.uid for pod in world.pods.values()}
        self._positions = {place: last for place, last in self._positions.items() if place[0] in jobs}
        self._marks = {uid: mark for uid, mark in self._marks.items() if uid in pods}
        for uid in self.training.keys() - jobs:
            del self.training[uid]
        for uid in self._writer.jobs - jobs:
            self._writer.forget(uid)

    def _this_term(self) -> World:
        """The World now. Between two terms another leader has accepted reports: what was kept here is old."""
        world = self._store.world()
        if world.term != self._term:
            self._term = world.term
            self._positions.clear()
            self._marks.clear()
            self.training.clear()
            for uid in self._writer.jobs:
                self._writer.forget(uid)
        return world


def recovered(job: FineTuneJob, stage: Stage) -> Position | None:
    """What the status says that an earlier leader accepted. It has the attempts to train alone."""
    progress = job.status.progress
    if stage is not Stage.TRAIN or progress is None or progress.attempt == 0:
        return None
    return Position.recovered(progress.attempt)


def newest_attempt(world: World, job: FineTuneJob, stage: Stage) -> int:
    """The highest attempt of a stage that has a Job."""
    jobs = world.stage_jobs_of.get(identity(job), {}).values()
    return max((made.attempt for made in jobs if made.stage is stage), default=0)
