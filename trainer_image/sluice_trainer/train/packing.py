"""Which rows of one optimizer step go into which micro-batch, and which micro-batch to which process.

All of it follows from the rows' lengths: each process computes the micro-batches of all, and takes its own.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

Positions = list[int]
"""Positions, among the rows of a step, of the rows of one micro-batch."""


@dataclass(frozen=True)
class Batching:
    """How rows become micro-batches."""

    packed: bool
    """Rows end to end in one sequence; otherwise side by side, sorted by length and padded."""
    tokens: int
    """The most tokens of a micro-batch, padding included; a longer row goes alone."""
    rows: int | None = None
    """Rows of each micro-batch, however long they are; None: as many as `tokens` allows."""
    boundary: int | None = None
    """Rows of at most so many tokens never share a micro-batch with longer ones; None: they may."""


def micro_batches(
    lengths: Sequence[int], batching: Batching, processes: int, beyond: Sequence[bool] | None = None
) -> list[list[Positions]]:
    """Distribute the rows of one step: each row once, and about as many tokens to each process.

    Args:
        lengths: Tokens that each row of the step takes in a micro-batch.
        batching: How many of them go together.
        processes: How many processes there are.
        beyond: Of each row, whether it is longer than batching.boundary; None: no row is.

    Returns:
        The micro-batches of each process.
    """
    if batching.rows is not None:
        order = list(range(len(lengths))) if batching.packed else longest_first(lengths)
        size = max(1, min(batching.rows, -(-len(order) // processes)))
        batches = [side[start : start + size] for side in _sides(order, beyond) for start in range(0, len(side), size)]
        per_rank = partition_balanced([sum(lengths[row] for row in batch) for batch in batches], processes)
        return [[batches[index] for index in own] for own in per_rank]
    fill = pack_into_bins if batching.packed else bucket_by_length
    return [
        [
            [side[index] for index in batch]
            for side in _sides(own, beyond)
            for batch in fill([lengths[row] for row in side], batching.tokens)
        ]
        for own in partition_balanced(lengths, processes)
    ]


def _sides(rows: Positions, beyond: Sequence[bool] | None) -> list[Positions]:
    """The rows up to the boundary, and those beyond it."""
    if beyond is None:
        return [rows]
    sides = [[row for row in rows if beyond[row] is side] for side in (False, True)]
    return [side for side in sides if side]


def pack_into_bins(lengths: Sequence[int], most: int) -> list[Positions]:
    """Put rows into few packs of at most `most` tokens, each about as full as the others.

    Full packs and one with the rest would cost more: attention grows with the square of a pack.
    """
    most = max(most, *lengths, 1)
    too_few, enough, packs = -(-sum(lengths) // most) - 1, len(lengths), [[row] for row in range(len(lengths))]
    while enough - too_few > 1:  # bisection: to try one count after the other is quadratic in the rows
        count = (too_few + enough) // 2
        tried = partition_balanced(lengths, count)
        if all(sum(lengths[row] for row in pack) <= most for pack in tried):
            enough, packs = count, tried
        else:
            too_few = count
    return packs


def bucket_by_length(lengths: Sequence[int], most: int) -> list[Positions]:
    """Put rows of about the same length together, as many as `most` tokens hold when all are padded to the longest."""
    batches: list[Positions] = []
    for row in longest_first(lengths):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > most:
            batches.append([])
        batches[-1].append(row)
    return batches


def partition_balanced(weights: Sequence[int], parts: int) -> list[list[int]]:
    """Partition indices into parts of about the same weight: the heaviest first, each to the lightest part so far.

    The heaviest part weighs at worst a third more than in the best partition. Longest processing time first: Graham,
    1969.
    """
    members: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, part) for part in range(parts)]
    for index in longest_first(weights):
        load, part = loads[0]
        members[part].append(index)
        heapq.heapreplace(loads, (load + weights[index], part))
    return [sorted(part) for part in members]


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length; the first of equals first."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])
