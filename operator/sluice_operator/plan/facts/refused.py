"""What the API server refuses to make: by which reason it is told, and how long until it is tried again."""

import re
from datetime import timedelta

from sluice_api.reasons import Reason

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
