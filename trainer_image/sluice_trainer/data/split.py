"""Chooses the rows that are held out, by their content and the seed: equal rows are never on both sides."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sluice_trainer.token_rows import TokenRow


def key_of(parts: Iterable[TokenRow], seed: int) -> int:
    """What a row, with all parts that it was made into, is drawn by: 64 bits that equal rows share."""
    digest = hashlib.sha256(f"{seed} ".encode())
    for part in parts:
        digest.update(part.input_ids.tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def held_out(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Decide for each row whether it is held out.

    About `share` of the rows are; at least one, unless none would remain to train on.
    """
    distinct, copies = np.unique(keys, return_counts=True)
    if share == 0 or len(distinct) < 2:
        return np.zeros(len(keys), np.bool_)
    wanted = max(1, round(share * len(keys)))
    chosen = np.zeros(len(distinct), np.bool_)
    taken = 0
    for index, count in enumerate(copies.tolist()):
        if taken + count <= wanted:
            chosen[index] = True
            taken += count
            if taken == wanted:
                break
    if not taken:
        chosen[int(copies.argmin())] = True  # of those with the fewest copies, the first
    return np.isin(keys, distinct[chosen])


def repeated(keys: NDArray[np.uint64], weight: float) -> NDArray[np.int64]:
    """How often each row is in an epoch, for a source of some weight: equal rows equally often.

    Of a weight's fraction, the rows with the least of their key's low bits get one more. They are others than those by
    which rows are held out, so that neither choice bends the other.
    """
    whole = int(weight)
    low = (keys & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
    return whole + (low < weight - whole).astype(np.int64)
