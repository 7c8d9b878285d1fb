"""Conditions whose transition time moves only when their status does."""

from collections.abc import Iterable
from datetime import datetime

from sluice_api.conditions import Condition, ConditionStatus
from sluice_api.reasons import Reason


def condition(
    before: Iterable[Condition],
    type_: str,
    status: ConditionStatus,
    reason: Reason,
    message: str,
    generation: int,
    now: datetime,
) -> Condition:
    """A condition, with the transition time of the one before when the status is the same."""
    old = next((c for c in before if c.type == type_), None)
    return Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message[:2048],
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old and old.status == status else now,
    )
