"""Which report is newer: (attempt, sequence) of a job's stage only grows."""

from dataclasses import dataclass
from typing import Self

from sluice_operator.progress.refusal import Refusal, Refused


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
    sequence: int
    stage_job_uid: str

    @classmethod
    def recovered(cls, attempt: int) -> Self:
        """What a restarted operator knows: the attempt in the job's status. Any sequence of it is newer."""
        return cls(attempt, 0, "")


def accept(last: Position | None, pod: Attempt, attempt: int, sequence: int) -> Position:
    """The position after a report of (attempt, sequence) by the pod of an attempt.

    Raises:
        Refused: it speaks of another attempt than its pod is, of one that a newer one has replaced, or it is
            not newer than the last.
    """
    if attempt != pod.number:
        raise Refused(
            Refusal.OTHER_ATTEMPT, f"the report speaks of attempt {attempt}; this pod is attempt {pod.number}"
        )
    newest = max(pod.newest, last.attempt if last else 0)
    if attempt < newest:
        raise Refused(Refusal.FENCED_ATTEMPT, f"attempt {attempt} was replaced by attempt {newest}")
    if last is not None and attempt == last.attempt:
        if last.stage_job_uid not in ("", pod.stage_job_uid):
            raise Refused(Refusal.FENCED_ATTEMPT, f"attempt {attempt} is another Job by now")
        if sequence <= last.sequence:
            raise _stale(sequence, last.sequence)
    return Position(attempt, sequence, pod.stage_job_uid)


def accept_sequence(last: int | None, sequence: int) -> int:
    """The last sequence of an engine's pod after a report.

    Raises:
        Refused: it is not newer than the last.
    """
    if last is not None and sequence <= last:
        raise _stale(sequence, last)
    return sequence


def _stale(sequence: int, last: int) -> Refused:
    return Refused(Refusal.STALE_SEQUENCE, f"sequence {sequence} is not newer than {last}, the last accepted one")
