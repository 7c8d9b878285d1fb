"""How the rows of one optimizer step are put into micro-batches and dealt out to the processes.

All of it follows from the rows' lengths: every process works out everybody's, and takes its own.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

Rows = list[int]
"""Places in the step of the rows of one micro-batch."""


@dataclass(frozen=True)
class Batching:
    """How rows become micro-batches."""

    packed: bool
    """Rows end to end in one sequence; otherwise side by side, sorted by length and padded."""
    tokens: int
    """The most that a micro-batch may hold, padding included; a longer row goes alone."""
    rows: int | None = None
    """So many rows in each micro-batch instead, however long they are."""


def micro_batches(lengths: Sequence[int], batching: Batching, shares: int) -> list[list[Rows]]:
    """Each process's micro-batches of one step: every row once, the processes' tokens as even as can be.

    Args:
        lengths: Tokens of each row of the step.
        batching: How many of them go together.
        shares: How many processes there are.
    """
    if batching.rows is not None:
        order = list(range(len(lengths))) if batching.packed else longest_first(lengths)
        size = max(1, min(batching.rows, -(-len(order) // shares)))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        hands = dealt([sum(lengths[place] for place in batch) for batch in batches], shares)
        return [[batches[index] for index in hand] for hand in hands]
    fill = packs if batching.packed else neighbours
    return [
        [[hand[index] for index in batch] for batch in fill([lengths[place] for place in hand], batching.tokens)]
        for hand in dealt(lengths, shares)
    ]


def packs(lengths: Sequence[int], most: int) -> list[Rows]:
    """Few packs of at most so many tokens, each as full as the others.

    Full ones and a rest would cost more: attention grows with the square of a pack.
    """
    most = max(most, *lengths, 1)
    for count in range(-(-sum(lengths) // most), len(lengths)):
        found = dealt(lengths, count)
        if all(sum(lengths[place] for place in pack) <= most for pack in found):
            return found
    return [[place] for place in range(len(lengths))]


def neighbours(lengths: Sequence[int], most: int) -> list[Rows]:
    """Rows of about the same length side by side, as many as fit when all are padded to the longest."""
    batches: list[Rows] = []
    for place in longest_first(lengths):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > most:
            batches.append([])
        batches[-1].append(place)
    return batches


def dealt(weights: Sequence[int], hands: int) -> list[list[int]]:
    """The heaviest first, each to whoever has the least so far: at worst a third more than the best there is.

    Longest processing time first: Graham, 1969.
    """
    dealt_to: list[list[int]] = [[] for _ in range(hands)]
    loads = [(0, hand) for hand in range(hands)]
    for index in longest_first(weights):
        load, hand = loads[0]
        dealt_to[hand].append(index)
        heapq.heapreplace(loads, (load + weights[index], hand))
    return [sorted(hand) for hand in dealt_to]


def longest_first(lengths: Sequence[int]) -> list[int]:
    """Indices by falling length; the first of equals first."""
    return sorted(range(len(lengths)), key=lambda index: -lengths[index])
