"""The claim: which GPUs a training Job holds on which nodes, and which engine slots it borrows for them."""

from functools import cached_property
from typing import Annotated

from pydantic import AliasChoices, Field, StringConstraints

from sluice_api.gpupool import SharingMode
from sluice_api.meta import HIGHEST_ATTEMPT, HIGHEST_INDEX
from sluice_api.model import Count, Id, Model, Time
from sluice_api.stages import ExportResult, PrepareResult, Stage, TrainResult

MOST_PODS = 64
"""Of one job, and so nodes, as its spec has it."""
MOST_GPUS = 64
"""Of one pod."""
_MOST_RECORDED = 2000
"""Attempts in a record; what it takes as text is bounded by OUTCOMES_BYTES."""
OUTCOMES_BYTES = 64 << 10
"""The record of a job's attempts is an annotation: all of them together have 256 KiB."""


class SlotRef(Model):
    """One replica of one engine."""

    namespace: Id
    engine: Id
    index: int = Field(ge=0, le=HIGHEST_INDEX)

    def __str__(self) -> str:
        """As people write it: chat/1."""
        return f"{self.engine}/{self.index}"


class AttemptRef(Model):
    """One attempt to train, of another job."""

    namespace: Id
    job: Id
    uid: Id = Field(description="Of its batch/v1 Job.")
    gpus: int = Field(ge=1, le=MOST_PODS * MOST_GPUS, description="Those that it has on the node.")

    @property
    def full_name(self) -> str:
        """The job, as namespace/name."""
        return f"{self.namespace}/{self.job}"


class Share(Model):
    """A part of one GPU, beside others."""

    mode: SharingMode
    percent: int = Field(ge=1, le=99, description="Of the GPU's memory.")


class NodeAllocation(Model):
    """What a claim has on one node."""

    node: Id
    pods: int = Field(1, ge=1, le=MOST_PODS)
    borrowed: tuple[SlotRef, ...] = Field((), max_length=MOST_PODS * MOST_GPUS)
    preempted: tuple[AttemptRef, ...] = Field(
        (),
        max_length=MOST_PODS * MOST_GPUS,
        validation_alias=AliasChoices("preempted", "displaced"),  # as claims called it before
        description="Attempts of lower priority that give way to it there.",
    )
    beside: SlotRef | None = Field(
        None, description="The slot whose GPUs it uses while that goes on, with a share. It has none of its own there."
    )


class Claim(Model):
    """What a training Job holds from its creation until it is over, all of it or nothing. Never changed."""

    pool: Id
    resource: Annotated[str, StringConstraints(max_length=317)] = Field(
        description="Name of the extended resource, or of the driver of GPUs that DRA serves."
    )
    gpus: int = Field(ge=1, le=MOST_GPUS, description="Of each pod.")
    places: tuple[NodeAllocation, ...] = Field(min_length=1, max_length=MOST_PODS, description="One for each node.")
    share: Share | None = Field(None, description="Absent: the GPUs are its own, or the parts that the pool counts in.")
    own_devices: Count | None = Field(
        None,
        description="With DRA: how many of each pod's GPUs come by a ResourceClaim of its own, beside those of slots. "
        "Absent: the GPUs are an extended resource.",
    )
    term: int = Field(
        ge=0,
        le=2**63 - 1,
        description="The lease's transition count when it was made. Of two overlapping claims the one of "
        "the higher term holds: its maker had listed every older claim before.",
    )

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The node of each pod, by the pod's index."""
        return tuple(place.node for place in self.places for _ in range(place.pods))

    @cached_property
    def all_gpus(self) -> int:
        """GPUs of all pods."""
        return self.gpus * len(self.nodes)

    @cached_property
    def borrowed(self) -> tuple[SlotRef, ...]:
        """Slots that it borrows, on all nodes."""
        return tuple(slot for place in self.places for slot in place.borrowed)

    @cached_property
    def preempted(self) -> frozenset[str]:
        """Uids of the attempts that give way to it, on any node."""
        return frozenset(ref.uid for place in self.places for ref in place.preempted)

    def on(self, node: str) -> NodeAllocation | None:
        """What it has on a node."""
        return next((place for place in self.places if place.node == node), None)

    def gpus_on(self, node: str) -> int:
        """GPUs that it has on a node: none of its own beside a slot."""
        place = self.on(node)
        return self.gpus * place.pods if place and not place.beside else 0

    @cached_property
    def host(self) -> SlotRef | None:
        """The slot whose guest it is: it uses that one's GPUs beside it."""
        return next((place.beside for place in self.places if place.beside), None)

    def home_of(self, slot: SlotRef) -> str:
        """The node on which the GPUs of a borrowed slot are; empty if it borrows no such slot."""
        return next((place.node for place in self.places if slot in place.borrowed), "")

    @property
    def summary(self) -> str:
        """As people read it: n1, or n1 (2 pods) and n2."""
        named = [place.node if place.pods == 1 else f"{place.node} ({place.pods} pods)" for place in self.places]
        return " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))


class AttemptOutcome(Model):
    """How one attempt of one stage ended: the durable record."""

    stage: Stage
    attempt: int = Field(ge=1, le=HIGHEST_ATTEMPT)
    reason: Annotated[str, StringConstraints(max_length=64)]
    message: Annotated[str, StringConstraints(max_length=2000)] = ""
    started_at: Time | None = None
    ended_at: Time | None = None
    node: Id = Field("", description="Of the pod that ended it, or of the only one.")
    by: Annotated[str, StringConstraints(max_length=512)] = Field(
        "", description="Whom it gave way to: a job or an engine, as namespace/name."
    )
    step: Count = 0
    checkpoint_step: Count | None = None
    prepare: PrepareResult | None = None
    train: TrainResult | None = None
    export: ExportResult | None = None


class Outcomes(Model):
    """What is over and must outlive a FineTuneJob's status: its ended attempts and its publication."""

    attempts: tuple[AttemptOutcome, ...] = Field((), max_length=_MOST_RECORDED)
    suspended_at: Time | None = None
    """When spec.suspend was last set in a pause between attempts: the pause is over with it."""
    published: Annotated[str, StringConstraints(max_length=128)] = ""
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
