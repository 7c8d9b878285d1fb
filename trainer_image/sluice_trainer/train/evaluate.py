"""The loss on the held-out rows."""

import torch
from peft import PeftModel

from sluice_trainer import failpoints
from sluice_trainer.prepared import TokenRows
from sluice_trainer.train.batches import MicroBatch, learnt_tokens, summed_loss
from sluice_trainer.train.group import Group


def evaluate(model: PeftModel, rows: TokenRows, size: int, group: Group) -> float | None:
    """Mean loss over the learnt tokens of all rows, in nats; None without rows. The same bits in any group.

    Args:
        size: Rows at once.
    """
    if len(rows) == 0:
        return None
    starts = range(0, len(rows), size)
    losses = torch.zeros(len(starts), dtype=torch.float64, device=group.device)
    model.eval()
    with torch.inference_mode():
        for turn in group.turns(len(starts)):
            failpoints.reached("evaluates")
            indices = range(len(rows))[starts[turn] : starts[turn] + size]
            losses[turn] = summed_loss(model, MicroBatch.of([rows[index] for index in indices], group.device))
    model.train()
    group.sum_(losses)
    return float(sum(losses.tolist())) / learnt_tokens(rows, range(len(rows)))
