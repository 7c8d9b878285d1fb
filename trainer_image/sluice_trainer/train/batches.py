"""Rows to tensors, and tensors to a loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor

from sluice_trainer.prepared import TokenRow, TokenRows
from sluice_trainer.train import head


@dataclass(frozen=True)
class MicroBatch:
    """Rows side by side, padded on the right.

    No attention mask goes with them: in a causal model no real token sees the padding behind it, and nothing is
    learnt from what the padding sees.
    """

    input_ids: Tensor
    """int64, rows x longest."""
    learnt: Tensor
    """bool, rows x longest: tokens with a loss."""

    @classmethod
    def of(cls, rows: Sequence[TokenRow], device: torch.device) -> "MicroBatch":
        """Pad rows to the longest of them."""
        longest = max(len(row.input_ids) for row in rows)
        input_ids = np.zeros((len(rows), longest), np.int64)
        learnt = np.zeros((len(rows), longest), np.bool_)
        for index, row in enumerate(rows):
            input_ids[index, : len(row.input_ids)] = row.input_ids
            learnt[index, : len(row.learnt)] = row.learnt
        return cls(torch.from_numpy(input_ids).to(device), torch.from_numpy(learnt).to(device))


def micro_batches(
    rows: TokenRows, indices: Sequence[int], share: range, size: int, device: torch.device
) -> Iterator[tuple[int, MicroBatch]]:
    """A share of one step's rows, a few at a time, with the place in the step of the first of them."""
    for start in range(share.start, share.stop, size):
        places = range(start, min(start + size, share.stop))
        yield start, MicroBatch.of([rows[indices[place]] for place in places], device)


def learnt_tokens(rows: TokenRows, indices: Sequence[int]) -> int:
    """How many tokens of these rows have a loss."""
    return sum(int(rows[index].learnt.sum()) for index in indices)


def all_tokens(rows: TokenRows, indices: Sequence[int]) -> int:
    """How many tokens these rows have."""
    return sum(len(rows[index].input_ids) for index in indices)


def summed_loss(model: PeftModel, batch: MicroBatch) -> Tensor:
    """Cross entropy of the learnt tokens, summed, in nats and float32."""
    return head.summed_loss(model, {"input_ids": batch.input_ids}, batch.learnt)
