"""What follows from the end of an attempt? One row for each reason says so, with the pause before the next attempt."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto

from sluice_api.reasons import Reason

IMAGE_TROUBLE = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})
"""The kubelet's reasons for a container that waits because its image can't be had."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each step of a claim may take."""

    bind: timedelta = timedelta(seconds=60)
    """From the removal of a pod's gate until the pod is on its node. A claim has as long to be proven."""
    sleep: timedelta = timedelta(seconds=90)
    """Until the vLLM of every borrowed slot that sleeps has freed its GPUs' memory. Sleep level 1 first copies the
    weights into the host's memory, 22 GiB in 11 s (vllm#48337)."""
    start: timedelta = timedelta(seconds=600)
    """Until the pod's container has started."""
    stall: timedelta = timedelta(seconds=120)
    """The least silence after which training counts as stalled. It is ended after half of this time more."""


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
    """A person can mend the cause, and the next attempt goes on from disk. Prepare leaves nothing there: for it the end
    is final."""
    avoids: Avoids | None = None


_GIVEN_UP = After(Pause.DOUBLES_FROM_A_MINUTE, ran=False)


_REFUSED = After(Pause.DOUBLES_FROM_SECONDS, ran=False)


_GAVE_WAY = After(Pause.NONE, gave_way=True, stopped=True)


_FAILED = After(Pause.BACKOFF, counts=True)


_FINAL = After(Pause.BACKOFF, final=True, counts=True)


_TABLE: Mapping[str, After] = {
    Reason.DONE: After(Pause.NONE),
    # The claim was given up; after `Claimed` because it gave way to an older claim, or said what could not be true.
    Reason.CLAIMED: After(Pause.NONE, ran=False),
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
    Reason.OUTPUT_NOT_WRITABLE: After(Pause.DOUBLES_FROM_A_MINUTE, mendable=True),
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
