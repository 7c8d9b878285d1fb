"""The hours in which an engine lends."""

from datetime import UTC, datetime

import pytest

from sluice_api.windows import BorrowWindow


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NIGHTS = {"days": ["Monday", "Friday"], "start": "22:00", "end": "06:00"}
BERLIN = {**NIGHTS, "timeZone": "Europe/Berlin"}
OFFICE = {"start": "09:00", "end": "17:00"}


@pytest.mark.parametrize(
    ("rule", "window", "now", "is_open", "opens"),
    [
        ("a day is the one on which it begins", NIGHTS, "2026-11-23 22:00", True, "2026-11-27 22:00"),  # a Monday
        ("it lasts into the next day", NIGHTS, "2026-11-24 05:59", True, "2026-11-27 22:00"),
        ("its end is not in it", NIGHTS, "2026-11-24 06:00", False, "2026-11-27 22:00"),
        ("other days have none", NIGHTS, "2026-11-24 23:00", False, "2026-11-27 22:00"),
        ("before it begins it opens today", NIGHTS, "2026-11-23 21:59", False, "2026-11-23 22:00"),
        ("without days it is every day", OFFICE, "2026-11-22 12:00", True, "2026-11-23 09:00"),
        ("hours are local", BERLIN, "2026-11-23 21:00", True, "2026-11-27 21:00"),
        ("hours follow summer time", BERLIN, "2026-07-06 20:00", True, "2026-07-10 20:00"),
        (
            "a week may pass until it opens",
            {**OFFICE, "days": ["Monday"]},
            "2026-11-23 17:00",
            False,
            "2026-11-30 09:00",
        ),
    ],
)
def test_borrow_window_is_open_or_opens_later(
    rule: str, window: dict[str, object], now: str, is_open: bool, opens: str
) -> None:
    parsed = BorrowWindow.model_validate(window)
    assert parsed.is_open(at(now)) is is_open, rule
    assert parsed.opens_after(at(now)) == at(opens), rule


@pytest.mark.parametrize("name", ["Europe/Berln", "../../etc/passwd", "no such zone"])
def test_borrow_window_of_an_unknown_time_zone_never_opens(name: str) -> None:
    window = BorrowWindow.model_validate({**OFFICE, "timeZone": name})
    assert window.zone is None
    assert not window.is_open(at("2026-11-23 12:00"))
    assert window.opens_after(at("2026-11-23 12:00")) is None
