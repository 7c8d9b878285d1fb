"""Why is something not done now? Every check returns an obstacle, or None. The reason is worked out only once.

One obstacle feeds the condition, `explain`, the time of the next look (`until`), the wake-up by other objects
(`ends_with`), and the remedies that a message names. The property tests do what each remedy says, and check that the
wait then ends, or is for another reason.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sluice_api.finetunejob import FineTuneJob
from sluice_api.reasons import Reason
from sluice_operator.observe.views import Key


@dataclass(frozen=True, slots=True)
class Remedy:
    """What a person can do about an obstacle."""

    text: str
    """The rest of a sentence that begins with `Next:`."""
    key: Key | None = None
    """The object to change; None for the object that waits, or for one that does not exist yet."""
    field: str = ""
    """The path of a field in the object's spec, with dots. Empty if the object must end or appear, as `text` says."""
    value: object = None
    """What the field must become."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why something is not done now."""

    reason: Reason
    message: str
    """What is the case, in whole sentences."""
    until: datetime | None = None
    """When time alone ends the obstacle."""
    again: datetime | None = None
    """When the check must be made again, though nothing may have changed by then: what ends it is no event."""
    ends_with: tuple[Key, ...] = ()
    """Objects whose change may end the obstacle. An object that does not exist yet has the name that it will need, or
    an empty name if any object of the kind would do."""
    remedies: tuple[Remedy, ...] = ()


WaysToStart = Sequence[tuple[Obstacle, ...]]
"""WaysToStart in which a job could start, the nearest first. Each lists its obstacles: all of them must end."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job waits for GPUs."""

    reason: Reason
    message: str
    position: str = ""
    """The job's place in the queue, in words. Only the first places are exact: every change of the text is a write."""
    starts_at: datetime | None = None
    """When the job may start, if that is known."""
    ways: tuple[tuple[Obstacle, ...], ...] = field(default=(), compare=False)
    """The ways from which the message was made."""


def next_moment(obstacles: Iterable[Obstacle], now: datetime) -> datetime | None:
    """When to look again because of some obstacles; None if only a change ends them."""
    return earliest((moment for obstacle in obstacles for moment in (obstacle.until, obstacle.again)), now)


def earliest(moments: Iterable[datetime | None], now: datetime) -> datetime | None:
    """The first of some moments that is still ahead; None if there is none."""
    return min((moment for moment in moments if moment is not None and moment > now), default=None)


def shown(text: str, job: FineTuneJob) -> str:
    """A text for a reader in a job's namespace: names of objects there without the namespace."""
    here = f"{job.metadata.namespace}/"
    return re.sub(rf"(?<![\w./-]){re.escape(here)}(?=[a-z0-9])", "", text) if here in text else text


def clock(moment: datetime, now: datetime) -> str:
    """A moment for a reader: with its date unless it is within twelve hours."""
    return f"{moment:%H:%M:%S} UTC" if abs(moment - now) < _SAME_DAY else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


_SAME_DAY = timedelta(hours=12)
