"""The loss on the held-out rows."""

import torch
from peft import PeftModel

from sluice_trainer.prepared import TokenRows
from sluice_trainer.train.batches import learnt_tokens, micro_batches, summed_loss


def evaluate(model: PeftModel, rows: TokenRows, size: int, device: torch.device) -> float | None:
    """Mean loss over the learnt tokens of all rows, in nats; None without rows.

    Args:
        size: Rows at once.
    """
    if len(rows) == 0:
        return None
    everything = range(len(rows))
    model.eval()
    with torch.inference_mode():
        losses = [summed_loss(model, batch).item() for batch in micro_batches(rows, everything, size, device)]
    model.train()
    return sum(losses) / learnt_tokens(rows, everything)
