"""Whether the loss of rows in a pack equals their loss one by one: tried on the model itself, before step 0.

Attention keeps rows apart by their position_ids. A layer with a recurrent state (Mamba, a convolution over time)
carries it from one row into the next, and some models ignore position_ids.
"""

import inspect
from collections.abc import Sequence

import numpy as np
import torch

from sluice_trainer.prepared import TokenRow, TokenRows
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.weights.model import bare, eval_mode

TRIED_TOKENS = 32
"""First tokens of a row that are tried."""
TOLERANCE_FLOAT32, TOLERANCE_BFLOAT16 = 1e-4, 3e-2
"""Nats for each token of the second row that may be rounding. Known leaks are 0.1 and more."""


def packing_obstacle(loss: TokenLoss, rows: TokenRows, device: torch.device) -> str | None:
    """Why packs of these rows are not exact; None if they are."""
    if "position_ids" not in inspect.signature(bare(loss.model).forward).parameters:
        return "the model takes no position_ids"
    tried = short_rows(rows)
    if len(tried) < 2:
        return "there are no two rows to try it on"
    with eval_mode(loss.model):
        apart = [loss.summed(MicroBatch.of([row], device)).item() for row in tried]
        packed = loss.summed(MicroBatch.packed(tried, device)).item()
    # The first row can't see the second one, so that all of the difference is the second one's.
    difference = abs(packed - sum(apart)) / (len(tried[1].input_ids) - 1)
    tolerance = TOLERANCE_FLOAT32 if loss.dtype == torch.float32 else TOLERANCE_BFLOAT16
    if difference <= tolerance:  # NaN is not
        return None
    return f"a row's loss in a pack differs by {difference:.3g} nats a token, of which {tolerance:g} may be rounding"


def short_rows(rows: TokenRows) -> Sequence[TokenRow]:
    """The first tokens of two rows, all in the loss: the more tokens it counts, the better it shows a leak."""
    found = (rows[index].input_ids[:TRIED_TOKENS] for index in range(len(rows)))
    return [TokenRow(ids, np.ones(len(ids), np.uint8)) for ids in found if len(ids) > 1][:2]
