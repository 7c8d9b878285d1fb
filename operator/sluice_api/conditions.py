"""A Kubernetes condition, and the conditions that our resources have."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, StringConstraints

from sluice_api.model import Model, Time, plain

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(Model):
    """One fact about an object's state. `lastTransitionTime` moves only when `status` changes."""

    type: Annotated[str, StringConstraints(max_length=64)] = Field(description="What is true or not.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="Why, in one word from docs/reasons.md."
    )
    message: Annotated[str, StringConstraints(max_length=2048), AfterValidator(plain)] = Field(
        "", description="Why, for a person: what the object waits for, since when, and what would end the wait."
    )
    observed_generation: NonNegativeInt = Field(0, description="Generation of the spec that this condition describes.")
    last_transition_time: Time = Field(description="When the status last changed.")


class JobCondition(StrEnum):
    """Conditions of a FineTuneJob, in the order in which they become True."""

    PREPARED = "Prepared"
    ADMITTED = "Admitted"
    TRAINED = "Trained"
    EXPORTED = "Exported"
    PUBLISHED = "Published"
    SUCCEEDED = "Succeeded"


class EngineCondition(StrEnum):
    """Conditions of an InferenceEngine."""

    READY = "Ready"
    LENT = "Lent"


READY = "Ready"
"""The one condition of an Adapter and of a GPUPool."""


def condition(
    before: Iterable[Condition],
    type_: str,
    status: ConditionStatus,
    reason: str,
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
