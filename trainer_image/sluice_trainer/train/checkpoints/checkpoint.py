"""Checkpoints: <work>/checkpoints/step-<N>/, each whole or not there, and a manifest when training is complete."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt
from safetensors.torch import save_file

from sluice_api.artifacts import MANIFEST
from sluice_api.model import Model
from sluice_api.reasons import Reason
from sluice_api.reports import MAX_UNSAVED_CHARACTERS
from sluice_api.stages import ExitCode, StageSpec, TrainResult, grace_seconds
from sluice_trainer import durable, failpoints, logs, metrics
from sluice_trainer.errors import PeerLost, StageError
from sluice_trainer.train.checkpoints.sharded import ShardedSaver
from sluice_trainer.train.checkpoints.state import WEIGHT, Progress, Snapshot, TrainingState
from sluice_trainer.train.checkpoints.tensor_files import WHOLE, Shard, read
from sluice_trainer.work import work_of
from sluice_trainer.work_folder import WorkFolder

_PROGRESS_FILE = "state.json"
_LAST_WORDS_SECONDS = 5.0
"""Of the pod's grace, for the outcome and the last report."""


class CheckpointManifest(Model):
    """step-<N>/manifest.json, written last."""

    format: Literal["sluice.checkpoint/v2"] = "sluice.checkpoint/v2"
    plan: str
    step: NonNegativeInt
    files: dict[str, str]
    """sha256 of each file."""


class CompletedTraining(Model):
    """checkpoints/manifest.json: training is complete, and step-<result.result_step>/ is its result."""

    format: str = "sluice.checkpoints/v1"
    plan: str
    result: TrainResult


class Checkpoints:
    """The checkpoints of one job."""

    def __init__(self, stage: StageSpec, plan: str, work: WorkFolder | None = None) -> None:
        """Touches nothing.

        Args:
            stage: What is done.
            plan: The plan of its prepared rows: checkpoints of others are not looked at.
            work: The job's folder; that of the stage, if it is not given.
        """
        self._keep_checkpoints = stage.spec.training.keep_checkpoints
        self._grace_seconds = grace_seconds(stage.spec)
        self.work = work or work_of(stage)
        self._folder = self.work.folder / "checkpoints"
        self._plan = plan
        self._saving = threading.Lock()
        self._background: threading.Thread | None = None
        self._saving_step: int | None = None
        self._fetched: Path | None = None
        """The checkpoint that was read, of which there may be a copy here."""
        self.sharded: ShardedSaver | None = None
        """Writes each checkpoint together with the other processes, where the model is sharded; None otherwise."""
        self.durable_step: int | None = None
        """Step of the newest checkpoint that this process has saved or loaded."""
        self.unsaved: str | None = None
        """Why the last save failed; None when it did not."""
        self.best_step: int | None = None
        """Step of the best checkpoint, which is kept however old it is."""

    def save(self, snapshot: Callable[[], Snapshot], *, last: bool = False) -> int:
        """Make a state durable and return its step. Only one save goes on at a time: a second caller waits.

        Args:
            snapshot: Called when no other save is going on; nothing is written when its step is durable already.
            last: The process is about to end.

        Raises:
            PeerLost: the checkpoint is sharded, and all processes are about to end.
            StageError: it could not be written. What was durable before still is.
        """
        with self._saving:
            state = snapshot()
            step = state.progress.step
            is_new = self.durable_step is None or step > self.durable_step
            if is_new or self.sharded is not None:  # a sharded save needs all processes
                started, self._saving_step = time.monotonic(), step
                self._make_room()
                try:
                    self._write(state, is_new=is_new, last=last)
                finally:
                    self._saving_step = None
                self.durable_step, self.unsaved = step, None
                logs.info("checkpoint", step=step, seconds=round(time.monotonic() - started, 3))
                self._prune(step)
            return step

    def save_last(self, state: TrainingState) -> int:
        """Make the last update durable, and let none follow; returns its step.

        Raises:
            StageError: it could not be written, or others of the group did not take part.
        """
        superseded = self.sharded is not None or self._saving_step != state.progress.step
        self.work.end_soon(self._grace_seconds - _LAST_WORDS_SECONDS, give_up=superseded)
        if self.sharded is None:
            return self.save(state.last_snapshot)
        mine = state.stop_updates()
        if self.durable_step == mine == state.progress.total_steps:  # the others may have ended
            return mine
        self.sharded.stop()
        try:
            step = self.sharded.newest_step(mine)
            state.allow_updates_to(step)
            with self._saving:  # a save that is not whole is given up by now, or done
                self.durable_step = self.sharded.newest_durable(self.durable_step)
        except StageError as error:
            raise self._not_saved(mine, error.reason, error.message, error.code) from error
        return self.save(state.last_snapshot, last=True)

    @property
    def is_saving(self) -> bool:
        """Whether a save goes on in the background."""
        return self._background is not None and self._background.is_alive()

    def save_in_background(self, snapshot: Callable[[], Snapshot]) -> bool:
        """Copy a state now, and make it durable in the background. Returns False if an earlier save still goes on.

        A save that fails, on a full disk for example, costs nothing but this save: the next one tries again.
        """
        if self.is_saving:
            return False
        started = time.monotonic()
        state = snapshot()
        logs.info("state copied", step=state.progress.step, seconds=round(time.monotonic() - started, 4))
        self._background = threading.Thread(
            target=self._save_in_background, args=(state,), name="checkpoint", daemon=True
        )
        failpoints.reached("state-copied")
        self._background.start()
        return True

    def save_best(self, step: int, snapshot: Callable[[], Snapshot]) -> bool:
        """Make the best state so far durable, and keep it. Returns False if it could not be written."""
        try:
            self.best_step = self.save(snapshot)
        except PeerLost:
            raise
        except StageError as error:
            self._failed(step, error)
        return self.best_step == step

    def keep(self, step: int) -> bool:
        """Keep an earlier checkpoint, however many come after it. Returns False if it is not whole."""
        why = self._damage(step)
        if why is None:
            self.best_step = step
        else:
            logs.warning("the best checkpoint is lost", step=step, why=why)
        return why is None

    def newest_step(self) -> int | None:
        """Find the step of the newest whole checkpoint; None when there is none. Removes what was left half-written."""
        self.work.remove_unfinished(self._folder)
        for step in self._steps():
            why = self._damage(step) or self._damage_after_fetch(step)
            if not why:
                return step
            logs.warning("checkpoint skipped", folder=str(self._folder_of(step)), why=why)
        return None

    def read(self, step: int, shard: Shard = WHOLE) -> Snapshot:
        """Read a whole checkpoint, or one shard of all its tensors."""
        self.durable_step = step
        self._fetched = self.work.fetch(self._folder_of(step))
        return _read(self._fetched, shard)

    def complete(self, result: TrainResult) -> None:
        """Record that training is complete, and which checkpoint is its result."""
        failpoints.reached("training-completes")
        with self.work.writing():
            complete = CompletedTraining(plan=self._plan, result=result)
            self.work.write_manifest(self._folder, durable.sealed(complete))
        self.work.remove_unfinished(self._folder)

    def completed(self) -> TrainResult | None:
        """The result, when training is complete and its checkpoint is whole."""
        manifest = self.work.read_manifest(self._folder, CompletedTraining)
        if manifest is None or manifest.plan != self._plan:
            return None
        return manifest.result if self._damage(manifest.result.result_step) is None else None

    def trained(self) -> tuple[TrainResult, Snapshot]:
        """Read the completed training that Export starts from: its result, and the trained weights.

        Raises:
            StageError: CheckpointInvalid, when there is none.
        """
        result = self.completed()
        step = result.result_step if result else None
        if result is None or step is None or self._damage_after_fetch(step):
            raise StageError(
                Reason.CHECKPOINT_INVALID,
                f"{self.work.uri}/checkpoints holds no completed training. {Reason.CHECKPOINT_INVALID.next_step}",
            )
        self._fetched = self._folder_of(step)
        return result, _read(self._fetched, prefixes=(WEIGHT,))

    def _save_in_background(self, state: Snapshot) -> None:
        try:
            self.save(lambda: state)
        except PeerLost:
            logs.info("checkpoint given up", step=state.progress.step)
        except StageError as error:
            self._failed(state.progress.step, error)

    def _failed(self, step: int, error: StageError) -> None:
        metrics.FAILED_SAVES.inc()
        self.unsaved = error.message[:MAX_UNSAVED_CHARACTERS]
        logs.warning("checkpoint failed", step=step, why=error.message)

    def _write(self, state: Snapshot, *, is_new: bool, last: bool) -> None:
        step = state.progress.step
        folder = self._folder_of(step)
        if self.sharded is None and not state.is_finite:  # of a sharded state, no process knows all
            why = "Its weights are not finite numbers: the updates were too large. Lower training.learningRate."
            raise self._not_saved(step, Reason.LOSS_NOT_FINITE, why, ExitCode.BAD_INPUT)
        try:
            with self.work.writing(needs=sum(tensor.nbytes for tensor in state.tensors.values())):
                if self.sharded is not None:
                    self.sharded.write(
                        folder, state.tensors, lambda *parts: self._finish(state, *parts), needed=is_new, last=last
                    )
                    return
                with self.work.new_folder(folder) as unfinished:
                    save_file(state.tensors, unfinished / WHOLE.file)
                    failpoints.reached("tensors-written")
                    self._finish(state, unfinished, {})
        except OSError as error:
            raise self._not_saved(step, Reason.OUTPUT_NOT_WRITABLE, str(error), ExitCode.INTERNAL) from error
        except PeerLost:
            raise
        except StageError as error:
            raise self._not_saved(step, error.reason, error.message, error.code) from error

    def _finish(self, state: Snapshot, unfinished: Path, files: dict[str, str]) -> None:
        """Write the files of a checkpoint beside its tensors, the manifest last.

        Args:
            state: The state that is saved.
            unfinished: The checkpoint's folder.
            files: Digests of files that are known already.
        """
        (unfinished / _PROGRESS_FILE).write_text(state.progress.model_dump_json(by_alias=True))
        failpoints.reached("progress-written")
        files = {**files, **durable.digests(unfinished, known=files)}  # of a store, each pod has only its own here
        manifest = CheckpointManifest(plan=self._plan, step=state.progress.step, files=files)
        (unfinished / MANIFEST).write_text(durable.sealed(manifest))

    def _not_saved(self, step: int, reason: Reason, why: str, code: ExitCode) -> StageError:
        durable = "no step is durable" if self.durable_step is None else f"step {self.durable_step} is durable"
        return StageError(reason, f"Step {step} could not be saved; {durable}. {why}", code)

    def _prune(self, newest: int) -> None:
        """Remove old checkpoints. Kept are the newest one, as many before it as the job says, and the best one.

        A folder of a later step was found damaged when this attempt began, so it is removed too.
        """
        if self.sharded is not None and not self.sharded.leads:
            return
        try:
            all_of_them = self._steps()
        except StageError as error:  # the store is away again, and the newest one is durable all the same
            logs.warning("old checkpoints are left", why=error.message)
            return
        kept = [step for step in all_of_them if step <= newest][: self._keep_checkpoints]
        for step in all_of_them:
            if step not in kept and step != self.best_step:
                self.work.remove(self._folder_of(step))
                failpoints.reached("checkpoint-pruned")

    def _make_room(self) -> None:
        """Let go of the checkpoint that was read. All processes of a group have read it when they save another one."""
        if self._fetched is not None:
            self.work.forget(self._fetched)
            self._fetched = None

    def _folder_of(self, step: int) -> Path:
        return self._folder / f"step-{step}"

    def _steps(self) -> list[int]:
        """The steps of all checkpoints, whole or not, the newest first."""
        return steps_of(self.work.folders(self._folder))

    def _damage(self, step: int) -> str | None:
        """Why a checkpoint can't be used; None when it can. Of a store, as far as is known without reading it all."""
        try:
            why, files = self._mismatch(self.work.read_manifest(self._folder_of(step), CheckpointManifest), step)
            if why or self.work.is_copied:  # whose bytes are looked at when they are fetched
                return why or None
            file = durable.damaged_file(self._folder_of(step), files)
        except OSError as error:  # a disk that has lost a block says so only when it is read
            return f"can't be read: {error}"
        return f"{file} is missing or damaged" if file else None

    def _damage_after_fetch(self, step: int) -> str:
        """Bring a checkpoint onto this machine's disk. Returns why it can't be used; nothing when it can."""
        folder = self.work.fetch(self._folder_of(step))
        return self._mismatch(durable.read_manifest(folder, CheckpointManifest), step)[0]

    def _mismatch(self, manifest: CheckpointManifest | None, step: int) -> tuple[str, dict[str, str]]:
        """Why a manifest is not that of a step, or an empty text; and the files that it names."""
        if manifest is None:
            return f"no {MANIFEST}, or a torn one", {}
        if manifest.plan != self._plan:
            return "of other settings or rows", {}
        if manifest.step != step:
            return f"of another step, {manifest.step}", {}
        return "", manifest.files


def steps_of(names: Iterable[str]) -> list[int]:
    """The steps of checkpoints with these names, the newest first."""
    found = (re.fullmatch(r"step-(\d+)", name) for name in names)
    return sorted((int(match[1]) for match in found if match), reverse=True)


def progress_of(folder: Path) -> Progress:
    """How far training is in a checkpoint that is whole."""
    return Progress.model_validate_json((folder / _PROGRESS_FILE).read_bytes())


def _read(folder: Path, shard: Shard = WHOLE, prefixes: Sequence[str] = ("",)) -> Snapshot:
    """Read the files that the manifest of a whole checkpoint lists: somebody may have put others beside them."""
    manifest = durable.read_manifest(folder, CheckpointManifest)
    return Snapshot(progress_of(folder), read(folder, manifest.files if manifest else (), shard, prefixes))
