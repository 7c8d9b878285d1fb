"""Errors for a loss or a gradient that is not finite: they name the rows to blame."""

from collections.abc import Sequence

import torch

from sluice_api.reasons import Reason
from sluice_trainer.errors import StageError
from sluice_trainer.token_rows import TokenRows
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.group import Group
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.weights.model import eval_mode

MAX_LINES_SHOWN = 5
"""Lines that a message names."""
OTHER_ROWS = 8
"""Rows that are tried to find out whether the model or a row is to blame."""
LOWER_LEARNING_RATE = "Lower training.learningRate; if it is low already, set training.dtype: float32."
"""What to do when no row is to blame."""


def loss_error(
    what: str,
    token_loss: TokenLoss,
    rows: TokenRows,
    indices: Sequence[int],
    group: Group,
    *,
    others_are_fine: bool = False,
    remedy: str = LOWER_LEARNING_RATE,
) -> StageError:
    """Make the error for a loss that is not finite. All processes of the group call this together.

    Args:
        what: A sentence that says which loss, and its value.
        token_loss: The model that had this loss.
        rows: The dataset's rows.
        indices: The rows that the loss is of, without those that are known to have a finite loss.
        group: This process and its peers.
        others_are_fine: Whether other rows are known to have a finite loss. If not, and none of these rows has one, a
            few others are tried: where none of them has one either, the model is to blame, not the rows.
        remedy: What to do when no row is to blame.
    """
    found = rows_without_finite_loss(token_loss, rows, indices, group)
    if found and len(found) == len(indices) and not others_are_fine:
        others = [index for index in range(min(len(rows), len(indices) + OTHER_ROWS)) if index not in {*indices}]
        others_are_fine = len(rows_without_finite_loss(token_loss, rows, others, group)) < len(others)
    if found and (others_are_fine or len(found) < len(indices)):
        whose = f"By themselves not finite: {lines(rows, found)} of the dataset."
        remedy = "Mend or remove what is there, or set training.dtype: float32."
    else:
        whose = f"No single row is to blame; it is of {lines(rows, indices)} of the dataset."
    return StageError(Reason.LOSS_NOT_FINITE, f"{what} {whose} {remedy}")


def gradient_error(what: str, rows: TokenRows, indices: Sequence[int]) -> StageError:
    """Make the error for a gradient that is not finite, of rows with finite losses."""
    return StageError(
        Reason.LOSS_NOT_FINITE, f"{what} It is of {lines(rows, indices)} of the dataset. {LOWER_LEARNING_RATE}"
    )


def rows_without_finite_loss(token_loss: TokenLoss, rows: TokenRows, indices: Sequence[int], group: Group) -> list[int]:
    """Find the rows that have no finite loss by themselves. The processes share the work; all return the answer."""
    bad = torch.zeros(len(indices), device=group.device)
    with eval_mode(token_loss.model):
        for task, counts in group.own_tasks(len(indices)):
            loss = token_loss.summed(MicroBatch.of([rows[indices[task]]], group.device))
            if counts:
                bad[task] = float(not loss.isfinite())
    group.all_reduce_sum_(bad)
    return [index for index, is_bad in zip(indices, bad.tolist(), strict=True) if is_bad]


def lines(rows: TokenRows, indices: Sequence[int]) -> str:
    """Places of rows in the dataset, as text: "line 3", "lines 3 and 4", "lines 3, 4, 5, 6, 7 and 1 more".

    Where the dataset has several files: "line 3 of a.jsonl and row 7 of b.parquet".
    """
    places = sorted({(row.file, row.line) for row in (rows[index] for index in indices)})
    files = rows.store.row_files
    several = len(files) > 1
    names = [f"{files[file].unit} {line} of {files[file].name}" if several else str(line) for file, line in places]
    *first, last = [
        *names[:MAX_LINES_SHOWN],
        *([f"{len(names) - MAX_LINES_SHOWN} more"] if len(names) > MAX_LINES_SHOWN else []),
    ]
    text = f"{', '.join(first)} and {last}" if first else last
    if several:
        return text
    unit = files[0].unit if files else "line"
    return f"{unit}s {text}" if first else f"{unit} {text}"
