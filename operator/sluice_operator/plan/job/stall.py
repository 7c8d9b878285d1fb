"""When has training stalled, and when is it ended for that?"""

from datetime import datetime, timedelta
from typing import NamedTuple

from sluice_api.stall import stalled_after
from sluice_operator.facts.claims import LiveClaim
from sluice_operator.observe.world import World
from sluice_operator.settings import Limits


class Silence(NamedTuple):
    """Since when a trainer has not reported, and when that is too long."""

    since: datetime
    stalled_at: datetime
    given_up_at: datetime


def silence_of(world: World, live: LiveClaim, limits: Limits) -> Silence | None:
    """Since when a trainer has not reported, and when that is too long; None if it never reported.

    Silence before this term proves nothing, because this process did not listen then. The times are all of the clock
    that `now` is of.
    """
    heartbeat = world.heartbeats.get(live.stage_job.uid)
    progress = live.job.status.progress
    reported = progress is not None and progress.attempt == live.stage_job.attempt and progress.reported_at is not None
    heard = [heartbeat.at] if heartbeat else []
    if world.since and (heartbeat or reported):
        heard.append(world.since)
    if not heard:
        return None
    stalled_at = max(heard) + _stalled_after(world, live, limits)
    return Silence(max(heard), stalled_at, stalled_at + limits.stall / 2)


def _stalled_after(world: World, live: LiveClaim, limits: Limits) -> timedelta:
    """Five median steps, and at least the limit. Before the first step, and while it saves, at least a start's time."""
    heartbeat = world.heartbeats.get(live.stage_job.uid)
    if heartbeat is None or heartbeat.step_seconds is None:
        return max(limits.start, limits.stall)
    return timedelta(seconds=stalled_after(heartbeat.step_seconds, limits.stall.total_seconds()))
