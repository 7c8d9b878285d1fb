"""The loss on the held-out rows."""

import math

import torch

from sluice_api.reports import Activity
from sluice_trainer import failpoints, metrics
from sluice_trainer.train.batches import make_micro_batch, positions_of_batches
from sluice_trainer.train.finite import LOWER_LEARNING_RATE, loss_error
from sluice_trainer.train.packing import Batching
from sluice_trainer.train.run import Run
from sluice_trainer.train.weights.model import eval_mode

_WINDOW_ROWS = 256
"""Rows that are put into micro-batches together."""
_REMEDY_BEFORE_TRAINING = (
    "Set training.dtype: float32; if it is that already, restore the model's files, or choose another model."
)
"""What to do if no row is to blame, and no step is done yet."""


def evaluate(run: Run, batching: Batching) -> float | None:
    """Compute the mean loss of all held-out rows, in nats; None without any. It has the same bits in any group.

    Raises:
        StageError: the loss is not finite.
    """
    run.watchdog.heartbeat(activity=Activity.EVALUATING)
    rows, group = run.data.validation, run.group
    if len(rows) == 0:
        return None
    windows = [range(len(rows))[start : start + _WINDOW_ROWS] for start in range(0, len(rows), _WINDOW_ROWS)]
    batches = [
        [window[position] for position in positions]
        for window in windows
        for positions in positions_of_batches(rows, window, batching, 1)[0]
    ]
    losses = torch.zeros(len(batches), dtype=torch.float64, device=group.device)
    with eval_mode(run.model):
        for task, counts in group.own_tasks(len(batches)):
            failpoints.reached("evaluates")
            batch = make_micro_batch([rows[index] for index in batches[task]], batching, group.device)
            loss_sum = run.objective.summed_loss(run.token_loss, batch)
            if counts:
                losses[task] = loss_sum
            run.watchdog.heartbeat()
    group.all_reduce_sum_(losses)
    loss = float(sum(losses.tolist())) / run.objective.count(rows, range(len(rows)))
    if not math.isfinite(loss):
        suspects = [index for place in (~losses.isfinite()).nonzero().flatten().tolist() for index in batches[place]]
        step = run.state.progress.step
        raise loss_error(
            f"The loss on the held-out rows is {loss} after {step} steps.",
            run.token_loss,
            rows,
            suspects[:_WINDOW_ROWS],
            group,
            others_are_fine=bool(losses.isfinite().any()),
            remedy=LOWER_LEARNING_RATE if step else _REMEDY_BEFORE_TRAINING,
        )
    metrics.set_gauges(evaluation_loss=loss)
    run.reporter.update(evaluation_loss=loss)
    return loss
