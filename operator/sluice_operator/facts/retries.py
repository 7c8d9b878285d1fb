"""When is it tried again: one row for each reason says what follows from such an end, and how long the pause is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto

from sluice_api.reasons import Reason

IMAGE_TROUBLE = frozenset({"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"})
"""What the kubelet says of a container whose image it cannot get."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a claim may take for each step."""

    bind: timedelta = timedelta(seconds=60)
    """From the gate's removal to the node; and for a claim that can't be proven, to be proven."""
    sleep: timedelta = timedelta(seconds=90)
    """Until the vLLM of every borrowed slot that keeps its pod has freed the memory of its GPUs: level 1 copies the
    weights into the host's memory first, 22 GiB in 11 s (vllm#48337)."""
    start: timedelta = timedelta(seconds=600)
    """Until the pod's container has started."""
    stall: timedelta = timedelta(seconds=120)
    """Without a sign of life, until a training is called stalled; it is ended after half as much again."""


class Pause(Enum):
    """How long until the next attempt."""

    NONE = auto()
    SHORT = auto()
    """10 s: the node is avoided, so the next claim is elsewhere."""
    DOUBLES_FROM_SECONDS = auto()
    """From 10 s: the API server refuses something until somebody changes that."""
    DOUBLES_FROM_A_MINUTE = auto()
    """Nothing could be had, or something that somebody has to mend."""
    BACKOFF = auto()
    """spec.retry.backoffSeconds, doubled by each failure."""


@dataclass(frozen=True, slots=True)
class Avoids:
    """The node of such an attempt is left out for a while."""

    why: str
    lasts: timedelta = timedelta(minutes=5)
    unless_last: bool = False
    """The node is used all the same when no other is large enough: the next attempt may go better there."""


@dataclass(frozen=True, slots=True)
class After:
    """What follows from an end."""

    pause: Pause = Pause.BACKOFF
    final: bool = False
    """Another attempt would end the same."""
    counts: bool = False
    """It is a failure, against spec.retry.attempts."""
    ran: bool = True
    """False: its claim was given up before its pods ran, so the job's wait went on."""
    keeps_claim: bool = False
    """The next attempt takes the claim over."""
    gave_way: bool = False
    """Somebody else wanted the GPUs; the state is saved."""
    stopped: bool = False
    """It ran on and was told to stop by us: it saves its state after its end is recorded."""
    mendable: bool = False
    """Somebody can mend it from outside. What was done until then is on disk; of Prepare nothing is, so it is final."""
    avoids: Avoids | None = None


_GIVEN_UP = After(Pause.DOUBLES_FROM_A_MINUTE, ran=False)


_REFUSED = After(Pause.DOUBLES_FROM_SECONDS, ran=False)


_GAVE_WAY = After(Pause.NONE, gave_way=True, stopped=True)


_FAILED = After(Pause.BACKOFF, counts=True)


_FINAL = After(Pause.BACKOFF, final=True, counts=True)


_TABLE: Mapping[str, After] = {
    Reason.DONE: After(Pause.NONE),
    # The claim was given up; `Claimed` is one that gave way to an older claim.
    Reason.CLAIMED: After(Pause.NONE, ran=False),
    Reason.UNSCHEDULABLE: _GIVEN_UP,
    Reason.SUSPENDED_BY_OTHER: _GIVEN_UP,
    Reason.ENGINE_MUST_SLEEP: _GIVEN_UP,
    Reason.ENGINE_DOES_NOT_SLEEP: After(
        Pause.DOUBLES_FROM_A_MINUTE, ran=False, avoids=Avoids("a borrowed replica did not sleep there")
    ),
    Reason.NOT_BOUND: After(Pause.SHORT, ran=False, avoids=Avoids("the last pod was not bound there")),
    Reason.POD_REFUSED: After(Pause.SHORT, ran=False, avoids=Avoids("its kubelet refused the last pod")),
    # The API server refused something
    Reason.QUOTA_EXCEEDED: _REFUSED,
    Reason.REFUSED_BY_ADMISSION: _REFUSED,
    Reason.NAME_TAKEN: _REFUSED,
    # It gave way
    Reason.SUSPENDED: _GAVE_WAY,
    Reason.PREEMPTED: _GAVE_WAY,
    Reason.RECLAIMED: _GAVE_WAY,
    # It goes on at once
    Reason.REQUEUED: After(Pause.NONE, keeps_claim=True),
    Reason.NODE_LOST: After(Pause.NONE, keeps_claim=True),
    Reason.POD_LOST: After(Pause.NONE, keeps_claim=True, counts=True),
    Reason.STALLED: After(Pause.NONE, keeps_claim=True, counts=True, stopped=True),
    # It goes on later
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
    """What follows from an end; one that has no row is final."""
    return _TABLE.get(reason, _FINAL)


REFUSED = frozenset({Reason.QUOTA_EXCEEDED, Reason.REFUSED_BY_ADMISSION, Reason.NAME_TAKEN})
"""Reasons of refusals that last until somebody changes something, of which nobody tells us."""


FIRST_PAUSE = timedelta(seconds=10)


LONGEST_PAUSE = timedelta(hours=1)


LONGEST_PAUSE_OF_ENGINE = timedelta(minutes=1)
"""People wait for its answers, and it holds no GPU meanwhile."""


_OF_A_QUOTA = re.compile(r"\b(exceeded|failed|insufficient) quota\b")
"""How the words of the API server's quota admission begin."""


def refusal_reason(words: str) -> Reason:
    """Which reason fits what the API server says."""
    return Reason.QUOTA_EXCEEDED if _OF_A_QUOTA.search(words) else Reason.REFUSED_BY_ADMISSION


def doubled(first: timedelta, times: int, longest: timedelta = LONGEST_PAUSE) -> timedelta:
    """A pause that is twice as long each time, up to the longest.

    Args:
        times: how often it has been made before.
    """
    factor: int = 2 ** min(times, 20)
    return min(first * factor, longest)
