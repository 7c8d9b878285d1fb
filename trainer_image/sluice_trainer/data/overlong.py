"""training.overlongRows: cuts, splits or drops rows with too many tokens."""

from collections.abc import Sequence

import numpy as np

from sluice_api.training import OverlongRows
from sluice_trainer.data.row import BadRowError
from sluice_trainer.token_rows import TokenRow


def fit_row(row: TokenRow, longest: int, policy: OverlongRows, *, may_split: bool = True) -> list[TokenRow]:
    """Make a row fit into `longest` tokens.

    Args:
        row: The row.
        longest: Tokens of a row at most.
        policy: What happens to longer ones.
        may_split: Whether to say that it could be split, where that would help.

    Returns:
        The row itself if it is short enough; else what the policy makes of it: one row, several or none.

    Raises:
        BadRowError: the row would have no loss tokens.
    """
    if len(row.input_ids) <= longest:
        return [row]
    match policy:
        case OverlongRows.TRUNCATE:
            first = int(np.flatnonzero(row.loss_mask)[0])
            if first >= longest:
                remedy = "Shorten the row, raise training.maxSequenceLength, or set training.overlongRows: Split"
                raise BadRowError(
                    f"the assistant's part begins at token {first + 1} and is cut off at maxSequenceLength {longest}",
                    remedy if may_split else "Shorten the row, or raise training.maxSequenceLength",
                )
            return [row.part(0, longest)]
        case OverlongRows.SPLIT:
            # Each part begins with the last token of the part before, which predicts its first loss token.
            parts = (row.part(start, start + longest) for start in range(0, len(row.input_ids) - 1, longest - 1))
            return [part for part in parts if part.loss_mask.any()]
        case OverlongRows.DROP:
            return []


def fit_pair(
    answers: Sequence[TokenRow], longest: int, policy: OverlongRows, boundary: int | None = None
) -> list[TokenRow]:
    """Make a chosen and a rejected row fit, and join them into a pair.

    Args:
        answers: The two rows.
        longest: Tokens of a row at most.
        policy: What happens to longer ones.
        boundary: context.rope_boundary of the model: the two rows share a micro-batch.

    Returns:
        The pair, or nothing if one of them is dropped.

    Raises:
        BadRowError: both rows would be the same, lie on either side of the boundary, or would have to be split.
    """
    if policy is OverlongRows.SPLIT and any(len(row.input_ids) > longest for row in answers):
        raise BadRowError(
            f"an answer has more than maxSequenceLength {longest} tokens, and half of it can't be preferred",
            "Set training.overlongRows to Truncate or Drop, or shorten the answer",
        )
    sides = [fit_row(row, longest, policy, may_split=False) for row in answers]
    if not all(sides):
        return []
    (chosen,), (rejected,) = sides
    if np.array_equal(chosen.input_ids, rejected.input_ids):
        raise BadRowError(
            f'"chosen" and "rejected" are the same up to maxSequenceLength {longest}',
            "Raise training.maxSequenceLength, or leave the row out",
        )
    if boundary is not None and (len(chosen.input_ids) > boundary) is not (len(rejected.input_ids) > boundary):
        raise BadRowError(
            f"one of its answers is longer than {boundary} tokens and the other is not, and the model computes rows "
            "beyond that length otherwise",
            f"Shorten the longer one, set training.maxSequenceLength: {boundary}, or leave the row out",
        )
    return [TokenRow.pair(chosen, rejected)]
