"""Which rows each step has."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sluice_api.training import Training
from sluice_trainer.plan import Steps

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=40)


def steps_of(lengths: list[int], **settings: object) -> Steps:
    return Steps(lengths, Training.model_validate(settings))


@given(LENGTHS, st.integers(1, 12), st.integers(1, 4))
def test_steps_of_batch_size_rows(lengths: list[int], size: int, epochs: int) -> None:
    steps = steps_of(lengths, batchSize=size, epochs=epochs)
    each = -(-len(lengths) // size)
    assert steps.total == each * epochs
    for epoch in range(epochs):
        found = [steps.rows(epoch * each + place) for place in range(each)]
        assert [len(rows) for rows in found[:-1]] == [size] * (each - 1)
        assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 120), st.integers(1, 4))
@example([5] * 10, 10, 1)
def test_steps_of_batch_tokens(lengths: list[int], most: int, epochs: int) -> None:
    steps = steps_of(lengths, batchTokens=most, epochs=epochs)
    found = [steps.rows(step) for step in range(steps.total)]
    tokens = [sum(lengths[row] for row in rows) for rows in found]
    assert all(count <= most or len(rows) == 1 for count, rows in zip(tokens, found, strict=True))
    assert sorted(row for rows in found for row in rows) == sorted(list(range(len(lengths))) * epochs)
    for (step, rows), (_, following) in pairwise(enumerate(found)):
        is_last = steps.position(step)[0] < steps.position(step + 1)[0]
        assert is_last or sum(lengths[row] for row in rows) + lengths[following[0]] > most


def test_steps_position_and_epochs_before() -> None:
    steps = steps_of([1] * 10, batchSize=4, epochs=2)
    assert [steps.position(step) for step in range(7)] == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4), (1, 8), (2, 0)]
    assert [steps.epochs_before(step) for step in (0, 1, 3, 6)] == pytest.approx([0, 1 / 3, 1, 2])
    assert steps.rows(0) != steps.rows(3)
    assert steps_of([1] * 10, batchSize=4, epochs=2, maxSteps=5).total == 5
    assert steps_of([1] * 10, batchSize=4, seed=1).rows(0) != steps.rows(0)
