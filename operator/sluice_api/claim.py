"""The claim: which GPUs a training Job holds, and which engine slots it borrows for them."""

from datetime import datetime
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, StringConstraints

from sluice_api.model import Model
from sluice_api.stages import ExportResult, PrepareResult, Stage, TrainResult


class SlotRef(Model):
    """One replica of one engine."""

    namespace: str
    engine: str
    index: NonNegativeInt

    def __str__(self) -> str:
        """As people write it: chat/1."""
        return f"{self.engine}/{self.index}"


class AttemptRef(Model):
    """One attempt to train, of another job."""

    namespace: str
    job: str
    uid: str = Field(description="Of its batch/v1 Job.")
    gpus: PositiveInt

    @property
    def full_name(self) -> str:
        """The job, as namespace/name."""
        return f"{self.namespace}/{self.job}"


class Claim(Model):
    """What a training Job holds from its creation until it is over. Never changed."""

    pool: str
    resource: str = Field(description="Name of the extended resource.")
    node: str
    gpus: PositiveInt
    borrowed: tuple[SlotRef, ...] = ()
    displaced: tuple[AttemptRef, ...] = Field((), description="Attempts of lower priority that give way to it.")
    term: NonNegativeInt = Field(
        description="The lease's transition count when it was made. Of two overlapping claims the one of "
        "the higher term holds: its maker had listed every older claim before."
    )


class AttemptOutcome(Model):
    """How one attempt of one stage ended: the durable record."""

    stage: Stage
    attempt: PositiveInt
    reason: str
    message: Annotated[str, StringConstraints(max_length=2000)] = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    node: str = ""
    by: str = Field("", description="Whom it gave way to: a job or an engine, as namespace/name.")
    step: NonNegativeInt = 0
    checkpoint_step: NonNegativeInt | None = None
    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    export: ExportResult | None = None


class Outcomes(Model):
    """What is over and must outlive a FineTuneJob's status: its ended attempts and its publication."""

    attempts: tuple[AttemptOutcome, ...] = ()
    published: str = ""
    """Digest of the adapter that was published. A job publishes once: what people do to the Adapter later is theirs."""

    def of(self, stage: Stage) -> tuple[AttemptOutcome, ...]:
        """The ended attempts of one stage, oldest first."""
        return tuple(sorted((a for a in self.attempts if a.stage is stage), key=lambda a: a.attempt))

    def has(self, stage: Stage, attempt: int) -> bool:
        """Whether an attempt is in the record."""
        return any((a.stage, a.attempt) == (stage, attempt) for a in self.attempts)

    def with_attempt(self, outcome: AttemptOutcome) -> "Outcomes":
        """The same record with one more attempt; an attempt is recorded once."""
        if self.has(outcome.stage, outcome.attempt):
            return self
        return self.model_copy(update={"attempts": (*self.attempts, outcome)})
