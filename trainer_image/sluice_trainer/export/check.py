"""The proof that an export answers like the model that was trained."""

from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from sluice_api.reasons import Reason
from sluice_api.stages import ExitCode
from sluice_trainer.errors import StageError
from sluice_trainer.prepared import Prepared

TOLERANCE = 1e-3
"""Largest difference of a logit. The same weights in the same order of operations: it is zero on one machine."""


def check_answers(folder: Path, trained: PeftModel, data: Prepared) -> None:
    """Load the export as a user would and compare its logits on a row that was held out. Takes `trained` apart.

    Raises:
        StageError: TrainerFailed, when they differ: the export must not be served.
    """
    rows = data.validation if len(data.validation) else data.training
    row = torch.from_numpy(rows[0].input_ids.astype(np.int64)).unsqueeze(0)
    expected = _logits(trained, row)
    base: PreTrainedModel = trained.unload()
    exported = _logits(PeftModel.from_pretrained(base, folder), row)
    difference = (exported - expected).abs().max().item()
    if not difference <= TOLERANCE:
        raise StageError(
            Reason.TRAINER_FAILED,
            f"The exported adapter does not answer like the trained model: logits differ by {difference:g}. "
            "This is a defect of the trainer image; keep the job and report it.",
            ExitCode.INTERNAL,
        )


def _logits(model: PeftModel, row: Tensor) -> Tensor:
    model.eval()
    with torch.inference_mode():
        logits: Tensor = model(input_ids=row, use_cache=False).logits
        return logits.float()
