"""spec.resumeFrom: copies the newest checkpoint of an older job to this job, if both train the same.

Prepare does so: nothing takes a GPU before it is known that training can go on from there, and training itself resumes
as after any other attempt.
"""

import shutil
from pathlib import Path
from typing import NoReturn

from sluice_api.artifacts import MANIFEST
from sluice_api.reasons import Reason
from sluice_api.sources import is_object, volume_path
from sluice_api.stages import StageSpec
from sluice_trainer import durable, logs
from sluice_trainer.errors import StageError
from sluice_trainer.paths import resolve_in_claim, why_not_found
from sluice_trainer.plan import different_setting
from sluice_trainer.prepared import PreparedManifest
from sluice_trainer.token_rows import ROWS
from sluice_trainer.train.checkpoints.checkpoint import CheckpointManifest, Checkpoints, progress_of, steps_of
from sluice_trainer.work import work_of
from sluice_trainer.work_folder import WorkFolder

_BEFORE_ALL = 0
"""The attempt in whose name Prepare writes checkpoints: any attempt to train is newer, and may remove them."""


def copy_checkpoint(stage: StageSpec, mine: PreparedManifest) -> None:
    """Copy the checkpoint that training goes on from, unless this job has one of its own already.

    Raises:
        StageError: ResumeRefused, with what is missing there, or what differs from that job.
    """
    work = work_of(stage, attempt=_BEFORE_ALL)
    if Checkpoints(stage, mine.training_plan, work).newest_step() is not None:
        return
    older = _older_job(stage)
    theirs = older.read_manifest(older.folder / "prepared", PreparedManifest)
    if theirs is None:
        _refuse(stage, f"there is no whole prepared/{MANIFEST} in it. Name the folder of a job, <job>-<uid8>")
    if differs := _difference(mine, theirs):
        _refuse(stage, differs)
    checkpoints = older.folder / "checkpoints"
    best: int | None = None
    newest: int | None = None
    for step in steps_of(older.folders(checkpoints)):
        if newest is not None and step != best:
            continue
        folder = older.fetch(checkpoints / f"step-{step}")
        if not _is_whole(folder, step, theirs.training_plan):
            continue
        if newest is None:
            newest, best = step, progress_of(folder).best_step
        _copy(folder, work, step, mine.training_plan)
        older.forget(folder)
    if newest is None:
        _refuse(stage, "it has no whole checkpoint. Create the job without resumeFrom: there is nothing to go on from")
    logs.info("goes on from another job", folder=older.uri, step=newest)


def _older_job(stage: StageSpec) -> WorkFolder:
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


def _difference(mine: PreparedManifest, theirs: PreparedManifest) -> str:
    """The first difference that would change the result, and the remedy; empty when there is none."""
    if mine.base_model_fingerprint != theirs.base_model_fingerprint:
        return f"it was trained from another base model, {theirs.base_model_uri}. Set model.uri to that one"
    if theirs.settings is None:
        return "a version that did not note the job's settings has made it, so they can't be compared"
    if differs := different_setting(mine.settings or {}, theirs.settings):
        field, here, there = differs
        return f"{field} is {here} here and {there} there. Set it to what it is there"
    if any(mine.files.get(name) != theirs.files.get(name) for name in ROWS):
        return "it was trained on other rows. Restore the dataset, the tokenizer and the chat template of that job"
    return ""


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
