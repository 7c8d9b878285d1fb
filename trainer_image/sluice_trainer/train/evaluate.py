"""The loss on the held-out rows."""

import math

import torch

from sluice_api.reports import Activity
from sluice_trainer import failpoints, metrics
from sluice_trainer.train.batches import put_together
from sluice_trainer.train.finite import SLOWER, loss_error
from sluice_trainer.train.packing import Batching, micro_batches
from sluice_trainer.train.run import Run
from sluice_trainer.train.weights.model import measured

_WINDOW = 256
"""Rows that are put into micro-batches together."""
_UNTRAINED = "Set training.dtype: float32; if it is that already, restore the model's files, or choose another model."
"""What to do when no row is to blame, and no step."""


def evaluate(run: Run, batching: Batching) -> float | None:
    """Mean loss of all held-out rows, in nats; None without any. The same bits in any group.

    Raises:
        StageError: the loss is not finite.
    """
    run.watchdog.heartbeat(activity=Activity.EVALUATING)
    rows, group = run.data.validation, run.group
    if len(rows) == 0:
        return None
    lengths = rows.sizes(range(len(rows)), packed=batching.packed)
    batches = [
        [start + place for place in places]
        for start in range(0, len(rows), _WINDOW)
        for places in micro_batches(lengths[start : start + _WINDOW], batching, 1)[0]
    ]
    losses = torch.zeros(len(batches), dtype=torch.float64, device=group.device)
    with measured(run.model):
        for task, counts in group.own_tasks(len(batches)):
            failpoints.reached("evaluates")
            batch = put_together([rows[index] for index in batches[task]], batching, group.device)
            loss_sum = run.objective.summed_loss(run.token_loss, batch)
            if counts:
                losses[task] = loss_sum
            run.watchdog.heartbeat()
    group.all_reduce_sum_(losses)
    loss = float(sum(losses.tolist())) / run.objective.count(rows, range(len(rows)))
    if not math.isfinite(loss):
        suspects = [index for place in (~losses.isfinite()).nonzero().flatten().tolist() for index in batches[place]]
        step = run.state.standing.step
        raise loss_error(
            f"The loss on the held-out rows is {loss} after {step} steps.",
            run.token_loss,
            rows,
            suspects[:_WINDOW],
            group,
            others_are_fine=bool(losses.isfinite().any()),
            remedy=SLOWER if step else _UNTRAINED,
        )
    metrics.show(evaluation_loss=loss)
    run.reporter.update(evaluation_loss=loss)
    return loss
