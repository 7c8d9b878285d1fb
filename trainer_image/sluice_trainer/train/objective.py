"""What training minimises: next-token loss or preference loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import logsigmoid

from sluice_api.dataset import DatasetFormat
from sluice_api.training import Training
from sluice_trainer.token_rows import TokenRows
from sluice_trainer.train.batches import MicroBatch, loss_tokens
from sluice_trainer.train.loss import TokenLoss


class Objective(Protocol):
    """A loss that is a sum over tokens or pairs, so that micro-batches and processes can be summed."""

    def summed_loss(self, loss: TokenLoss, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch, summed over the tokens or pairs that it counts, in float32."""

    def count(self, rows: TokenRows, indices: Sequence[int]) -> int:
        """How many tokens or pairs of these rows it counts."""


@dataclass(frozen=True)
class NextToken(Objective):
    """Cross entropy of the loss tokens, in nats a token."""

    def summed_loss(self, loss: TokenLoss, batch: MicroBatch) -> Tensor:
        """Sum over the loss tokens."""
        return loss.summed(batch)

    def count(self, rows: TokenRows, indices: Sequence[int]) -> int:
        """Tokens that the loss counts."""
        return loss_tokens(rows, indices)


@dataclass(frozen=True)
class Preference(Objective):
    """Direct preference optimization (Rafailov et al., 2023), in nats a pair; 0.693 where nothing is preferred yet.

    The reference is the model without its adapter, which is in memory anyhow. Dropout must be off: it would differ
    between the model and the reference.
    """

    beta: float
    """DPO's beta: how strongly the model is kept near the reference."""

    def summed_loss(self, loss: TokenLoss, batch: MicroBatch) -> Tensor:
        """Sum over the pairs."""
        model = loss.model
        if not isinstance(model, PeftModel):
            raise TypeError("the reference is the model without its adapter, and this one has none")
        with torch.no_grad(), model.disable_adapter():
            reference = _log_probabilities(loss, batch)
        chosen, rejected = (_log_probabilities(loss, batch) - reference).view(-1, 2).unbind(dim=1)
        return -logsigmoid(self.beta * (chosen - rejected)).sum()

    def count(self, rows: TokenRows, indices: Sequence[int]) -> int:
        """Pairs."""
        del rows
        return len(indices)


def objective_of(row_format: DatasetFormat, training: Training) -> Objective:
    """The objective for rows of a format."""
    if row_format is DatasetFormat.PREFERENCE:
        return Preference(float(training.preference_beta))
    return NextToken()


def _log_probabilities(loss: TokenLoss, batch: MicroBatch) -> Tensor:
    """The log probability of each answer of a micro-batch, chosen and rejected in turn."""
    if batch.answers is None:
        raise TypeError("these rows are no pairs")
    answer_of_each = batch.answers[:, 1:][batch.loss_mask[:, 1:]]
    each = torch.zeros(int(batch.answers.max()) + 1, device=answer_of_each.device)
    return each.index_add(0, answer_of_each, -loss.each(batch))
