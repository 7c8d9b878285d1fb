"""The operator's clock goes on evenly, whatever becomes of the time of day."""

from datetime import UTC, datetime, timedelta

import pytest

from sluice_operator.clock import SLOWLY, Clock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Machine:
    """Its time of day, which somebody may set, and what has passed since it started."""

    def __init__(self) -> None:
        self.set_by = 0.0
        self.passed = 0.0
        self.clock = Clock(lambda: NOON.timestamp() + self.passed + self.set_by, lambda: self.passed)

    def after(self, seconds: float) -> datetime:
        self.passed += seconds
        return self.clock.now()


def test_it_says_the_time_of_day() -> None:
    machine = Machine()
    assert machine.after(0) == NOON
    assert machine.after(90) == NOON + timedelta(seconds=90)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_time_of_day_that_jumps_is_followed_slowly(jump: float, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    before = machine.after(60)
    machine.set_by = jump
    silence = (machine.after(100) - before).total_seconds()
    assert silence == pytest.approx(100 + (SLOWLY if jump > 0 else -SLOWLY) * 100)
    machine.after(1)
    assert len(caplog.records) == 1, "it is said once"
    machine.after(3600 / SLOWLY)
    assert machine.after(1) == NOON + timedelta(seconds=machine.passed + jump)


def test_it_never_goes_back() -> None:
    machine = Machine()
    moments = [machine.clock.now()]
    for step in range(100):
        machine.set_by = -(10.0 ** (step % 7))
        moments.append(machine.after(0.5))
    assert moments == sorted(moments)
