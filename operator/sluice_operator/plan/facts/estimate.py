"""When GPUs come back and jobs start, as far as the trainers' own words say."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob
from sluice_operator.plan.facts.claims import LiveClaim
from sluice_operator.plan.fence import each

_CLOSE = timedelta(minutes=1)
_CLOSE_SHARE = 0.2


def ends_at(live: LiveClaim) -> datetime | None:
    """When a claim's training ends, by its trainer's last report; None while it has said nothing."""
    progress = live.job.status.progress
    if progress is None or progress.attempt != live.stage_job.attempt:
        return None
    if progress.seconds_left is None or progress.reported_at is None:
        return None
    return progress.reported_at + timedelta(seconds=progress.seconds_left)


def starts_at(claims: Iterable[LiveClaim], free: int, queue: Sequence[FineTuneJob], now: datetime) -> datetime | None:
    """When the last job of a queue starts, if all before it do and every claim gives back what it has at its end.

    None if what is known to come back is not enough. On which nodes the GPUs are is left out, so it may be later.
    """
    asked = sum(job.spec.resources.all_gpus for job in queue)
    if free >= asked:
        return now
    ends = each(claims, lambda live: live.key, lambda live: (ends_at(live), live.claim.all_gpus))
    for end, gpus in sorted((end, gpus) for end, gpus in ends if end):
        free += gpus
        if free >= asked:
            return max(end, now)
    return None


def settled(before: datetime | None, after: datetime | None, now: datetime) -> datetime | None:
    """The earlier estimate while it is still about right: a reader needs no write for every second."""
    if before is None or after is None:
        return after
    close = max(_CLOSE, _CLOSE_SHARE * (after - now))
    return before if abs(after - before) <= close else after
