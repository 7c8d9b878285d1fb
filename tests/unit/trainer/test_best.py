"""exportedCheckpoint: Best: the step that answered best on the held-out rows is the result, whatever comes after it."""

from dataclasses import replace
from typing import Any

import pytest

from sluice_api.reasons import Reason
from sluice_api.stages import TrainResult
from sluice_trainer import failpoints
from sluice_trainer.errors import StageError
from sluice_trainer.train import loop
from sluice_trainer.train.checkpoints.checkpoint import Checkpoints
from sluice_trainer.train.checkpoints.state import Snapshot
from sluice_trainer.train.run import Run, load_run
from tests.unit.trainer.jobs import Job

OFTEN: tuple[tuple[str, Any], ...] = (
    ("epochs", 2), ("evaluateEverySteps", 2), ("checkpointEverySteps", 1), ("keepCheckpoints", 1),
)  # fmt: skip
"""10 steps."""
BEST = (*OFTEN, ("exportedCheckpoint", "Best"))
LOSSES = [9.0, 5.0, 3.0, 4.0, 3.5, 3.2]
"""Before the first step, and after 2, 4, 6, 8 and 10: the fourth is the best."""


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps after which the losses above were measured, one after the other."""
    steps: list[int] = []

    def evaluated(run: Run, _: object) -> float:
        steps.append(run.state.progress.step)
        return LOSSES[run.state.progress.step // 2]

    monkeypatch.setattr(loop, "evaluate", evaluated)
    return steps


def with_training(job: Job, training: tuple[tuple[str, Any], ...], name: str = "job") -> Job:
    return replace(job, name=name, training=training)


def steps_kept(job: Job) -> list[str]:
    return sorted(path.name for path in (job.work / "checkpoints").glob("step-*"))


def result_of(job: Job) -> tuple[int, int | None, float | None]:
    result: TrainResult = job.train()
    return result.step, result.exported_step, result.evaluation_loss_after


def test_exported_checkpoint_best_is_kept_and_exported(job: Job, measured: list[int]) -> None:
    best, last = with_training(job, BEST, "best"), with_training(job, OFTEN, "last")
    for each in (best, last):
        each.prepare()
    assert result_of(best) == (10, 4, 3.0)
    assert measured == [0, 2, 4, 6, 8, 10]
    assert steps_kept(best) == ["step-10", "step-4"]
    assert result_of(last) == (10, 10, 3.2)
    assert steps_kept(last) == ["step-10"]
    snapshot = best.checkpoints().trained()[1]
    assert snapshot.progress.step == 4
    best.export()
    last.export()
    assert "10 steps of 8 rows, of which step 4 is this one" in (best.work / "export" / "README.md").read_text()
    assert "10 steps of 8 rows, peak" in (last.work / "export" / "README.md").read_text()
    assert best.adapter != last.adapter


def stopping_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the update of a step and what follows it."""
    runs: list[Run] = []

    def loaded(*args: Any) -> Run:
        runs.append(load_run(*args))
        return runs[0]

    def reached(place: str) -> None:
        if place == "update-done" and runs[0].state.progress.step == step:
            runs[0].checkpoints.save(runs[0].state.snapshot)
            raise InterruptedError

    monkeypatch.setattr(loop, "load_run", loaded)
    monkeypatch.setattr(failpoints, "reached", reached)


@pytest.mark.parametrize("step", [4, 5, 9])
def test_best_checkpoint_is_known_after_a_resume(
    job: Job, measured: list[int], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    job = with_training(job, BEST)
    job.prepare()
    with monkeypatch.context() as patches:
        stopping_at(step, patches)
        with pytest.raises(InterruptedError):
            job.train()
    assert result_of(job) == (10, 4, 3.0)
    assert steps_kept(job) == ["step-10", "step-4"]
    assert sorted(measured) == [0, 2, 4, 6, 8, 10]


def test_best_checkpoint_that_is_lost_is_not_the_result(
    job: Job, measured: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = with_training(job, BEST)
    job.prepare()
    with monkeypatch.context() as patches:
        stopping_at(9, patches)
        with pytest.raises(InterruptedError):
            job.train()
    (job.work / "checkpoints" / "step-4" / "state.safetensors").write_bytes(b"torn")
    assert result_of(job) == (10, 10, 3.2)
    assert '"event": "the best checkpoint is lost", "step": 4' in capsys.readouterr().out


@pytest.fixture(autouse=True)
def saved_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No save goes on beside the training, so that which step is durable does not depend on the disk."""

    def at_once(checkpoints: Checkpoints, snapshot: Any) -> bool:
        checkpoints.save(snapshot)
        return True

    monkeypatch.setattr(Checkpoints, "save_in_background", at_once)


def test_best_checkpoint_that_could_not_be_saved_is_not_the_result(
    job: Job, measured: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one before it is exported then, and the training goes on."""
    job = with_training(job, (*BEST, ("checkpointEverySteps", 100)))
    job.prepare()
    write = Checkpoints._write

    def full(checkpoints: Checkpoints, state: Snapshot, **how: bool) -> None:
        if state.progress.step == 4:
            raise StageError(Reason.OUTPUT_NOT_WRITABLE, "the disk is full")
        write(checkpoints, state, **how)

    monkeypatch.setattr(Checkpoints, "_write", full)
    assert result_of(job) == (10, 10, 3.2)
    assert '"event": "checkpoint failed", "step": 4' in capsys.readouterr().out


def test_best_checkpoint_of_a_real_training(job: Job) -> None:
    job = with_training(job, (*BEST, ("learningRate", "2e-3")))
    job.prepare()
    result = job.train()
    assert result.exported_step == 10
    assert result.evaluation_loss_after < result.evaluation_loss_before  # type: ignore[operator]
    assert job.checkpoints().trained()[0] == result


def test_exported_checkpoint_best_needs_evaluations(job: Job) -> None:
    with pytest.raises(StageError, match=r"set training\.evaluateEverySteps, or set"):
        with_training(job, (("exportedCheckpoint", "Best"),)).prepare()
    none_held_out = ("dataset", {"uri": "pvc://datasets/rows.jsonl", "validationSplit": "0%"})
    with pytest.raises(StageError, match="no row is held out"):
        replace(with_training(job, BEST), spec=(none_held_out,)).prepare()
