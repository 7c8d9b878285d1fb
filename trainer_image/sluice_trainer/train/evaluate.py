"""The loss on the held-out rows."""

import torch

from sluice_trainer import failpoints
from sluice_trainer.prepared import TokenRows
from sluice_trainer.train.batches import put_together
from sluice_trainer.train.group import Group
from sluice_trainer.train.model import Model
from sluice_trainer.train.objective import Objective
from sluice_trainer.train.packing import Batching, micro_batches

_WINDOW = 256
"""Rows that are put into micro-batches together."""


def evaluate(model: Model, rows: TokenRows, batching: Batching, group: Group, objective: Objective) -> float | None:
    """Mean loss of all rows, in nats; None without rows. The same bits in any group."""
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
            losses[turn] = objective.summed_loss(model, batch)
    model.train()
    group.sum_(losses)
    return float(sum(losses.tolist())) / objective.count(rows, range(len(rows)))
