"""Rows that say the same, nearly the same, or something else to the same question; found without being asked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def alike(known: NDArray[np.void], is_held_out: NDArray[np.bool_]) -> Alike:
    """Compare all rows.

    Args:
        known: collect.Known of each row.
        is_held_out: of each row.
    """
    keys = np.array(known["key"])
    trained, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    exact, exact_pairs = _equal(keys, trained)
    is_across = np.isin(keys[held_out], keys[trained])
    across = held_out[is_across]
    across_pairs = [(int(row), int(trained[np.argmax(keys[trained] == keys[row])])) for row in across[:_SHOWN]]
    near = _near(known, trained, held_out[~is_across])
    conflicts, conflict_pairs = _conflicts(np.array(known["question"]), np.array(known["answer"]))
    return Alike(
        exact=exact,
        across=len(across),
        near_across=len(near),
        conflicts=conflicts,
        exact_pairs=exact_pairs,
        across_pairs=tuple([*across_pairs, *near][:_SHOWN]),
        conflict_pairs=conflict_pairs,
    )


def _equal(keys: NDArray[np.uint64], trained: NDArray[np.int64]) -> tuple[int, Pairs]:
    """How many training rows equal an earlier one, and the first two rows of some groups of equal ones."""
    own = keys[trained]
    ordered = np.sort(own)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    pairs = []
    for key in np.unique(repeated[: 100 * _SHOWN])[:_SHOWN]:
        one, other = trained[np.flatnonzero(own == key)[:2]]
        pairs.append((int(one), int(other)))
    return len(repeated), tuple(sorted(pairs))


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


def _conflicts(questions: NDArray[np.uint64], answers: NDArray[np.uint64]) -> tuple[int, Pairs]:
    """Questions with different answers, and of the first ones two rows that disagree."""
    count = 0
    pairs: list[tuple[int, int]] = []
    for part in range(_PARTS):  # of all questions at once, the order alone would be as large as all else
        asked = np.flatnonzero((questions % np.uint64(_PARTS) == part) & (questions != 0))
        order = asked[np.argsort(questions[asked], kind="stable")]
        same = questions[order[1:]] == questions[order[:-1]]
        differs = np.flatnonzero(same & (answers[order[1:]] != answers[order[:-1]]))
        _, first = np.unique(questions[order[differs]], return_index=True)
        count += len(first)
        found = [(int(order[place]), int(order[place + 1])) for place in differs[first]]
        pairs = sorted([*pairs, *found])[:_SHOWN]
    return count, tuple(pairs)
