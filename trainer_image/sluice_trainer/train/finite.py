"""Which rows are to blame for a loss or a gradient that is not finite."""

from collections.abc import Sequence

import torch

from sluice_api.reasons import Reason
from sluice_trainer.errors import StageError
from sluice_trainer.prepared import TokenRows
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.group import Group
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.weights.model import measured

SHOWN = 5
"""Lines that a message names."""
SLOWER = "Lower training.learningRate; if it is low already, set training.dtype: float32."
"""What to do when no row is to blame."""


def loss_error(
    what: str,
    token_loss: TokenLoss,
    rows: TokenRows,
    indices: Sequence[int],
    group: Group,
    *,
    others_are_fine: bool = False,
    remedy: str = SLOWER,
) -> StageError:
    """The error for a loss that is not finite. All processes of the group make it together.

    Args:
        what: Which loss, and what it is: a sentence.
        token_loss: The model that had this loss.
        rows: Where the rows are that it is of.
        indices: Their places, without those that are known to have a finite loss.
        group: This process and its peers.
        others_are_fine: Whether there are any of the latter. If not, and no row has a finite loss, it is the model's
            doing, not theirs.
        remedy: What to do when no row is to blame.
    """
    found = blamed(token_loss, rows, indices, group)
    if found and (others_are_fine or len(found) < len(indices) or len(indices) == 1):
        whose = f"By themselves not finite: {lines(rows, found)} of the dataset."
        remedy = "Mend or remove what is there, or set training.dtype: float32."
    else:
        whose = f"No single row is to blame; it is of {lines(rows, indices)} of the dataset."
    return StageError(Reason.LOSS_NOT_FINITE, f"{what} {whose} {remedy}")


def gradient_error(what: str, rows: TokenRows, indices: Sequence[int]) -> StageError:
    """The error for a gradient that is not finite, of rows whose losses are."""
    return StageError(Reason.LOSS_NOT_FINITE, f"{what} It is of {lines(rows, indices)} of the dataset. {SLOWER}")


def blamed(token_loss: TokenLoss, rows: TokenRows, indices: Sequence[int], group: Group) -> list[int]:
    """The rows that have no finite loss by themselves. The processes try them in turn, and all know the answer."""
    bad = torch.zeros(len(indices), device=group.device)
    with measured(token_loss.model):
        for task, counts in group.own_tasks(len(indices)):
            loss = token_loss.summed(MicroBatch.of([rows[indices[task]]], group.device))
            if counts:
                bad[task] = float(not loss.isfinite())
    group.all_reduce_sum_(bad)
    return [index for index, is_bad in zip(indices, bad.tolist(), strict=True) if is_bad]


def lines(rows: TokenRows, indices: Sequence[int]) -> str:
    """Where rows are in the dataset: "line 3", "lines 3 and 4", "lines 3, 4, 5, 6, 7 and 1 more"."""
    numbers = sorted({int(rows.lines[index]) for index in indices})
    *first, last = [*map(str, numbers[:SHOWN]), *([f"{len(numbers) - SHOWN} more"] if len(numbers) > SHOWN else [])]
    return f"lines {', '.join(first)} and {last}" if first else f"line {last}"
