"""When a replica is restarted, and when it does not call itself ready."""

from dataclasses import replace
from typing import cast

import pytest
from kubernetes.aio.client import ApiClient

from sluice_operator.__main__ import SILENT_SECONDS, Operator
from sluice_operator.cluster.client import Api
from sluice_operator.settings import Settings

SETTINGS = Settings("sluice", "operator-0", "", "", "")


class Replica(Operator):
    """One that has listed everything, and has not heard from a watch, and to a request, for so many seconds."""

    def __init__(self, watch: float, requests: float, settings: Settings = SETTINGS) -> None:
        clock = iter((0.0, requests, requests))
        super().__init__(settings, Api(cast("ApiClient", None), lambda: next(clock)))
        self.watches._signs = {"jobs": self.watches._clock() - watch}
        self.resync._never_listed.clear()


@pytest.mark.parametrize(
    ("case", "watch", "requests", "ready", "live"),
    [
        ("all is well: a watch brings a bookmark a minute", 70, 5, True, True),
        ("the API server is being restarted", 30, 30, True, True),
        ("it has been away for two minutes", 120, 120, False, True),
        ("it has been away for eleven minutes", 660, 660, False, False),
        ("it serves watches, and no request succeeds", 0, 660, False, False),
        ("a watch has died, lists are answered", 200, 5, False, True),
        ("and has been dead for long", SILENT_SECONDS + 1, 5, False, False),
    ],
)
async def test_replica_without_api_server_is_not_ready_then_not_live(
    case: str, watch: float, requests: float, ready: bool, live: bool
) -> None:
    replica = Replica(watch, requests)
    assert (replica.unready() == "", replica.dead() == "") == (ready, live), case


async def test_unreachable_seconds_is_how_long_a_replica_stays_live() -> None:
    replica = Replica(0, 11, replace(SETTINGS, unreachable_seconds=10))
    assert replica.dead() == "no request to the API server has succeeded for 11 s"
