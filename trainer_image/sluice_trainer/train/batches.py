"""Rows to tensors: the micro-batches that a process feeds to the model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from sluice_trainer.token_rows import TokenRow, TokenRows
from sluice_trainer.train.group import Group
from sluice_trainer.train.packing import Batching, Positions, micro_batches


@dataclass(frozen=True)
class MicroBatch:
    """Rows end to end in one sequence, or side by side and padded on the right.

    The model gets no attention mask. Without one, transformers starts a new sequence wherever position_ids start at 0
    again, so that rows of a pack don't see each other. And in a causal model no real token sees the padding behind it,
    and the loss counts nothing that the padding predicts.
    """

    input_ids: Tensor
    """int64, 1 x tokens when packed, rows x longest when padded."""
    loss_mask: Tensor
    """bool, as input_ids: whether the loss counts a token."""
    position_ids: Tensor | None = None
    """int64, 1 x tokens, from 0 in each row; None when padded."""
    answers: Tensor | None = None
    """int64, as input_ids: the answer that a token is of, from 0, chosen and rejected in turn. None without pairs."""

    @classmethod
    def of(cls, rows: Sequence[TokenRow], device: torch.device) -> "MicroBatch":
        """Pad rows to the longest of them; a pair is two rows."""
        paired, rows = _split_pairs(rows)
        longest = max(len(row.input_ids) for row in rows)
        input_ids = np.zeros((len(rows), longest), np.int64)
        loss_mask = np.zeros((len(rows), longest), np.bool_)
        for index, row in enumerate(rows):
            input_ids[index, : len(row.input_ids)] = row.input_ids
            loss_mask[index, : len(row.loss_mask)] = row.loss_mask
        batch = cls(torch.from_numpy(input_ids).to(device), torch.from_numpy(loss_mask).to(device))
        return replace(batch, answers=_answer_of_each_token([longest] * len(rows), batch)) if paired else batch

    @classmethod
    def packed(cls, rows: Sequence[TokenRow], device: torch.device) -> "MicroBatch":
        """Lay rows end to end. The loss counts no row's first token: the token before it is of another row."""
        paired, rows = _split_pairs(rows)
        position_ids = np.concatenate([np.arange(len(row.input_ids)) for row in rows])
        input_ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
        loss_mask = np.concatenate([row.loss_mask for row in rows]).astype(np.bool_) & (position_ids > 0)
        batch = cls(*(torch.from_numpy(each).unsqueeze(0).to(device) for each in (input_ids, loss_mask, position_ids)))
        return (
            replace(batch, answers=_answer_of_each_token([len(row.input_ids) for row in rows], batch))
            if paired
            else batch
        )


def batches_of(
    rows: TokenRows, indices: Sequence[int], batching: Batching, group: Group
) -> Iterator[tuple[int, MicroBatch, float]]:
    """Yield this process's micro-batches of some rows, each with the position of its first row and a weight.

    The weight is 0 for a dummy micro-batch. A process has those where all use the sharded model together, and it has
    fewer micro-batches than another.
    """
    per_rank = positions_of_batches(rows, indices, batching, group.rank.size)
    own = [(positions, 1.0) for positions in per_rank[group.rank.number]]
    if group.shares_model and len(own) < (most := max(map(len, per_rank))):
        sizes = rows.sizes(indices, packed=batching.packed)
        smallest = min(chain(*per_rank), key=lambda positions: sum(sizes[position] for position in positions))
        own += [(smallest, 0.0)] * (most - len(own))
    for positions, weight in own:
        batch = make_micro_batch([rows[indices[position]] for position in positions], batching, group.device)
        yield positions[0], batch, weight


def positions_of_batches(
    rows: TokenRows, indices: Sequence[int], batching: Batching, processes: int
) -> list[list[Positions]]:
    """Distribute some rows; returns each process's micro-batches, as positions among the indices."""
    boundary = batching.boundary
    beyond = None if boundary is None else [length > boundary for length in rows.longest_sequences(indices)]
    return micro_batches(rows.sizes(indices, packed=batching.packed), batching, processes, beyond)


def _split_pairs(rows: Sequence[TokenRow]) -> tuple[bool, Sequence[TokenRow]]:
    """Split pairs into rows; returns whether the rows were pairs, and the rows."""
    paired = rows[0].split > 0
    return paired, [answer for row in rows for answer in row.answers()] if paired else rows


def _answer_of_each_token(lengths: Sequence[int], batch: MicroBatch) -> Tensor:
    """The index of the answer that each token of a batch belongs to."""
    answers = np.repeat(np.arange(len(lengths)), lengths)
    return torch.from_numpy(answers).to(batch.input_ids.device).view_as(batch.input_ids)


def make_micro_batch(rows: Sequence[TokenRow], batching: Batching, device: torch.device) -> MicroBatch:
    """Make one micro-batch of rows, packed or padded."""
    return MicroBatch.packed(rows, device) if batching.packed else MicroBatch.of(rows, device)


def loss_tokens(rows: TokenRows, indices: Sequence[int]) -> int:
    """How many tokens of these rows the loss counts."""
    return sum(int(rows[index].loss_mask.sum()) for index in indices)


def all_tokens(rows: TokenRows, indices: Sequence[int]) -> int:
    """How many tokens these rows have."""
    return sum(len(rows[index].input_ids) for index in indices)
