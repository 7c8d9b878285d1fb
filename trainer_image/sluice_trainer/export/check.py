"""Checks that an export has the same logits as the model that was trained."""

import numpy as np
import torch
from torch import Tensor

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer.errors import StageError
from sluice_trainer.prepared import Prepared
from sluice_trainer.train.weights.model import Model, eval_mode

TOLERANCE = 1e-3
"""Largest difference of a logit. The same weights in the same order of operations: it is zero on one machine."""


def logits_of_one_row(model: Model, data: Prepared) -> Tensor:
    """Compute the logits of the first held-out row, or of a training row; of a pair, those of its chosen side."""
    row = (data.validation if len(data.validation) else data.training)[0]
    tokens = row.answers()[0].input_ids if row.split else row.input_ids
    ids = torch.from_numpy(tokens.astype(np.int64)).unsqueeze(0)
    with eval_mode(model):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits.float()


def require_same_logits(expected: Tensor, exported: Tensor) -> None:
    """Refuse an export that, loaded as a user would, does not answer like the trained model.

    Raises:
        StageError: TrainerFailed: the export must not be served.
    """
    difference = (exported - expected).abs().max().item()
    if not difference <= TOLERANCE:
        raise StageError(
            Reason.TRAINER_FAILED,
            f"What was exported does not answer like the trained model: logits differ by {difference:g}. "
            "This is a defect of the trainer image; keep the job and report it.",
            ExitCode.INTERNAL,
        )
