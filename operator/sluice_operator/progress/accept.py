"""Which report is newer: (attempt, sequence) of a job's stage only grows.

But for one case. Whoever has stolen a pod's token can count far past the pod itself, and the pod's own reports would be
too old for good. So a sender whose reports go on below the last accepted one is heard again after a few.
"""

from dataclasses import dataclass, field
from typing import Self

from sluice_operator.progress.refusal import Refusal, Refused

GOES_ON = 3
"""So many refused reports, each newer than the one before, are of a sender that goes on; a late post is one alone."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the sequence of one pod has come, after a report."""

    sequence: int = 0
    """Of the last accepted report."""
    accepted: bool = True
    """Whether the report that led here was."""
    refused: int = 0
    """Sequence of the last report that was too old."""
    rising: int = 0
    """How many were too old, each newer than the one before."""

    def after(self, sequence: int) -> "Mark":
        """The mark after the next report."""
        if sequence > self.sequence:
            return Mark(sequence, True, self.refused, self.rising)
        if sequence == self.sequence:
            return Mark(sequence, False, self.refused, self.rising)
        rising = self.rising + 1 if sequence > self.refused else 1
        goes_on = rising >= GOES_ON
        return Mark(sequence if goes_on else self.sequence, goes_on, sequence, rising)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The attempt of a stage that a trainer's pod is."""

    number: int
    stage_job_uid: str
    newest: int
    """The highest attempt of this stage that has a Job."""


@dataclass(frozen=True, slots=True)
class Position:
    """The last accepted report of a job's stage, by the uid of the attempt's Job."""

    attempt: int
    stage_job_uid: str
    mark: Mark = field(default_factory=Mark)

    @classmethod
    def recovered(cls, attempt: int) -> Self:
        """What a restarted operator knows: the attempt in the job's status. Any sequence of it is newer."""
        return cls(attempt, "")


def accept(last: Position | None, pod: Attempt, attempt: int, sequence: int) -> Position:
    """The position after a report of (attempt, sequence) by the pod of an attempt; see `Mark.after`.

    Raises:
        Refused: it speaks of another attempt than its pod is, or of one that a newer one has replaced.
    """
    if attempt != pod.number:
        raise Refused(
            Refusal.OTHER_ATTEMPT, f"the report speaks of attempt {attempt}; this pod is attempt {pod.number}"
        )
    newest = max(pod.newest, last.attempt if last else 0)
    if attempt < newest:
        raise Refused(Refusal.FENCED_ATTEMPT, f"attempt {attempt} was replaced by attempt {newest}")
    if last is None or attempt > last.attempt:
        return Position(attempt, pod.stage_job_uid, Mark(sequence))
    if last.stage_job_uid not in ("", pod.stage_job_uid):
        raise Refused(Refusal.FENCED_ATTEMPT, f"attempt {attempt} is another Job by now")
    return Position(attempt, pod.stage_job_uid, last.mark.after(sequence))


def must_be_newer(sequence: int, mark: Mark) -> None:
    """Check the mark after a report of a sequence.

    Raises:
        Refused: the report is not newer than the last accepted one.
    """
    if not mark.accepted:
        message = f"sequence {sequence} is not newer than {mark.sequence}, the last accepted one"
        raise Refused(Refusal.STALE_SEQUENCE, message)
