"""A stage's outcome is as long as the kubelet keeps, whatever rows say."""

import pytest

from sluice_api.stages import MAX_OUTCOME_BYTES, PrepareResult, StageOutcome

MOST = 2**53 - 1


def prepared(letter: str) -> PrepareResult:
    """A result in which everything is as long as it may be."""
    return PrepareResult(
        rows=MOST, validation_rows=MOST, refused_rows=MOST, overlong_rows=MOST, tokens=MOST, loss_tokens=MOST,
        longest_row=MOST, steps=MOST, dropped_rows=MOST, duplicate_rows=MOST, conflicting_questions=MOST,
        estimated_gpu_memory_bytes=MOST, estimated_seconds=MOST, estimated_price="9" * 32,
        refused=(letter * 200,) * 5, problems=(letter * 200,) * 3,
    )  # fmt: skip


@pytest.mark.parametrize(("letter", "refused", "problems"), [("a", 5, 3), ("\U0001f600", 1, 3), ("\x00", 0, 2)])
def test_termination_message_has_what_fits_and_problems_last_of_all(letter: str, refused: int, problems: int) -> None:
    text = StageOutcome(reason="Done", message=letter * 2000, prepare=prepared(letter)).termination_message()
    assert len(text.encode()) <= MAX_OUTCOME_BYTES
    kept = StageOutcome.model_validate_json(text).prepare
    assert kept is not None
    assert (len(kept.refused), len(kept.problems)) == (refused, problems)
    assert kept.rows == MOST


def test_termination_message_of_a_short_outcome_is_unchanged() -> None:
    outcome = StageOutcome(reason="Done", message="Well.", prepare=prepared("a"))
    assert outcome.termination_message() == outcome.to_json()
