"""When is it tried again: what follows from how an attempt ended, one row for each reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto

from sluice_api.reasons import Reason


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
