"""What pods tell the operator: a trainer's progress and an engine slot's state.

Both are posted as JSON to the operator's progress Service with the pod's own bound token
(see pods.TOKEN_FILE). The operator answers 202 when accepted, 400 for a malformed report,
401 or 403 for a token that does not fit, 409 for a report that is not newer than the last one,
429 with Retry-After when a pod posts too often, and 503 from a replica that does not lead.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, StringConstraints

from sluice_api.model import Model, Name

TRAINING_REPORTS_PATH = "/v1/training-reports"
ENGINE_REPORTS_PATH = "/v1/engine-reports"
MAX_REPORT_BYTES = 65_536
MAX_UNSAVED_CHARACTERS = 512
LONGEST_ESTIMATE = 315_360_000
"""Ten years in seconds: an estimate above it is no estimate."""


class Activity(StrEnum):
    """What a trainer is doing right now."""

    STARTING = "Starting"
    WAITING_FOR_PODS = "WaitingForPods"
    """It is one of a group, and not all of the group's processes are there."""
    LOADING_MODEL = "LoadingModel"
    PREPARING = "Preparing"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    SAVING = "Saving"
    EXPORTING = "Exporting"
    FINISHED = "Finished"


class TrainingReport(Model):
    """What a trainer tells the operator, at most once a second.

    Accepted only if (attempt, sequence) is greater than the last accepted pair of the job's stage, or if it is the
    third in a row that is not, each newer than the one before: then this pod goes on, and another had its token.
    """

    attempt: PositiveInt = Field(description="Which attempt of the stage this pod is, from 1.")
    sequence: PositiveInt = Field(description="Counts the reports of one attempt, from 1.")
    activity: Activity
    step: NonNegativeInt = Field(0, description="Optimizer steps done, counted over all attempts.")
    total_steps: NonNegativeInt = Field(0, description="Optimizer steps of the whole job; 0 while unknown.")
    epoch: FiniteFloat = Field(0.0, ge=0, description="Passes over the training rows done, with a fraction.")
    loss: FiniteFloat | None = Field(
        None, description="Mean loss since the last report, in nats for each loss token, or for each pair."
    )
    evaluation_loss: FiniteFloat | None = Field(
        None, description="Mean over the held-out tokens, or pairs, in nats; the newest one."
    )
    learning_rate: FiniteFloat | None = Field(None, ge=0, description="Of the last step.")
    gradient_norm: FiniteFloat | None = Field(None, ge=0, description="Of the last step, before it was clipped.")
    tokens_per_second: FiniteFloat | None = Field(None, ge=0, description="Real tokens, padding excluded.")
    gpu_memory_bytes: NonNegativeInt | None = Field(None, description="Peak of this attempt.")
    memory_bytes: NonNegativeInt | None = Field(None, description="Peak of this process in the host's memory.")
    seconds_left: int | None = Field(
        None, ge=0, le=LONGEST_ESTIMATE, description="The trainer's estimate to its last step."
    )
    step_seconds: FiniteFloat | None = Field(None, ge=0, le=31_536_000, description="Median seconds of a step so far.")
    checkpoint_step: NonNegativeInt | None = Field(None, description="Step of the newest durable checkpoint.")
    unsaved: Annotated[str, StringConstraints(max_length=MAX_UNSAVED_CHARACTERS)] | None = Field(
        None, description="Why the last checkpoint could not be saved; absent when it could."
    )
    message: Annotated[str, StringConstraints(max_length=1024)] | None = Field(
        None, description="Why training stands still, for a person; absent while it goes on."
    )


class LoadedState(StrEnum):
    """How far an adapter is on one slot."""

    LOADING = "Loading"
    LOADED = "Loaded"
    FAILED = "Failed"


class LoadedAdapter(Model):
    """One Adapter as one slot has it."""

    name: Name = Field(description="The Adapter's name, which is its public alias.")
    generation: NonNegativeInt = Field(description="metadata.generation of the Adapter that this speaks of.")
    version: Annotated[str, StringConstraints(max_length=128)] = Field(
        "", description="Name inside vLLM, <name>--<sha12>; empty until known."
    )
    state: LoadedState
    reason: Annotated[str, StringConstraints(max_length=64)] = Field(
        "", description="A name from reasons.Reason when state is Failed."
    )
    message: Annotated[str, StringConstraints(max_length=1024)] = ""


class EngineReport(Model):
    """What the agent of one slot tells the operator, on every change and every few seconds."""

    sequence: PositiveInt = Field(
        description="Grows with each report of one pod, over restarts of its agent too (milliseconds since 1970)."
    )
    serving: bool = Field(description="vLLM is healthy and every adapter is loaded or has failed for good.")
    draining: bool = Field(description="The agent has seen that this slot is to drain and answers 'close'.")
    asleep: bool = Field(
        False,
        description="vLLM takes no memory of its GPUs, and will not before the engine's status says so: it sleeps and "
        "has freed it, or has not been started.",
    )
    in_flight: NonNegativeInt = Field(description="Requests inside vLLM now, streams included.")
    quiet_seconds: FiniteFloat = Field(
        0.0, ge=0, le=LONGEST_ESTIMATE, description="Seconds since the last request began."
    )
    adapters: tuple[LoadedAdapter, ...] = Field((), max_length=256)
    message: Annotated[str, StringConstraints(max_length=1024)] = Field(
        "", description="Why the slot is not serving, for a person."
    )
