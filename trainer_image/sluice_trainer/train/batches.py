"""Rows to tensors: the micro-batches that a process feeds to the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sluice_trainer.prepared import TokenRow, TokenRows
from sluice_trainer.train.group import Group
from sluice_trainer.train.packing import Batching, micro_batches


@dataclass(frozen=True)
class MicroBatch:
    """Rows end to end in one sequence, or side by side and padded on the right.

    No attention mask goes with them. Where positions begin anew in a sequence, transformers lets no token see what
    is before, but only when there is no mask. And in a causal model no real token sees the padding behind it, and
    the loss counts nothing that the padding predicts.
    """

    input_ids: Tensor
    """int64, 1 x tokens when packed, rows x longest when padded."""
    loss_mask: Tensor
    """bool, as input_ids: whether the loss counts a token."""
    position_ids: Tensor | None = None
    """int64, 1 x tokens, from 0 in each row; None when padded."""
    answers: Tensor | None = None
    """int64, as input_ids, of pairs: which answer a token belongs to, chosen and rejected ones in turn from 0."""

    @classmethod
    def of(cls, rows: Sequence[TokenRow], device: torch.device) -> "MicroBatch":
        """Pad rows to the longest of them; a pair is two."""
        paired, rows = _apart(rows)
        longest = max(len(row.input_ids) for row in rows)
        input_ids = np.zeros((len(rows), longest), np.int64)
        loss_mask = np.zeros((len(rows), longest), np.bool_)
        for index, row in enumerate(rows):
            input_ids[index, : len(row.input_ids)] = row.input_ids
            loss_mask[index, : len(row.loss_mask)] = row.loss_mask
        batch = cls(torch.from_numpy(input_ids).to(device), torch.from_numpy(loss_mask).to(device))
        return replace(batch, answers=_owners([longest] * len(rows), batch)) if paired else batch

    @classmethod
    def packed(cls, rows: Sequence[TokenRow], device: torch.device) -> "MicroBatch":
        """Lay rows end to end. Nobody predicts the first token of a row: the one before it is of another row."""
        paired, rows = _apart(rows)
        position_ids = np.concatenate([np.arange(len(row.input_ids)) for row in rows])
        input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
        loss_mask = np.concatenate([row.loss_mask for row in rows]).astype(np.bool_) & (position_ids > 0)
        batch = cls(*(torch.from_numpy(each).unsqueeze(0).to(device) for each in (input_ids, loss_mask, position_ids)))
        return replace(batch, answers=_owners([len(row.input_ids) for row in rows], batch)) if paired else batch


def batches_of(
    rows: TokenRows, indices: Sequence[int], batching: Batching, group: Group
) -> Iterator[tuple[int, MicroBatch, float]]:
    """One process's share of some rows, a few at a time: the place among all of the first of them, and a weight.

    That is 0 for what is done for nothing, where all processes use the model together and this one has less to do.
    """
    lengths = rows.sizes(indices, packed=batching.packed)
    hands = micro_batches(lengths, batching, group.rank.size)
    mine = hands[group.rank.number]
    spare = max(map(len, hands)) - len(mine) if group.shares_model else 0
    smallest = min((places for hand in hands for places in hand), key=lambda places: sum(lengths[p] for p in places))
    for places, weight in [*((places, 1.0) for places in mine), *[(smallest, 0.0)] * spare]:
        yield places[0], put_together([rows[indices[place]] for place in places], batching, group.device), weight


def _apart(rows: Sequence[TokenRow]) -> tuple[bool, Sequence[TokenRow]]:
    """Whether the rows are pairs, and all answers as rows of their own."""
    paired = rows[0].split > 0
    return paired, [answer for row in rows for answer in row.answers()] if paired else rows


def _owners(lengths: Sequence[int], batch: MicroBatch) -> Tensor:
    """Which answer each token of a batch belongs to."""
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return torch.from_numpy(owners).to(batch.input_ids.device).view_as(batch.input_ids)


def put_together(rows: Sequence[TokenRow], batching: Batching, device: torch.device) -> MicroBatch:
    """Rows as one micro-batch."""
    return MicroBatch.packed(rows, device) if batching.packed else MicroBatch.of(rows, device)


def loss_tokens(rows: TokenRows, indices: Sequence[int]) -> int:
    """How many tokens of these rows the loss counts."""
    return sum(int(rows[index].loss_mask.sum()) for index in indices)


def all_tokens(rows: TokenRows, indices: Sequence[int]) -> int:
    """How many tokens these rows have."""
    return sum(len(rows[index].input_ids) for index in indices)
