"""Rows that say the same, nearly the same, or something else to the same question; found without being asked."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sluice_trainer.data.steps.seen import Sketches

NEAR = 0.8
"""Share of their runs of words from which two rows are near duplicates."""
MOST_HELD_OUT, MOST_TRAINED = 100_000, 1_000_000
"""Rows on each side of the split that are compared with the other; of more, these many at even distances."""
_SHOWN = 3

Pairs = tuple[tuple[int, int], ...]
"""Two rows of the dataset, by their indices; the first few."""


@dataclass(frozen=True)
class Alike:
    """How many rows are alike, with examples."""

    exact: int
    """Rows that an earlier row equals."""
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
    keys = known["key"]
    trained, held_out = np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
    first, group = _groups(keys)
    repeats = np.flatnonzero(first[group] != np.arange(len(keys)))
    is_across = np.isin(keys[held_out], keys[trained])
    across = held_out[is_across]
    near = _near(known, trained, held_out[~is_across])
    conflicts, conflict_pairs = _conflicts(known["question"], known["answer"])
    across_pairs = [*_partners(keys, across, trained), *near[:_SHOWN]]
    return Alike(
        exact=len(repeats),
        across=len(across),
        near_across=len(near),
        conflicts=conflicts,
        exact_pairs=tuple((int(first[group[index]]), int(index)) for index in repeats[:_SHOWN]),
        across_pairs=tuple(across_pairs[:_SHOWN]),
        conflict_pairs=conflict_pairs,
    )


def _groups(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each group of equal rows, and the group of each row."""
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return first, group


def _partners(keys: NDArray[np.uint64], rows: NDArray[np.int64], others: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The first of these rows, each with the first of the others that equals it."""
    return [(int(row), int(others[np.argmax(keys[others] == keys[row])])) for row in rows[:_SHOWN]]


def _near(known: NDArray[np.void], trained: NDArray[np.int64], held_out: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Held-out rows that a training row nearly equals, each with the first such row."""
    sketches = Sketches(NEAR)
    rows = [int(row) for row in _some(held_out, MOST_HELD_OUT) if known["sketch"][row].any()]
    for row in rows:
        sketches.add(known["sketch"][row].tobytes())
    found: dict[int, int] = {}
    if rows:
        for row in _some(trained, MOST_TRAINED):
            sketch = known["sketch"][row]
            if sketch.any() and (number := sketches.find(sketch.tobytes())) is not None:
                found.setdefault(rows[number], int(row))
    return sorted(found.items())


def _some(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most, dtype=np.int64)]


def _conflicts(questions: NDArray[np.uint64], answers: NDArray[np.uint64]) -> tuple[int, Pairs]:
    """Questions with different answers, and of the first ones two rows that disagree."""
    asked = np.flatnonzero(questions)
    order = asked[np.lexsort((asked, answers[asked], questions[asked]))]
    same_question = questions[order[1:]] == questions[order[:-1]]
    differs = np.flatnonzero(same_question & (answers[order[1:]] != answers[order[:-1]]))
    of_each = questions[order[differs]]
    starts = np.flatnonzero(np.append(True, of_each[1:] != of_each[:-1])) if len(of_each) else np.empty(0, np.int64)
    pairs = sorted(tuple(sorted((int(order[differs[start]]), int(order[differs[start] + 1])))) for start in starts)
    return len(starts), tuple((one, other) for one, other in pairs[:_SHOWN])
