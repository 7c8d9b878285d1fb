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


ROWS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(1, 3), st.booleans()), max_size=12)


@given(ROWS)
def test_equal_rows_and_conflicts_are_those_of_a_comparison_of_each_with_each(
    rows: list[tuple[int, int, int, bool]],
) -> None:
    known, out = known_of([row[:3] for row in rows]), np.array([row[3] for row in rows], np.bool_)
    found = alike(known, out)
    keys = [row[0] for row in rows]
    answers: dict[int, set[int]] = defaultdict(set)
    for _, question, answer, _ in rows:
        if question:
            answers[question].add(answer)
    trained = {row[0] for row in rows if not row[3]}
    own = [row[0] for row in rows if not row[3]]
    assert found.exact == sum(key in own[:index] for index, key in enumerate(own))
    assert found.across == sum(row[3] and row[0] in trained for row in rows)
    assert found.conflicts == sum(len(each) > 1 for each in answers.values())
    assert all(keys[one] == keys[other] and one < other for one, other in found.exact_pairs)
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
    found = alike(known, np.array([False, True, True, False]))
    assert (found.exact, found.across, found.near_across, found.across_pairs) == (0, 0, 1, ((1, 0),))
