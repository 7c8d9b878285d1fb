"""Borrow windows: the hours of the week in which an engine lends."""

from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ConfigDict, Field, StringConstraints

from sluice_api.model import Model, Remedy
from sluice_api.resource import Rule, rules

Day = Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
DAYS: tuple[Day, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TimeOfDay = Annotated[
    str,
    StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", max_length=5),
    Remedy("write hours and minutes, such as 22:00"),
]
_DAYS_LOOKED_AT = 8


class BorrowWindow(Model):
    """Hours that begin on some days of the week. An end at or before the start is on the next day."""

    days: tuple[Day, ...] = Field(DAYS, min_length=1, max_length=7, description="Days on which the window begins.")
    start: TimeOfDay = Field(description="When it begins, local time.")
    end: TimeOfDay = Field(description="When it ends, local time. If that is before start, it ends on the next day.")
    time_zone: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        "UTC", description="The time zone of these hours: a name of the IANA database, such as Europe/Berlin."
    )

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("self.start != self.end", "write another end: this window never opens", at=".end"),
        )
    )

    @property
    def zone(self) -> ZoneInfo | None:
        """The time zone; None when nobody knows it, and then the window never opens."""
        try:
            return ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            return None

    def is_open(self, now: datetime) -> bool:
        """Whether the window is open at a moment."""
        return any(begin <= now < end for begin, end in self._around(now))

    def opens_after(self, now: datetime) -> datetime | None:
        """When it opens next, in UTC; None when it never does."""
        return min((begin for begin, _ in self._around(now) if begin > now), default=None)

    def ends_after(self, now: datetime) -> datetime | None:
        """When it ends, in UTC, if it is open now; None if it is not."""
        return max((end for begin, end in self._around(now) if begin <= now < end), default=None)

    def _around(self, now: datetime) -> list[tuple[datetime, datetime]]:
        """The openings that begin from yesterday until a week from now, in UTC: local hours follow summer time."""
        zone = self.zone
        if zone is None:
            return []
        yesterday = now.astimezone(zone).date() - timedelta(days=1)
        dates = [yesterday + timedelta(days=number) for number in range(_DAYS_LOOKED_AT + 1)]
        start, end = time.fromisoformat(self.start), time.fromisoformat(self.end)
        return [
            (_moment(day, start, zone), _moment(day if start < end else day + timedelta(days=1), end, zone))
            for day in dates
            if DAYS[day.weekday()] in self.days
        ]


def _moment(day: date, at: time, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, at, zone).astimezone(UTC)
