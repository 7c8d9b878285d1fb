"""Why something is not done now. Every check returns its obstacle, or None; nobody works the reason out a second time.

From this one value come the condition, `explain`, the next look (`until`), who is woken (`ends_with`), and the remedies
that a message names. The property tests do what each remedy says, and look whether the wait ends or is for something
else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sluice_api.reasons import Reason
from sluice_operator.observe.views import Key


@dataclass(frozen=True, slots=True)
class Remedy:
    """What somebody can do about an obstacle."""

    text: str
    """As the end of a sentence that begins with `Next:`."""
    key: Key | None = None
    """The object that it changes; None for the one that waits, or for something that is not there yet."""
    field: str = ""
    """Of its spec, with dots. Empty: the object has to end, or to come, as `text` says."""
    value: object = None
    """What the field has to be."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why something is not done now."""

    reason: Reason
    message: str
    """What is so, in whole sentences."""
    until: datetime | None = None
    """The moment at which time alone removes it, or at which it is to be looked at again."""
    ends_with: tuple[Key, ...] = ()
    """Objects whose change may end it: one that is not there yet by the name that it must have, or by no name if any
    of the kind would do."""
    remedies: tuple[Remedy, ...] = ()


Ways = Sequence[tuple[Obstacle, ...]]
"""Ways in which a job could start, the nearest first: for each the obstacles, all of which would have to end."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job waits for GPUs."""

    reason: Reason
    message: str
    position: str = ""
    """Its place among those that wait: exact for the first, then a bound, as every change is a write."""
    starts_at: datetime | None = None
    """When it may start, if that is known."""
    ways: tuple[tuple[Obstacle, ...], ...] = field(default=(), compare=False)
    """What the message was made of."""


def next_moment(obstacles: Iterable[Obstacle], now: datetime) -> datetime | None:
    """When the first of some obstacles is over by the passing of time alone."""
    return earliest((obstacle.until for obstacle in obstacles), now)


def earliest(moments: Iterable[datetime | None], now: datetime) -> datetime | None:
    """The first of some moments that is still to come."""
    return min((moment for moment in moments if moment is not None and moment > now), default=None)
