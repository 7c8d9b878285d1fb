"""The loss on the held-out rows."""

import math

import torch
from peft import PeftModel

from sluice_trainer import failpoints
from sluice_trainer.prepared import TokenRows
from sluice_trainer.train.batches import learnt_tokens, put_together, summed_loss
from sluice_trainer.train.finite import SLOWER, loss_error
from sluice_trainer.train.group import Group
from sluice_trainer.train.packing import Batching, micro_batches

_WINDOW = 256
"""Rows that are put into micro-batches together."""
_UNTRAINED = "Set training.dtype: float32; if it is that already, restore the model's files, or choose another model."
"""What to do when no row is to blame, and no step."""


def evaluate(model: PeftModel, rows: TokenRows, batching: Batching, group: Group, step: int) -> float | None:
    """Mean loss over the learnt tokens of all rows, in nats; None without rows. The same bits in any group.

    Args:
        model: The model as it is now.
        rows: All that is held out.
        batching: How they go into micro-batches.
        group: This process and its peers, who do this together.
        step: How many steps the model has learnt.

    Raises:
        StageError: the loss is not finite.
    """
    if len(rows) == 0:
        return None
    lengths = rows.lengths
    batches = [
        [start + place for place in places]
        for start in range(0, len(rows), _WINDOW)
        for places in micro_batches(lengths[start : start + _WINDOW], batching, 1)[0]
    ]
    losses = torch.zeros(len(batches), dtype=torch.float64, device=group.device)
    model.eval()
    with torch.inference_mode():
        for turn in group.turns(len(batches)):
            failpoints.reached("evaluates")
            batch = put_together([rows[index] for index in batches[turn]], batching, group.device)
            losses[turn] = summed_loss(model, batch)
    model.train()
    group.sum_(losses)
    loss = float(sum(losses.tolist())) / learnt_tokens(rows, range(len(rows)))
    if not math.isfinite(loss):
        suspects = [index for place in (~losses.isfinite()).nonzero().flatten().tolist() for index in batches[place]]
        raise loss_error(
            f"The loss on the held-out rows is {loss} after {step} steps.",
            model,
            rows,
            suspects[:_WINDOW],
            group,
            others_are_fine=bool(losses.isfinite().any()),
            remedy=SLOWER if step else _UNTRAINED,
        )
    return loss
