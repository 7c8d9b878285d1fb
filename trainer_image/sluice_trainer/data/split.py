"""Chooses the rows that are held out, by their content and the seed: equal rows are never on both sides."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sluice_trainer.token_rows import TokenRow

_BLOCK_KEYS = 2**16
"""Keys that are looked for at once."""


def key_of(parts: Iterable[TokenRow], seed: int) -> int:
    """What a row, with all parts that it was made into, is drawn by: 64 bits that equal rows share."""
    digest = hashlib.sha256(f"{seed} ".encode())
    for part in parts:
        digest.update(part.input_ids.tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def held_out(keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Decide for each row whether it is held out.

    About `share` of the rows are; at least one, unless none would remain to train on. Beside the keys this takes ten
    bytes a row.
    """
    return is_among(keys, _chosen(np.sort(keys), share))


def _chosen(ordered: NDArray[np.uint64], share: float) -> NDArray[np.uint64]:
    """The keys whose rows are held out: the lowest ones, but for those that too many rows share.

    Args:
        ordered: The keys of all rows, from low to high.
        share: Of the rows.
    """
    if share == 0 or not len(ordered) or ordered[0] == ordered[-1]:
        return ordered[:0]
    room = max(1, round(share * len(ordered)))
    taken: list[NDArray[np.uint64]] = []
    begin = 0
    while room and begin < len(ordered):
        end = begin + room
        if end < len(ordered):  # the row there is the first without room, and so are those that equal it
            last = ordered[end]
            end, following = np.searchsorted(ordered, last, "left"), np.searchsorted(ordered, last, "right")
        else:
            end = following = len(ordered)
        if end > begin:
            taken.append(ordered[begin:end])
            room -= int(end - begin)
        begin = int(following)
    if not taken:  # of the keys that the fewest rows share, the lowest
        keys, copies = np.unique(ordered, return_counts=True)
        return keys[[copies.argmin()]]
    return np.concatenate(taken)


def is_among(keys: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each key is one of others, which are in order. numpy's isin takes 50 bytes a key; this takes one."""
    found = np.zeros(len(keys), np.bool_)
    for begin in range(0, len(keys) if len(ordered) else 0, _BLOCK_KEYS):
        block = np.array(keys[begin : begin + _BLOCK_KEYS])
        places = np.searchsorted(ordered, block)
        found[begin : begin + len(block)] = ordered[np.minimum(places, len(ordered) - 1)] == block
    return found


def repeated(keys: NDArray[np.uint64], weight: float) -> NDArray[np.int64]:
    """How often each row is in an epoch, for a source of some weight: equal rows equally often.

    Of a weight's fraction, the rows with the least of their key's low bits get one more. They are others than those by
    which rows are held out, so that neither choice bends the other.
    """
    whole = int(weight)
    low = (keys & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2**32
    return whole + (low < weight - whole).astype(np.int64)
