"""Writes whose object somebody else changes at the same time."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from sluice_operator.cluster.client import ATTEMPTS, Api, Body
from sluice_operator.cluster.cluster import Cluster
from sluice_operator.cluster.errors import ApiError
from sluice_operator.observe.store import Store
from sluice_operator.observe.views import Key
from tests.unit.operator import bodies


class Changing(Api):
    """A job that somebody changes between any two requests, until so many writes have come."""

    def __init__(self, until: int) -> None:
        self.until = until
        self.tried = 0
        self.versions = itertools.count(2)

    async def request(self, method: str, path: str, **_: Any) -> Body:
        if method == "PATCH":
            self.tried += 1
            assert self.tried <= 20, "a worker is kept for ever"
            if self.tried < self.until:
                raise ApiError(409, "Conflict", "the object has been modified")
        return bodies.finetunejob("tone", next(self.versions))


@pytest.mark.parametrize(("until", "tried"), [(1, 1), (ATTEMPTS, ATTEMPTS), (1000, ATTEMPTS)])
async def test_apply_status_gives_up_if_the_object_keeps_changing(until: int, tried: int) -> None:
    """Its tenant may write to it as fast as the API server lets him; eight such jobs were all workers."""
    api, leader = Changing(until), SimpleNamespace(term=1, check=lambda: 10.0)
    cluster = Cluster(api, Store(), leader, "operator-0")
    write = cluster.apply_status(Key("FineTuneJob", "team", "tone"), "uid-tone", {})
    if until > ATTEMPTS:
        with pytest.raises(ApiError, match="modified"):
            await write
    else:
        await write
    assert api.tried == tried


class Events(Api):
    """A namespace in which many Jobs were refused their pods; it answers a field selector as the API server does."""

    def __init__(self) -> None:
        self.read = 0

    async def request(self, method: str, path: str, *, query: Any = None, **_: Any) -> Body:
        assert (method, path) == ("GET", "/api/v1/namespaces/team/events")
        selector = dict(part.split("=") for part in query["fieldSelector"].split(","))
        said: list[Body] = [
            {"involvedObject": {"kind": "Job", "name": f"job-{number}"}, "reason": "FailedCreate", "message": "no"}
            for number in range(1000)
        ]
        name = selector.get("involvedObject.name")
        items = [event for event in said if name in (None, event["involvedObject"]["name"])]
        self.read = len(items)
        return {"items": items}


async def test_failed_create_reads_the_events_of_its_job_only() -> None:
    """It is asked each second, and a tenant may have thousands."""
    api, leader = Events(), SimpleNamespace(term=1, check=lambda: 10.0)
    cluster = Cluster(api, Store(), leader, "operator-0")
    assert await cluster.failed_create(Key("Job", "team", "job-7")) == "no"
    assert api.read == 1
