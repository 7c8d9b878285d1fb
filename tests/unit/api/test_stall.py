"""The rule by which trainer and operator call a training stalled."""

import pytest

from sluice_api.stall import stalled_after


@pytest.mark.parametrize(
    ("step_seconds", "seconds"),
    [(None, 120), (0.1, 120), (24.0, 120), (25.0, 125), (600.0, 3000)],
)
def test_stalled_after_five_median_steps_and_at_least_the_floor(step_seconds: float | None, seconds: float) -> None:
    assert stalled_after(step_seconds) == seconds


def test_stalled_after_floor_can_be_set() -> None:
    assert stalled_after(0.1, floor_seconds=2) == 2
