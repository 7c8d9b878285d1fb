"""The lengths of rows as a histogram."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sluice_api.data_report import LengthBin, Lengths

_BINS = 24
"""About as many bins as can be told apart on a telephone."""


def lengths_of(rows_by_length: Sequence[int] | NDArray[np.int64], limit: int) -> Lengths:
    """The histogram of lengths.

    Args:
        rows_by_length: How many rows have so many tokens, by their index, as np.bincount(lengths) returns it.
        limit: The longest row that training takes, in tokens.
    """
    counts = np.asarray(rows_by_length, np.int64)
    total = int(counts.sum())
    if total == 0:
        return Lengths(limit=limit)
    reached = np.cumsum(counts)
    longest = int(np.flatnonzero(counts)[-1])

    def length_at(share: float) -> int:
        """The shortest length that so many of the rows do not exceed."""
        return int(np.searchsorted(reached, share * total))

    width = _bin_width(max(1, length_at(0.995)))
    edges = [*range(0, width * _BINS, width)]
    edges = [edge for edge in edges if edge <= longest]
    bins = []
    for first, following in zip(edges, [*edges[1:], longest + 1], strict=True):
        rows = int(counts[first:following].sum())
        bins.append(LengthBin(first=first, last=following - 1, rows=rows))
    return Lengths(
        bins=tuple(bins),
        median=length_at(0.5),
        p90=length_at(0.9),
        p99=length_at(0.99),
        longest=longest,
        limit=limit,
    )


def _bin_width(most: int) -> int:
    """The smallest round width with which _BINS bins reach so far: 1, 2, 4, 5, 8 or 10, and so on."""
    scale = 1
    while True:
        for step in (1, 2, 4, 5, 8):
            if step * scale * _BINS > most:
                return step * scale
        scale *= 10
