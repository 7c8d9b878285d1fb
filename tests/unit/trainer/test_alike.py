"""Rows that are alike are found as a comparison of each with each finds them."""

from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sluice_trainer.data.alike import alike
from sluice_trainer.data.collect import Known
from sluice_trainer.data.row import Conversation, Turn
from sluice_trainer.data.steps.deduplicate import signature
from sluice_trainer.data.steps.keys import answer_key, question_key


def known_of(rows: list[tuple[int, int, int]]) -> NDArray[np.void]:
    known = np.zeros(len(rows), Known.KEYS)
    for index, (key, question, answer) in enumerate(rows):
        known[index]["key"], known[index]["question"], known[index]["answer"] = key, question, answer
    return known


SIDES = st.sampled_from(["trained", "held out", "left out"])
ROWS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 3), SIDES), max_size=12)


@given(ROWS)
def test_equal_rows_and_conflicts_are_those_of_a_comparison_of_each_with_each(
    rows: list[tuple[int, int, int, str]],
) -> None:
    """Rows that a source's weight leaves out are on neither side, and are compared with none."""
    is_trained, is_held_out = (np.array([row[3] == side for row in rows], np.bool_) for side in ("trained", "held out"))
    found = alike(known_of([row[:3] for row in rows]), is_trained, is_held_out)
    keys = [row[0] for row in rows]
    answers: dict[int, set[int]] = defaultdict(set)
    for _, question, answer, side in rows:
        if question and side != "left out":
            answers[question].add(answer)
    own = [row[0] for row in rows if row[3] == "trained"]
    assert found.exact == sum(key in own[:index] for index, key in enumerate(own))
    assert found.across == sum(row[3] == "held out" and row[0] in own for row in rows)
    assert found.conflicts == sum(len(each) > 1 for each in answers.values())
    assert all(keys[one] == keys[other] and one < other for one, other in found.exact_pairs)
    assert all(keys[one] == keys[other] and rows[other][3] == "trained" for one, other in found.across_pairs)
    for one, other in found.conflict_pairs:
        assert (rows[one][1], rows[one][2]) != (rows[other][1], rows[other][2])
        assert rows[one][1] == rows[other][1]


def conversation(question: str, answer: str) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)))


def test_near_duplicates_are_found_across_the_split_alone() -> None:
    text = " ".join(f"word{n} of the story" for n in range(60))
    other = "nothing of this has been said before in any of the rows that are trained on or held out here at all today"
    rows = [conversation(f"{n}", text if n != 2 else other) for n in range(4)]
    known = np.zeros(4, Known.KEYS)
    for index, row in enumerate(rows):
        sketch = signature(row, near=True).sketch
        known[index] = (index + 1, question_key(row) or 0, answer_key(row) or 0, np.frombuffer(sketch, np.uint8))
    is_held_out = np.array([False, True, True, False])
    found = alike(known, ~is_held_out, is_held_out)
    assert (found.exact, found.across, found.near_across, found.across_pairs) == (0, 0, 1, ((1, 0),))
