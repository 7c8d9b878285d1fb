"""Rows that say the same, nearly the same, or something else to the same question; found without being asked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sluice_trainer.data.split import is_among
from sluice_trainer.data.steps.seen import Sketches

NEAR = 0.8
"""Share of their runs of words from which two rows are near duplicates."""
MOST_HELD_OUT, MOST_TRAINED = 100_000, 300_000
"""Rows on each side of the split that are compared with the other; of more, these many at even distances."""
_SHOWN = 3
_PARTS = 16

Pairs = tuple[tuple[int, int], ...]
"""Two rows of the dataset, by their indices; the first few."""


@dataclass(frozen=True)
class Alike:
    """How many rows are alike, with examples."""

    exact: int
    """Training rows that an earlier training row equals."""
    across: int
    """Held-out rows that a training row equals."""
    near_across: int
    """Held-out rows that a training row nearly equals."""
    conflicts: int
    """Questions that have different answers."""
    exact_pairs: Pairs = ()
    across_pairs: Pairs = ()
    """A held-out row, and the training row that it is like."""
    conflict_pairs: Pairs = ()


def alike(known: NDArray[np.void], is_trained: NDArray[np.bool_], is_held_out: NDArray[np.bool_]) -> Alike:
    """Compare all rows that are trained on or held out. Beside what is given this takes 25 bytes a row.

    Args:
        known: collect.Known of each row.
        is_trained: of each row. One that is neither is of a source whose weight leaves it out.
        is_held_out: of each row.
    """
    exact, exact_pairs, across = _equal(np.array(known["key"]), is_trained, is_held_out)
    is_across = np.zeros(len(known), np.bool_)
    is_across[across] = True
    near = _near(known, np.flatnonzero(is_trained), np.flatnonzero(is_held_out & ~is_across))
    across_pairs = [
        (row, int(np.argmax(is_trained & (known["key"] == known["key"][row])))) for row in across[:_SHOWN].tolist()
    ]
    conflicts, conflict_pairs = _conflicts(known, is_trained | is_held_out)
    return Alike(
        exact=exact,
        across=len(across),
        near_across=len(near),
        conflicts=conflicts,
        exact_pairs=exact_pairs,
        across_pairs=tuple([*across_pairs, *near][:_SHOWN]),
        conflict_pairs=conflict_pairs,
    )


def _equal(
    keys: NDArray[np.uint64], is_trained: NDArray[np.bool_], is_held_out: NDArray[np.bool_]
) -> tuple[int, Pairs, NDArray[np.int64]]:
    """How many training rows equal an earlier one, the first two rows of some groups of equal ones, and the held-out
    rows that a training row equals."""
    ordered = keys[is_trained]
    ordered.sort()
    is_repeated = ordered[1:] == ordered[:-1]
    pairs = []
    for key in np.unique(ordered[1:][is_repeated][: 100 * _SHOWN])[:_SHOWN]:
        one, other = np.flatnonzero(is_trained & (keys == key))[:2].tolist()
        pairs.append((one, other))
    held_out = np.flatnonzero(is_held_out)
    across = held_out[is_among(keys[held_out], ordered)]
    return int(np.count_nonzero(is_repeated)), tuple(sorted(pairs)), across


def _near(known: NDArray[np.void], trained: NDArray[np.int64], held_out: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Held-out rows that a training row nearly equals, each with one such row."""
    asked = [int(row) for row in _some(held_out, MOST_HELD_OUT) if known["sketch"][row].any()]
    if not asked:
        return []
    sketches, rows = Sketches(NEAR), []
    for row in _some(trained, MOST_TRAINED):
        if known["sketch"][row].any():
            sketches.add(known["sketch"][row].tobytes())
            rows.append(int(row))
    found = ((row, sketches.find(known["sketch"][row].tobytes())) for row in asked)
    return [(row, rows[number]) for row, number in found if number is not None]


def _some(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most, dtype=np.int64)]


def _conflicts(known: NDArray[np.void], is_used: NDArray[np.bool_]) -> tuple[int, Pairs]:
    """Questions with different answers, and of the first ones two rows that disagree."""
    questions, answers = np.array(known["question"]), np.array(known["answer"])
    parts = questions.astype(np.uint8) % _PARTS  # of all questions at once, the order alone would be as large
    is_asked = is_used & (questions != 0)
    count = 0
    pairs: list[tuple[int, int]] = []
    for part in range(_PARTS):
        asked = np.flatnonzero(is_asked & (parts == part))
        order = asked[np.argsort(questions[asked], kind="stable")]
        same = questions[order[1:]] == questions[order[:-1]]
        differs = np.flatnonzero(same & (answers[order[1:]] != answers[order[:-1]]))
        _, first = np.unique(questions[order[differs]], return_index=True)
        count += len(first)
        found = [(int(order[place]), int(order[place + 1])) for place in differs[first]]
        pairs = sorted([*pairs, *found])[:_SHOWN]
    return count, tuple(pairs)
