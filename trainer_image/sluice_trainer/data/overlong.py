"""What training.overlongRows makes of rows with too many tokens."""

from collections.abc import Sequence

import numpy as np

from sluice_api.reasons import Reason
from sluice_api.training import OverlongRows
from sluice_trainer.data.rows import BadRowError
from sluice_trainer.errors import StageError
from sluice_trainer.prepared import TokenRow


def fitting(row: TokenRow, longest: int, policy: OverlongRows) -> list[TokenRow]:
    """A row of at most so many tokens, or several, or none; itself, if it is not too long.

    Raises:
        BadRowError: nothing to learn would be left of it.
    """
    if len(row.input_ids) <= longest:
        return [row]
    match policy:
        case OverlongRows.TRUNCATE:
            first = int(np.flatnonzero(row.loss_mask)[0])
            if first >= longest:
                raise BadRowError(
                    f"the assistant's part begins at token {first + 1} and is cut off at maxSequenceLength {longest}",
                    "Shorten the row, raise training.maxSequenceLength, or set training.overlongRows: Split",
                )
            return [row.part(0, longest)]
        case OverlongRows.SPLIT:
            # Each begins with the last token of the one before, or nobody would predict its first one.
            parts = (row.part(start, start + longest) for start in range(0, len(row.input_ids) - 1, longest - 1))
            return [part for part in parts if part.loss_mask.any()]
        case OverlongRows.DROP:
            return []


def fitting_pair(answers: Sequence[TokenRow], longest: int, policy: OverlongRows) -> list[TokenRow]:
    """A chosen and a rejected row as one, or none.

    Raises:
        BadRowError: nothing to prefer would be left.
        StageError: DatasetInvalid: a pair can't be split.
    """
    if policy is OverlongRows.SPLIT and any(len(row.input_ids) > longest for row in answers):
        raise StageError(
            Reason.DATASET_INVALID,
            f"Line {answers[0].line} of the dataset has an answer of more than maxSequenceLength {longest} tokens, and "
            "half of it can't be preferred: with chosen and rejected answers, training.overlongRows must be Truncate "
            "or Drop.",
        )
    sides = [fitting(row, longest, policy) for row in answers]
    if not all(sides):
        return []
    (chosen,), (rejected,) = sides
    if np.array_equal(chosen.input_ids, rejected.input_ids):
        raise BadRowError(
            f'"chosen" and "rejected" are the same up to maxSequenceLength {longest}',
            "Raise training.maxSequenceLength, or leave the row out",
        )
    return [TokenRow.pair(chosen, rejected)]
