"""When is an attempt made again, and what else follows from the end of one? A table has one row for each reason."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from itertools import takewhile

from sluice_api.claim import AttemptOutcome, Outcomes
from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_api.stages import Stage


class Pause(Enum):
    """How long until the next attempt."""

    NONE = auto()
    SHORT = auto()
    """10 s. The node is avoided, so the next claim goes to another one."""
    DOUBLES_FROM_SECONDS = auto()
    """10 s, doubled each time: the API server refuses something until a person changes that."""
    DOUBLES_FROM_A_MINUTE = auto()
    """1 min, doubled each time: the claim could not be met, or a person has to mend something."""
    BACKOFF = auto()
    """spec.retry.backoffSeconds, doubled for each failure."""


@dataclass(frozen=True, slots=True)
class Avoids:
    """After such an end, the job leaves the attempt's node out for a while."""

    why: str
    """The end of a sentence that begins with: The node is left out, as ..."""
    lasts: timedelta = timedelta(minutes=5)
    unless_last: bool = False
    """The node is used all the same if the other nodes are too small for the job: the next attempt may succeed."""


@dataclass(frozen=True, slots=True)
class After:
    """What follows from the end of an attempt."""

    pause: Pause = Pause.BACKOFF
    final: bool = False
    """No other attempt follows, because it would end the same."""
    counts: bool = False
    """The attempt is a failure that counts against spec.retry.attempts."""
    ran: bool = True
    """False if the claim was given up before its pods ran. The job's wait then went on."""
    keeps_claim: bool = False
    """The next attempt takes the claim over."""
    gave_way: bool = False
    """The GPUs were needed elsewhere, or the job was suspended. The state is saved."""
    stopped: bool = False
    """Sluice told the running attempt to stop. It saves its state after its end is recorded."""
    mendable: bool = False
    """Somebody can mend the cause without a change of the job, which waits until then."""
    final_in_prepare: bool = False
    """The end is final for Prepare, which loses little: a job that has trained goes on from what is saved."""
    avoids: Avoids | None = None


_GIVEN_UP = After(Pause.DOUBLES_FROM_A_MINUTE, ran=False)


_REFUSED = After(Pause.DOUBLES_FROM_SECONDS, ran=False)


_GAVE_WAY = After(Pause.NONE, gave_way=True, stopped=True)


_FAILED = After(Pause.BACKOFF, counts=True)


_WAITS = After(Pause.DOUBLES_FROM_A_MINUTE, mendable=True)


_FINAL = After(Pause.BACKOFF, final=True, counts=True)


_TABLE: Mapping[str, After] = {
    Reason.DONE: After(Pause.NONE),
    # The claim was given up; after `Claimed` because it gave way to an older claim, or said what could not be true.
    Reason.CLAIMED: After(Pause.NONE, ran=False),
    Reason.ENGINE_AT_FLOOR: After(Pause.NONE, ran=False),  # the pool's decision waits for the floor
    Reason.UNSCHEDULABLE: _GIVEN_UP,
    Reason.SUSPENDED_BY_OTHER: _GIVEN_UP,
    Reason.ENGINE_MUST_SLEEP: _GIVEN_UP,
    Reason.ENGINE_DOES_NOT_SLEEP: After(
        Pause.DOUBLES_FROM_A_MINUTE, ran=False, avoids=Avoids("a borrowed replica did not sleep there")
    ),
    Reason.NOT_BOUND: After(Pause.SHORT, ran=False, avoids=Avoids("the last pod was not bound there")),
    Reason.POD_REFUSED: After(Pause.SHORT, ran=False, avoids=Avoids("its kubelet refused the last pod")),
    # The API server refused something.
    Reason.QUOTA_EXCEEDED: _REFUSED,
    Reason.REFUSED_BY_ADMISSION: _REFUSED,
    Reason.NAME_TAKEN: _REFUSED,
    # The attempt gave way.
    Reason.SUSPENDED: _GAVE_WAY,
    Reason.PREEMPTED: _GAVE_WAY,
    Reason.RECLAIMED: _GAVE_WAY,
    # The next attempt goes on at once.
    Reason.REQUEUED: After(Pause.NONE, keeps_claim=True),
    Reason.NODE_LOST: After(Pause.NONE, keeps_claim=True),
    Reason.POD_LOST: After(Pause.NONE, keeps_claim=True, counts=True),
    Reason.STALLED: After(Pause.NONE, keeps_claim=True, counts=True, stopped=True),
    # The next attempt goes on later.
    Reason.EVICTED: After(Pause.SHORT, avoids=Avoids("the last pod was evicted from it", unless_last=True)),
    Reason.GPU_FAILED: After(
        Pause.BACKOFF, counts=True, avoids=Avoids("a GPU of it failed", timedelta(hours=1), unless_last=True)
    ),
    Reason.TRAINER_FAILED: _FAILED,
    Reason.DOWNLOAD_FAILED: _FAILED,
    # It waits for a Secret, for a store, or for room in one.
    Reason.ACCESS_REFUSED: _WAITS,
    Reason.OUTPUT_UNREACHABLE: _WAITS,
    Reason.OUTPUT_NOT_WRITABLE: After(Pause.DOUBLES_FROM_A_MINUTE, mendable=True, final_in_prepare=True),
    Reason.DEADLINE_EXCEEDED: After(Pause.BACKOFF, final=True, counts=True, stopped=True),
}


def after(reason: str) -> After:
    """What follows from an end with this reason. A reason without a row is final."""
    return _TABLE.get(reason, _FINAL)


REFUSED = frozenset({Reason.QUOTA_EXCEEDED, Reason.REFUSED_BY_ADMISSION, Reason.NAME_TAKEN})
"""Reasons of refusals that last until a person changes something. No event tells Sluice of that change."""


FIRST_PAUSE = timedelta(seconds=10)


LONGEST_PAUSE = timedelta(hours=1)


LONGEST_PAUSE_OF_ENGINE = timedelta(minutes=1)
"""Shorter than a job's: people wait for the engine's answers, and the engine holds no GPU in the pause."""


_OF_A_QUOTA = re.compile(r"\b(exceeded|failed|insufficient) quota\b")
"""Words by which the API server's quota admission is recognised."""


def refusal_reason(words: str) -> Reason:
    """The reason that fits the API server's words of refusal."""
    return Reason.QUOTA_EXCEEDED if _OF_A_QUOTA.search(words) else Reason.REFUSED_BY_ADMISSION


def doubled(first: timedelta, times: int, longest: timedelta = LONGEST_PAUSE) -> timedelta:
    """A pause that doubles each time, up to the longest.

    Args:
        times: how many such pauses came before.
    """
    factor: int = 2 ** min(times, 20)
    return min(first * factor, longest)


_SHORT_PAUSE = timedelta(seconds=10)


_LONG_PAUSE = timedelta(minutes=1)


_LONGEST_MENDING_PAUSE = timedelta(minutes=30)


def attempts_that_ran(attempts: Iterable[AttemptOutcome]) -> tuple[AttemptOutcome, ...]:
    """The attempts that ran. An attempt that gave up its claim first does not count: its job's wait went on."""
    return tuple(attempt for attempt in attempts if after(attempt.reason).ran)


def failures(outcomes: tuple[AttemptOutcome, ...]) -> int:
    """How many of a stage's attempts count against retry.attempts."""
    return sum(1 for outcome in outcomes if after(outcome.reason).counts)


def is_final(outcome: AttemptOutcome) -> bool:
    """Whether an attempt's end is the end of its job, because another attempt would end the same."""
    follows = after(outcome.reason)
    return follows.final or (follows.final_in_prepare and outcome.stage is Stage.PREPARE)


def next_attempt_at(job: FineTuneJob, record: Outcomes, stage: Stage) -> datetime | None:
    """When the next attempt of a stage may begin; None if at once. Suspending the job in the pause ends the pause."""
    outcomes = record.of(stage)
    last = outcomes[-1] if outcomes else None
    if last is None or last.ended_at is None or (follows := after(last.reason)).pause is Pause.NONE:
        return None
    if record.suspended_at is not None and record.suspended_at >= last.ended_at:
        return None
    match follows.pause:
        case Pause.SHORT:
            return last.ended_at + _SHORT_PAUSE
        case Pause.DOUBLES_FROM_SECONDS:
            return last.ended_at + doubled(FIRST_PAUSE, _given_up_before(outcomes))
        case Pause.DOUBLES_FROM_A_MINUTE if follows.mendable:
            times = len(list(takewhile(lambda one: after(one.reason).mendable, reversed(outcomes)))) - 1
            return last.ended_at + doubled(_LONG_PAUSE, times, _LONGEST_MENDING_PAUSE)
        case Pause.DOUBLES_FROM_A_MINUTE:
            return last.ended_at + doubled(_LONG_PAUSE, _given_up_before(outcomes))
        case _:
            doublings = min(max(0, failures(outcomes) - 1), 20)
            seconds = min(job.spec.retry.backoff_seconds * 2**doublings, job.spec.retry.max_backoff_seconds)
            return last.ended_at + timedelta(seconds=seconds)


def _given_up_before(outcomes: tuple[AttemptOutcome, ...]) -> int:
    """How many claims in a row were given up before the last one.

    Attempt numbers are compared, not attempts counted: the record keeps only the newest of those that gave up.
    """
    theirs = max((attempt.attempt for attempt in attempts_that_ran(outcomes)), default=0)
    return outcomes[-1].attempt - theirs - 1
