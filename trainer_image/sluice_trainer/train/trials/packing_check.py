"""Whether the loss of rows in a pack equals their loss one by one: tried on the model itself, before step 0.

Attention keeps rows apart by their position_ids. A layer with a recurrent state (Mamba, a convolution over time)
carries it from one row into the next, some models ignore position_ids, and some learn positions of their own.

Two rows are packed in both orders. The first row of a pack sees nothing of the second: how far its losses are from
those that it has alone is rounding, and that is what the second row's are compared with: means over tokens, as a single
token's rounding varies much. Over 60 kinds of model, with random weights, in float32 and in bfloat16, the second row's
are at most 2.4 times the first's without a leak, and at least 90 times with one (test_packing_kinds.py has many of
them). Then a whole pack is tried, whose rows begin at odd places: in the middle of a chunk of attention, say.
"""

import inspect
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sluice_trainer.token_rows import TokenRow, TokenRows
from sluice_trainer.train.batches import MicroBatch
from sluice_trainer.train.loss import TokenLoss
from sluice_trainer.train.weights.model import bare, eval_mode

COMPARED_TOKENS = 64
"""Tokens at each end of a row whose losses are compared: a state leaks into the first, a window shows in the last."""
TRIED_ROWS = 12
"""At most so many rows of a pack are tried: a later one may begin where a window or a chunk of attention ends."""
LEAK = 8.0
"""How many times the rounding of first rows is more than rounding."""
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
"""Nats a token that are rounding in any case: a first row may be as alone to the last bit."""
LARGEST_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""Nats a token that no rounding explains, whatever is compared."""


def packing_obstacle(
    loss: TokenLoss, rows: TokenRows, device: torch.device, most: int, boundary: int | None = None
) -> str | None:
    """Why packs of these rows are not exact; None if they are.

    Args:
        loss: The model and its loss.
        rows: The training rows.
        device: Where the model is.
        most: Tokens of a pack: as many are tried, in rows of the dataset.
        boundary: Batching.boundary: rows on either side of it share no pack.
    """
    if "position_ids" not in inspect.signature(bare(loss.model).forward).parameters:
        return "the model takes no position_ids"
    tried = rows_of_a_pack(rows, most, boundary)
    if tried is None:
        return "no two rows fit into one micro-batch"
    pair = sorted(tried, key=lambda row: len(row.input_ids))[-2:]
    with eval_mode(loss.model):
        first, second = _differences(loss, pair, device)
        whole = [] if len(tried) == 2 else _differences(loss, tried, device)[1]
    return _leak(_mean(first), _mean(second), _mean(whole), loss.dtype)


def _differences(loss: TokenLoss, rows: Sequence[TokenRow], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Pack rows in their order and in its reverse.

    Returns:
        By how much the tokens' losses differ from those of a row alone, in nats: of first rows, and of all others.
    """
    alone = [loss.each(MicroBatch.of([row], device)) for row in rows]
    first: list[Tensor] = []
    others: list[Tensor] = []
    for order in (range(len(rows)), range(len(rows) - 1, -1, -1)):
        packed = loss.each(MicroBatch.packed([rows[index] for index in order], device))
        losses = packed.split([len(alone[index]) for index in order])
        differences = [(found - alone[index]).abs() for index, found in zip(order, losses, strict=True)]
        first.append(differences[0])
        others += differences[1:]
    return first, others


def _mean(differences: Sequence[Tensor]) -> float:
    together = torch.cat([torch.zeros(0), *(each.cpu() for each in differences)])
    return together.mean().item() if len(together) else 0.0


def _leak(first: float, second: float, whole: float, dtype: torch.dtype) -> str | None:
    """Judge mean differences, in nats a token: of first and second rows of two, and of a whole pack. NaN leaks too."""
    half = torch.float32 if dtype == torch.float32 else torch.bfloat16
    for rounding, most in ((first, LARGEST_ROUNDING[half]), (second, LEAK * first + ROUNDING[half])):
        if not rounding <= most:
            differs = f"its loss differs by {rounding:.3g} nats a token, of which {most:.1g} may be rounding"
            return f"a row is not alone in a pack: {differs}"
    if not whole <= LARGEST_ROUNDING[half]:
        return f"rows are not alone in a full pack: their loss differs by {whole:.3g} nats a token"
    return None


def rows_of_a_pack(rows: TokenRows, most: int, boundary: int | None) -> Sequence[TokenRow] | None:
    """Rows that fill a pack, long and short ones in turn, so that they begin at odd places; None if no two fit.

    Of pairs, both sides of each. The ends of each row are all in the loss.
    """
    lengths = rows.lengths
    if rows.splits.any():
        chosen = _filling(np.arange(len(rows)), lengths, most) or [int(lengths.argmin())]
        return [_ends_in_loss(side) for index in chosen for side in rows[index].answers()]
    sides = [lengths > 0] if boundary is None else [lengths <= boundary, lengths > boundary]
    packs = [_filling(np.flatnonzero(side & (lengths > 1)), lengths, most) for side in sides]
    fullest = max(packs, key=lambda pack: (len(pack) > 1, int(lengths[pack].sum())))
    return [_ends_in_loss(rows[index]) for index in fullest] if len(fullest) > 1 else None


def _filling(indices: np.ndarray, lengths: np.ndarray, most: int) -> list[int]:
    """Some of these rows that `most` tokens hold: the longest, the shortest, the next longest that fits, and so on."""
    ordered = indices[np.argsort(lengths[indices], kind="stable")].tolist()
    if len(ordered) > 2 * TRIED_ROWS:
        # The longest row that leaves room for the shortest, and those below it.
        fits = int(np.searchsorted(lengths[ordered], most - lengths[ordered[0]], side="right"))
        last = max(fits, TRIED_ROWS)
        ordered = [*ordered[:TRIED_ROWS], *ordered[max(TRIED_ROWS, last - TRIED_ROWS) : last]]
    found: list[int] = []
    left, longest = most, True
    while ordered and len(found) < TRIED_ROWS:
        fitting = [index for index in ordered if lengths[index] <= left]
        if len(found) == 0 and len(fitting) > 1:  # else one long row would leave room for no other
            fitting = [
                index for index in fitting if lengths[index] + lengths[fitting[0]] <= left or index == fitting[0]
            ]
        if not fitting:
            break
        index = fitting[-1] if longest else fitting[0]
        found.append(index)
        ordered.remove(index)
        left -= int(lengths[index])
        longest = not longest
    return found


def _ends_in_loss(row: TokenRow) -> TokenRow:
    """The row, with the loss counting the tokens at both ends, where leaks show: all logits would take much memory."""
    mask = np.zeros(len(row.input_ids), np.uint8)
    mask[: COMPARED_TOKENS + 1] = mask[-COMPARED_TOKENS:] = 1
    mask[0] = 0
    return TokenRow(row.input_ids, mask)
