"""Checkpoints: <work>/checkpoints/step-<N>/, each whole or not there, and a manifest when training is complete."""

import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import NonNegativeInt
from safetensors.torch import load_file, save_file

from sluice_api.artifacts import MANIFEST
from sluice_api.model import Model
from sluice_api.reasons import Reason
from sluice_api.stages import StageSpec, TrainResult
from sluice_trainer import durable, logs
from sluice_trainer.errors import StageError
from sluice_trainer.places import work, writing
from sluice_trainer.plan import plan_digest
from sluice_trainer.train.state import Snapshot, Standing

KEPT = 2
_TENSORS = "state.safetensors"
_STANDING = "state.json"


class CheckpointManifest(Model):
    """step-<N>/manifest.json, written last."""

    format: str = "sluice.checkpoint/v1"
    plan: str
    step: NonNegativeInt
    files: dict[str, str]
    """sha256 of each file."""


class CompletedTraining(Model):
    """checkpoints/manifest.json: training is complete, and step-<result.step>/ is its result."""

    format: str = "sluice.checkpoints/v1"
    plan: str
    result: TrainResult


class Checkpoints:
    """The checkpoints of one job."""

    def __init__(self, stage: StageSpec) -> None:
        self._stage = stage
        self._folder = work(stage) / "checkpoints"
        self._plan = plan_digest(stage)
        self._saving = threading.Lock()
        self.durable_step: int | None = None
        """Step of the newest checkpoint that this process has saved or loaded."""

    def save(self, snapshot: Callable[[], Snapshot]) -> int:
        """Make a state durable and return its step. One at a time: whoever comes second waits for the first.

        Args:
            snapshot: Called when no other save is going on; nothing is written when its step is durable already.
        """
        with self._saving:
            state = snapshot()
            step = state.standing.step
            if step != self.durable_step:
                started = time.monotonic()
                self._write(self._folder / f"step-{step}", state)
                self.durable_step = step
                logs.info("checkpoint", step=step, seconds=round(time.monotonic() - started, 3))
            return step

    def prune(self) -> None:
        """Remove all but the newest checkpoints, and what earlier processes left half-written."""
        with self._saving:
            durable.remove_unfinished(self._folder)
            for _, folder in self._by_step()[KEPT:]:
                shutil.rmtree(folder, ignore_errors=True)

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is whole; None when there is none."""
        for step, folder in self._by_step():
            if (why := self._damage(folder, step)) is not None:
                logs.warning("checkpoint skipped", folder=str(folder), why=why)
                continue
            self.durable_step = step
            return _read(folder)
        return None

    def complete(self, result: TrainResult) -> None:
        """Say that training is complete and its last checkpoint is the result."""
        with writing(self._stage):
            durable.write_file(self._folder / MANIFEST, CompletedTraining(plan=self._plan, result=result).to_json())

    def completed(self) -> TrainResult | None:
        """The result, when training is complete and its checkpoint is whole."""
        manifest = durable.read_manifest(self._folder, CompletedTraining)
        if manifest is None or manifest.plan != self._plan:
            return None
        step = manifest.result.step
        return manifest.result if self._damage(self._folder / f"step-{step}", step) is None else None

    def trained(self) -> tuple[TrainResult, Snapshot]:
        """The complete training that Export builds on.

        Raises:
            StageError: CheckpointInvalid, when there is none.
        """
        result = self.completed()
        if result is None:
            raise StageError(
                Reason.CHECKPOINT_INVALID,
                f"{self._folder} holds no completed training. {Reason.CHECKPOINT_INVALID.next_step}",
            )
        return result, _read(self._folder / f"step-{result.step}")

    def _write(self, folder: Path, state: Snapshot) -> None:
        with writing(self._stage), durable.new_folder(folder) as unfinished:
            save_file(state.tensors, unfinished / _TENSORS)
            (unfinished / _STANDING).write_text(state.standing.model_dump_json(by_alias=True))
            manifest = CheckpointManifest(plan=self._plan, step=state.standing.step, files=durable.digests(unfinished))
            (unfinished / MANIFEST).write_text(manifest.to_json())

    def _by_step(self) -> list[tuple[int, Path]]:
        found = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in self._folder.glob("step-*"))
        return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)

    def _damage(self, folder: Path, step: int) -> str | None:
        """Why a checkpoint can't be used; None when it can."""
        manifest = durable.read_manifest(folder, CheckpointManifest)
        if manifest is None:
            return f"no {MANIFEST}"
        if (manifest.plan, manifest.step) != (self._plan, step):
            return "of another plan"
        file = durable.damaged_file(folder, manifest.files)
        return f"{file} is missing or damaged" if file else None


def _read(folder: Path) -> Snapshot:
    standing = Standing.model_validate_json((folder / _STANDING).read_bytes())
    return Snapshot(standing, load_file(folder / _TENSORS))
