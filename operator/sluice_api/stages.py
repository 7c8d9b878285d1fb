"""A job's stages: what the operator gives to each stage's pod, and what the pod leaves behind.

A stage's pod runs `python3 -m sluice_trainer <prepare|train|export>` with a StageSpec in its
environment and ends with a StageOutcome in its termination message.
"""

from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import Field, FiniteFloat, PositiveInt, StringConstraints

from sluice_api.finetunejob import FineTuneJobSpec
from sluice_api.model import Count, Decimal, Model
from sluice_api.sources import is_object
from sluice_api.training import Method

MAX_OUTCOME_BYTES = 4000
"""A termination message is cut at 4,096 bytes by the kubelet."""


class Stage(StrEnum):
    """The stages that run in pods, in their order."""

    PREPARE = "Prepare"
    TRAIN = "Train"
    EXPORT = "Export"


class ExitCode(IntEnum):
    """How a stage's process ends."""

    DONE = 0
    BAD_INPUT = 65
    """The dataset, the model or the output is wrong: another attempt would end the same."""
    INTERNAL = 70
    """Our fault or the node's: another attempt may succeed."""
    REQUEUE = 75
    """Told to stop; the state is durable. Another attempt goes on from there."""


class PoolFacts(Model):
    """What the operator knows about the GPUs of a job's pool. Prepare estimates by it what training will take."""

    gpu_product: Annotated[str, StringConstraints(max_length=128)] = Field(
        "", description="As the nodes' label nvidia.com/gpu.product has it. Empty: they have none, or differ."
    )
    gpu_memory_bytes: Count | None = Field(
        None, description="Of the largest GPU, or of the share of it that the job asks for. Absent: not known."
    )
    price_per_gpu_hour: Decimal = "0"


class StageSpec(Model):
    """What a stage's pod is to do."""

    namespace: str
    name: str
    uid: str
    stage: Stage
    attempt: PositiveInt
    spec: FineTuneJobSpec
    pool: PoolFacts | None = Field(None, description="Of Prepare only. It is no part of what the job asks for.")


GRACE_SECONDS, FULL_GRACE_SECONDS = 30, 300
"""Of adapters, and of a model whose weights all learn: its state is three times as large as the model."""
STORE_GRACE_SECONDS, STORE_FULL_GRACE_SECONDS = 120, 900
"""The same where the output is in an object store, which takes the state over the network, at a tenth to a half of a
disk's speed, and now and then only when it is asked again."""


def grace_seconds(spec: FineTuneJobSpec) -> int:
    """Seconds between SIGTERM and SIGKILL, in which a trainer makes its last step durable, or says that it can't."""
    whole = spec.method is Method.FULL
    if is_object(spec.output.uri):
        return STORE_FULL_GRACE_SECONDS if whole else STORE_GRACE_SECONDS
    return FULL_GRACE_SECONDS if whole else GRACE_SECONDS


class PrepareResult(Model):
    """What Prepare found; the plan of the training follows from it."""

    rows: Count
    validation_rows: Count
    refused_rows: Count
    overlong_rows: Count = 0
    tokens: Count
    loss_tokens: Count
    longest_row: Count = 0
    steps: Count
    dropped_rows: Count = Field(0, description="By dataset.steps, and by training.overlongRows: Drop.")
    duplicate_rows: Count = Field(0, description="Rows that equal or nearly equal another one, and were not dropped.")
    conflicting_questions: Count = Field(0, description="Questions that have different answers in different rows.")
    estimated_gpu_memory_bytes: Count | None = Field(None, description="Peak memory of one GPU.")
    estimated_seconds: Count | None = Field(None, description="Of training. Absent: the pool's GPU is not known.")
    estimated_price: Annotated[str, StringConstraints(max_length=32)] = Field(
        "", description="Of training, at the pool's price; empty when it has none, or no time is estimated."
    )
    refused: tuple[Annotated[str, StringConstraints(max_length=200)], ...] = Field((), max_length=5)
    problems: tuple[Annotated[str, StringConstraints(max_length=200)], ...] = Field(
        (), max_length=3, description="The first problems of the report: DataReport.first_problems."
    )


class TrainResult(Model):
    """Where training stands when its process ends."""

    step: Count
    total_steps: Count
    checkpoint_step: Count | None = None
    exported_step: Count | None = Field(None, description="Of the checkpoint that is the result.")
    resumed_from: Count | None = None
    evaluation_loss_before: FiniteFloat | None = None
    evaluation_loss_after: FiniteFloat | None = None

    @property
    def result_step(self) -> int:
        """Step of the checkpoint that is exported, once training is complete."""
        return self.step if self.exported_step is None else self.exported_step


class ExportResult(Model):
    """What was exported."""

    uri: Annotated[str, StringConstraints(max_length=1024)]
    digest: Annotated[str, StringConstraints(max_length=128)]
    rank: int | None = Field(None, ge=1, le=4096, description="Of an adapter.")
    size_bytes: Count


class StageOutcome(Model):
    """How a stage's process ended, in its termination message."""

    reason: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="A name from reasons.Reason; `Done` when the stage is complete."
    )
    message: Annotated[str, StringConstraints(max_length=2000)] = Field(
        "", description="What was wrong, where, and what to do next."
    )
    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    export: ExportResult | None = None

    def termination_message(self) -> str:
        """The outcome as JSON of at most MAX_OUTCOME_BYTES, with shorter texts if need be."""
        outcome = self
        while len((text := outcome.to_json()).encode()) > MAX_OUTCOME_BYTES:
            shorter = outcome._shorter()
            if shorter is None:
                break
            outcome = shorter
        return text

    def _shorter(self) -> "StageOutcome | None":
        """The outcome with less of its message, else with a refused row less, else with a problem less."""
        if self.message:
            return self.model_copy(update={"message": self.message[: len(self.message) * 9 // 10]})
        found = self.prepare
        if found is None or not (found.refused or found.problems):
            return None
        less = {"refused": found.refused[:-1]} if found.refused else {"problems": found.problems[:-1]}
        return self.model_copy(update={"prepare": found.model_copy(update=less)})
