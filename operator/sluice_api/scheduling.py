"""When a FineTuneJob gets GPUs, from whom, when it gives way, and what follows a failure."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from sluice_api.meta import EXPERIMENTAL
from sluice_api.model import Model, Moment, Remedy, Seconds


class Policy(StrEnum):
    """How a job gets its GPUs."""

    QUEUE = "Queue"
    PREEMPT = "Preempt"
    SHARED = "Shared"


class GiveWay(StrEnum):
    """Whether a job that trains lets others have its GPUs."""

    NEVER = "Never"
    TO_HIGHER_PRIORITY = "ToHigherPriority"


class Interruption(Model):
    """When training gives way to a job of higher priority: it saves a checkpoint and waits for its next turn."""

    policy: GiveWay = Field(
        GiveWay.NEVER,
        description="Never: the job trains to its end. ToHigherPriority: if a job of higher priority finds no free "
        "GPUs and none to borrow, it gets this job's GPUs.",
    )
    min_run_seconds: int = Field(
        300, ge=0, le=31_536_000, description="Training is not interrupted before it has run for this long."
    )
    grace_seconds: int = Field(
        0,
        ge=0,
        le=31_536_000,
        description="The job of higher priority waits for this long first, in case this one ends by itself.",
    )


class ScaleUp(Model):
    """How long a job asks a cluster autoscaler for nodes before it borrows."""

    wait_seconds: int = Field(
        600,
        ge=1,
        le=604_800,
        description="How long the job takes free GPUs only, from the moment at which it is ready for GPUs. During "
        "this time it borrows none and takes no other job's place.",
    )


class Scheduling(Model):
    """When the job gets GPUs, and from whom."""

    policy: Policy = Field(
        Policy.QUEUE,
        description="Queue: the job waits for free GPUs. Preempt: it may also borrow the GPUs of inference engines "
        "that lend to this namespace, down to their floor, and gives them back when training ends. Shared "
        f"({EXPERIMENTAL}): it waits for a free part of a GPU, beside whatever else runs there, where the pool shares "
        "GPUs.",
    )
    share: Annotated[
        str,
        StringConstraints(pattern=r"^[1-9][0-9]?%$", max_length=4),
        Remedy("write a share from 1% to 99%, such as 30%"),
    ] = Field(
        "30%", description=f"{EXPERIMENTAL} With policy Shared: the part of the GPU's memory that training may use."
    )
    priority: int = Field(
        0,
        ge=-1000,
        le=1000,
        description="Jobs of higher priority go first; of equal ones the older. A job borrows only from engines of a "
        "lower or equal priority.",
    )
    not_before: Moment | None = Field(
        None,
        description="The job asks for GPUs only from this moment on, such as 2027-01-04T20:00:00Z. Its data is "
        "prepared before.",
    )
    scale_up_first: ScaleUp | None = Field(
        None,
        description="If set, even to {}, the job asks for nodes before it borrows. While it waits, one pod of low "
        "priority is pending for each of its training pods, so that a cluster autoscaler adds nodes to the pool. A "
        "job that is larger than every node there waits for a larger one. Absent: it borrows at once.",
    )
    interruption: Interruption = Field(
        default_factory=Interruption, description="When training gives way to a job of higher priority."
    )
    queue_deadline_seconds: Seconds | None = Field(
        None,
        description="Longest time that a prepared job waits for its first GPUs, from notBefore on if that is later. A "
        "job that waits longer has failed. Absent: it waits for ever.",
    )

    @property
    def share_percent(self) -> int:
        """The share as a number."""
        return int(self.share.removesuffix("%"))


class Retry(Model):
    """What happens when an attempt of a stage fails. Each goes on from the last checkpoint.

    Out of memory and a bad dataset or model end the job at once: another attempt would end the same. A full volume does
    so only before it trains.
    """

    attempts: int = Field(
        5,
        ge=1,
        le=100,
        description="Attempts of one stage, the first included. An attempt is not counted if it was suspended or "
        "interrupted, was lost with its node, or never got its node.",
    )
    backoff_seconds: int = Field(
        10, ge=0, le=3600, description="Pause before the second attempt. It doubles with each failure."
    )
    max_backoff_seconds: int = Field(300, ge=0, le=86_400, description="Longest pause.")
