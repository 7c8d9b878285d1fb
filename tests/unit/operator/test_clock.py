"""The operator's clock goes on evenly, whatever becomes of the time of day."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import formatdate

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from sluice_operator.clock import SLOWLY, Clock, ahead_of
from sluice_operator.cluster.client import Api
from sluice_operator.cluster.errors import ApiError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Machine:
    """Its time of day, which somebody may set, and what has passed since it started."""

    def __init__(self) -> None:
        self.set_by = 0.0
        self.passed = 0.0
        self.clock = Clock(lambda: NOON.timestamp() + self.passed + self.set_by, lambda: self.passed)
        self.clock.now()

    def after(self, seconds: float) -> datetime:
        self.passed += seconds
        return self.clock.now()


def test_clock_is_the_time_of_day() -> None:
    machine = Machine()
    assert machine.after(0) == NOON
    assert machine.after(90) == NOON + timedelta(seconds=90)


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_clock_follows_a_jump_of_the_time_of_day_slowly(jump: float, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    before = machine.after(60)
    machine.set_by = jump
    silence = (machine.after(100) - before).total_seconds()
    assert silence == pytest.approx(100 + (SLOWLY if jump > 0 else -SLOWLY) * 100)
    machine.after(1)
    assert len(caplog.records) == 1, "it is said once"
    machine.after(3600 / SLOWLY)
    assert machine.after(1) == NOON + timedelta(seconds=machine.passed + jump)


def test_clock_never_goes_back() -> None:
    machine = Machine()
    moments = [machine.clock.now()]
    for step in range(100):
        machine.set_by = -(10.0 ** (step % 7))
        moments.append(machine.after(0.5))
    assert moments == sorted(moments)


@pytest.mark.parametrize(
    ("case", "ours", "took", "expected"),
    [
        ("90 s ahead: a claim was given up at its first look", 90.0, 0.2, 90.0),
        ("90 s behind", -90.0, 0.2, -90.0),
        ("what a second's rounding makes", 1.4, 0.2, 0.0),
        ("what a slow answer makes", 6.0, 12.0, 0.0),
    ],
)
def test_clock_ahead_of_the_api_server_is_measured(case: str, ours: float, took: float, expected: float) -> None:
    middle = NOON.timestamp() + 0.5 + ours
    date = "Thu, 01 Jan 2026 12:00:00 GMT"
    assert ahead_of(date, middle - took / 2, middle + took / 2) == pytest.approx(expected, abs=0.1), case
    assert ahead_of("yesterday", middle, middle) == 0.0


def test_clock_starts_at_the_api_servers_time() -> None:
    """It has answered by then: nobody leads who has not asked for the lease."""
    ahead = 0.0
    clock = Clock(lambda: NOON.timestamp() + 90 - ahead, lambda: 5.0)
    ahead = 90.0
    assert clock.now() == NOON


async def test_clock_takes_the_api_servers_time_from_a_refusal_too() -> None:
    """The first answer of all may be that there is no Secret with a certificate yet."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=404, headers={"Date": formatdate(time.time() - 90, usegmt=True)})

    app = web.Application()
    app.router.add_get("/secret", refuse)
    async with TestServer(app) as server, ApiClient(Configuration(host=str(server.make_url("")).rstrip("/"))) as client:
        api = Api(client)
        with pytest.raises(ApiError):
            await api.request("GET", "/secret")
        assert time.time() - api.time_of_day() == pytest.approx(90, abs=1)
