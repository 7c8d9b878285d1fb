"""The rule for training that stands still: the trainer reports it, and the operator ends it a little later."""

STALL_STEPS = 5
"""Median steps without a sign of life that are never too long."""
STALL_FLOOR_SECONDS = 120.0
"""Seconds without a sign of life that are never too long, however short a step is."""


def stalled_after(step_seconds: float | None, floor_seconds: float = STALL_FLOOR_SECONDS) -> float:
    """Seconds without a sign of life after which a training counts as stalled.

    Args:
        step_seconds: Median duration of its optimizer steps; None before the first one.
        floor_seconds: The least that is returned.
    """
    return max(STALL_STEPS * (step_seconds or 0.0), floor_seconds)
