"""The operator's clock: the time of day, without its jumps.

Silences, pauses and limits are differences between two moments. When the time of day is set anew between them (NTP
mends a wrong clock, a virtual machine goes on after a pause), a trainer would have been silent for an hour that never
was, and a pause would last an hour more. So a moment is what passed on a clock that never jumps (CLOCK_BOOTTIME), led
back to the time of day slowly.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

logger = logging.getLogger(__name__)

SLOWLY = 0.1
"""Seconds by which a second of ours is longer or shorter at most, while we follow a time of day that was set anew."""
_JUMP_SECONDS = 5.0
_UNSURE_SECONDS = 2.0


def passing() -> float:
    """Seconds that pass while the process is stopped (SIGSTOP) and while the machine sleeps; they never jump."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def ahead_of(date: str, sent: float, received: float) -> float:
    """Seconds by which a machine's time of day is ahead of that of a server which has answered it.

    Ages are differences to moments that the API server wrote, such as when a Job was made: with a clock that is 90 s
    ahead every claim was too old at its first look. What network and rounding may make up counts as nothing.

    Args:
        date: the answer's header Date, which is known to the second; anything else counts as no difference.
        sent: when the request was sent, by the machine's time of day.
        received: when the answer had come.
    """
    try:
        theirs = parsedate_to_datetime(date).timestamp() + 0.5
    except ValueError:
        return 0.0
    ahead = (sent + received) / 2 - theirs
    return ahead if abs(ahead) > _UNSURE_SECONDS + abs(received - sent) / 2 else 0.0


class Clock:
    """Says what time it is, from its first word on. Moments that one process compares are all of one Clock."""

    def __init__(self, time_of_day: Callable[[], float] = time.time, passed: Callable[[], float] = passing) -> None:
        """`time_of_day` gives seconds since 1970 and may jump; `passed` gives seconds since any moment and does not."""
        self._time_of_day = time_of_day
        self._passed = passed
        self._at = 0.0
        self._ours: float | None = None
        self._apart = False

    def now(self) -> datetime:
        """The time of day; for a while after it was set anew, nearer to what it would have been."""
        at = self._passed()
        if self._ours is None:
            self._at, self._ours = at, self._time_of_day()
        step, self._at = at - self._at, at
        expected = self._ours + step
        behind = self._time_of_day() - expected
        self._ours = expected + max(-SLOWLY * step, min(SLOWLY * step, behind))
        self._say(behind)
        return datetime.fromtimestamp(self._ours, UTC)

    def _say(self, behind: float) -> None:
        """Tell once that the time of day was set anew."""
        apart = abs(behind) > _JUMP_SECONDS
        if apart and not self._apart:
            logger.warning(
                "the time of day was set anew and is followed slowly",
                extra={"seconds": round(behind, 1), "follows_within_seconds": round(abs(behind) / SLOWLY)},
            )
        self._apart = apart
