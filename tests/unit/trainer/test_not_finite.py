"""A loss that is no number: the rows that are to blame are named, nothing ruined is kept, and nothing is published."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer.errors import StageError
from sluice_trainer.plan import Steps
from sluice_trainer.token_rows import TokenRow, TokenRows
from sluice_trainer.train.finite import lines
from sluice_trainer.train.weights.trained import TrainedWeights
from tests.unit.trainer.jobs import FATAL, Job, chat, poison, write_rows

MEND = "Mend or remove what is there, or set training.dtype: float32."
LOWER_LEARNING_RATE = "Lower training.learningRate; if it is low already, set training.dtype: float32."
FEW = (("epochs", 1), ("batchSize", 4), ("warmupSteps", 0), ("checkpointEverySteps", 1))


def poisoned(job: Job, *lines: int, split: str = "0%") -> Job:
    """The job with 40 rows behind a blank line, of which those at these lines have the fatal token."""
    poison(job.volumes / "models" / "tiny")
    rows: list[Any] = ["", *(chat(f"What is {i}{FATAL if i in lines else '?'}", f"Item {i}.") for i in range(2, 42))]
    write_rows(job.volumes / job.dataset, rows)
    dataset = {"uri": f"pvc://{job.dataset}", "validationSplit": split}
    job = replace(job, training=FEW, spec=(("dataset", dataset),))
    job.prepare()
    return job


def refused(job: Job) -> str:
    with pytest.raises(StageError) as raised:
        job.train()
    assert (raised.value.reason, raised.value.code) == (Reason.LOSS_NOT_FINITE, ExitCode.BAD_INPUT)
    return raised.value.message


def saved(job: Job) -> list[str]:
    """What is kept of the training, which must not be exported."""
    with pytest.raises(StageError) as raised:
        job.export()
    assert raised.value.reason == Reason.CHECKPOINT_INVALID
    return sorted(path.name for path in (job.work / "checkpoints").glob("*"))


def step_with(job: Job, line: int) -> int:
    """The step that first has the row of a line, counted from 1, when no row is held out."""
    training = job.stage("Train").spec.training
    steps = Steps([1] * 40, training)
    return next(step + 1 for step in range(steps.total) if line - 2 in steps.rows(step))


def test_loss_not_finite_names_the_row_and_saves_the_last_good_step(job: Job) -> None:
    job = replace(poisoned(job, 17), training=(*FEW, ("checkpointEverySteps", 50)))
    job.prepare()
    step = step_with(job, 17)
    assert step > 2
    message = refused(job)
    assert message.startswith(f"The loss of step {step} of 10 is nan at learning rate ")
    rest = f"Step {step - 1} of 10 is saved."
    assert message.endswith(f". By themselves not finite: line 17 of the dataset. {MEND} {rest}")
    assert saved(job) == [f"step-{step - 1}"]
    checkpoints = job.checkpoints()
    assert checkpoints.newest_step() == step - 1
    newest = checkpoints.read(step - 1)
    assert all(tensor.isfinite().all() for tensor in newest.tensors.values())


def lines_of(rows: TokenRows) -> list[int]:
    return [rows[index].line for index in range(len(rows))]


@pytest.mark.parametrize("micro_batch_size", [None, 1])
def test_loss_not_finite_names_held_out_rows_before_the_first_step(job: Job, micro_batch_size: int | None) -> None:
    job = poisoned(job, *range(2, 42, 2), split="40%")
    if micro_batch_size:
        job = replace(job, training=(*FEW, ("microBatchSize", micro_batch_size)))
        job.prepare()
    fatal = sorted(line for line in lines_of(job.prepared().validation) if line % 2 == 0)
    assert 5 < len(fatal) < 16
    shown = ", ".join(map(str, fatal[:5]))
    assert refused(job) == (
        "The loss on the held-out rows is nan after 0 steps. By themselves not finite: "
        f"lines {shown} and {len(fatal) - 5} more of the dataset. {MEND}"
    )
    assert saved(job) == []


def test_loss_not_finite_without_a_row_to_blame(job: Job) -> None:
    """A learning rate that ruins the adapter in its first step, as the second one finds, or the evaluation."""
    job = poisoned(job)
    job = replace(job, training=(*FEW, ("learningRate", "1e30")))
    job.prepare()
    message = refused(job)
    rows = sorted(row + 2 for row in Steps([1] * 40, job.stage("Train").spec.training).rows(1))
    whose = "No single row is to blame; it is of lines {}, {}, {} and {} of the dataset.".format(*rows)
    rest = f"{whose} {LOWER_LEARNING_RATE} Step 1 of 10 is saved."
    assert message == f"The loss of step 2 of 10 is nan at learning rate 9.75528e+29. {rest}"

    dataset = {"uri": f"pvc://{job.dataset}", "validationSplit": "40%"}
    job = replace(job, name="held-out", training=(*job.training, ("maxSteps", 1)), spec=(("dataset", dataset),))
    job.prepare()
    shown = ", ".join(map(str, sorted(lines_of(job.prepared().validation))[:5]))
    whose = f"No single row is to blame; it is of lines {shown} and 11 more of the dataset."
    assert refused(job) == f"The loss on the held-out rows is nan after 1 steps. {whose} {LOWER_LEARNING_RATE}"
    assert saved(job) == ["step-1"]


def test_gradient_not_finite_names_the_rows(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainedWeights, "clip_gradients_", lambda *_: torch.tensor(torch.inf))
    job = poisoned(job)
    rows = sorted(row + 2 for row in Steps([1] * 40, job.stage("Train").spec.training).rows(0))
    message = refused(job)
    assert message.startswith("The gradient norm of step 1 of 10 is inf at learning rate ")
    assert message.endswith(". It is of lines {}, {}, {} and {} of the dataset. {}".format(*rows, LOWER_LEARNING_RATE))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([17], "line 17"),
        ([17, 17, 17], "line 17"),  # the parts of a row that was split
        ([9, 3], "lines 3 and 9"),
        ([5, 4, 3, 2, 1], "lines 1, 2, 3, 4 and 5"),
        ([7, 6, 5, 4, 3, 2, 1], "lines 1, 2, 3, 4, 5 and 2 more"),
    ],
)
def test_lines_as_text(numbers: list[int], text: str) -> None:
    rows = TokenRows.of(TokenRow(np.ones(1, np.int32), np.ones(1, np.uint8), number) for number in numbers)
    assert lines(rows, range(len(rows))) == text


ONE_ROW = (*FEW, ("batchSize", 1))


def test_loss_not_finite_of_a_step_of_one_row_names_the_row_if_others_are_fine(job: Job) -> None:
    job = replace(poisoned(job, 17), training=ONE_ROW)
    job.prepare()
    assert f"By themselves not finite: line 17 of the dataset. {MEND}" in refused(job)


def test_loss_not_finite_of_a_step_of_one_row_blames_no_row_after_updates_that_are_too_large(
    job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the ruined weights are never saved: not by the step's own checkpoint, nor at the end."""
    job = replace(job, training=(*ONE_ROW, ("learningRate", "1e39")))
    job.prepare()
    message = refused(job)
    assert message.startswith("The loss of step 2 of 36 is nan")
    assert "No single row is to blame; it is of line " in message
    assert "Step 1 could not be saved; no step is durable. Its weights are not finite numbers" in message
    assert message.endswith("Lower training.learningRate.")
    assert saved(job) == []
    assert '"event": "checkpoint failed", "step": 1' in capsys.readouterr().out
