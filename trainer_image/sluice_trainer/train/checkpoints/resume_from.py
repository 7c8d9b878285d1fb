"""spec.resumeFrom: copies the newest checkpoint of an older job to this job, if both train the same.

Prepare does so: nothing takes a GPU before it is known that training can go on from there, and training itself resumes
as after any other attempt.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sluice_api.artifacts import MANIFEST
from sluice_api.reasons import Reason
from sluice_api.sources import is_object, volume_path
from sluice_api.stages import StageSpec
from sluice_trainer import durable, logs
from sluice_trainer.errors import StageError
from sluice_trainer.paths import resolve_in_claim, why_not_found
from sluice_trainer.plan import different_setting, settings_of
from sluice_trainer.prepared import AnyManifest, PreparedManifest
from sluice_trainer.token_rows import ROWS
from sluice_trainer.train.checkpoints.checkpoint import CheckpointManifest, Checkpoints, progress_of, steps_of
from sluice_trainer.work import work_of
from sluice_trainer.work_folder import WorkFolder

_BEFORE_ALL = 0
"""The attempt in whose name Prepare writes checkpoints: any attempt to train is newer, and may remove them."""
_NO_CHECKPOINT = "it has no whole checkpoint. Create the job without resumeFrom: there is nothing to go on from"


@dataclass(frozen=True)
class OlderJob:
    """The job that training goes on from. All that can be compared before rows are made is the same."""

    stage: StageSpec
    """Of this job."""
    work: WorkFolder
    """Of that one."""
    manifest: PreparedManifest
    """Of its rows."""

    def copy_checkpoint(self, mine: PreparedManifest) -> None:
        """Copy the checkpoint that training goes on from to this job.

        Raises:
            StageError: ResumeRefused: the rows differ, or no checkpoint is whole.
        """
        if any(mine.files.get(name) != self.manifest.files.get(name) for name in ROWS):
            rows = "it was trained on other rows. Restore the dataset, the tokenizer and the chat template of that job"
            _refuse(self.stage, rows)
        work = work_of(self.stage, attempt=_BEFORE_ALL)
        checkpoints = self.work.folder / "checkpoints"
        best: int | None = None
        newest: int | None = None
        for step in steps_of(self.work.folders(checkpoints)):
            if newest is not None and step != best:
                continue
            folder = self.work.fetch(checkpoints / f"step-{step}")
            if not _is_whole(folder, step, self.manifest.plan):
                continue
            if newest is None:
                newest, best = step, progress_of(folder).best_step
            _copy(folder, work, step, mine.plan)
            self.work.forget(folder)
        if newest is None:
            _refuse(self.stage, _NO_CHECKPOINT)
        logs.info("goes on from another job", folder=self.work.uri, step=newest)


def older_job(stage: StageSpec, plan: str, base_fingerprint: str) -> OlderJob | None:
    """The job to go on from; None if this one has a checkpoint of its own already.

    Args:
        stage: Of this job.
        plan: plan_digest of it.
        base_fingerprint: Of its base model.

    Raises:
        StageError: ResumeRefused, with what is missing there, or what differs from that job.
    """
    if Checkpoints(stage, plan, work_of(stage, attempt=_BEFORE_ALL)).newest_step() is not None:
        return None
    work = _work_of_older(stage)
    rows = work.folder / "prepared"
    theirs = work.read_manifest(rows, PreparedManifest)
    if theirs is None:
        found = work.read_manifest(rows, AnyManifest)
        if found and found.foreign:
            _refuse(stage, f"its rows can't be compared: {found.foreign}. Create the job without resumeFrom")
        _refuse(stage, f"there is no whole prepared/{MANIFEST} in it. Name the folder of a job, <job>-<uid8>")
    if base_fingerprint != theirs.base_model_fingerprint:
        _refuse(stage, f"it was trained from another base model, {theirs.base_model_uri}. Set model.uri to that one")
    if differs := different_setting(settings_of(stage), theirs.settings):
        field, here, there = differs
        _refuse(stage, f"{field} is {here} here and {there} there. Set it to what it is there")
    if not steps_of(work.folders(work.folder / "checkpoints")):
        _refuse(stage, _NO_CHECKPOINT)
    return OlderJob(stage, work, theirs)


def _work_of_older(stage: StageSpec) -> WorkFolder:
    """The folder of the job to go on from."""
    uri = (stage.spec.resume_from or "").rstrip("/")
    if is_object(uri):
        from sluice_trainer.work_in_store import WorkInStore

        return WorkInStore(uri, stage, _BEFORE_ALL, field="resumeFrom")
    path = volume_path(uri)
    found = resolve_in_claim(path) if path else None
    if path is None or found is None or not found.is_dir():
        _refuse(stage, why_not_found(path, "folder") if path else "it is no address of a folder")
    return WorkFolder(found, uri)


def _is_whole(folder: Path, step: int, plan: str) -> bool:
    """Whether a checkpoint is as its manifest says, and has files of its own folder only, no links."""
    manifest = durable.read_manifest(folder, CheckpointManifest)
    if manifest is None or (manifest.plan, manifest.step) != (plan, step):
        return False
    names = [Path(name) for name in manifest.files]
    inside = all(len(name.parts) == 1 and not (folder / name).is_symlink() for name in names)
    return inside and durable.damaged_file(folder, manifest.files) is None


def _copy(source: Path, work: WorkFolder, step: int, plan: str) -> None:
    manifest = durable.read_manifest(source, CheckpointManifest)
    files = manifest.files if manifest else {}
    size = sum((source / name).stat().st_size for name in files)
    with work.writing(size), work.new_folder(work.folder / "checkpoints" / f"step-{step}") as unfinished:
        for name in files:
            shutil.copyfile(source / name, unfinished / name, follow_symlinks=False)
        (unfinished / MANIFEST).write_text(durable.sealed(CheckpointManifest(plan=plan, step=step, files=files)))


def _refuse(stage: StageSpec, why: str) -> NoReturn:
    raise StageError(Reason.RESUME_REFUSED, f"resumeFrom {stage.spec.resume_from}: {why}.".replace("..", "."))
