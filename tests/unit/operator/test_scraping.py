"""Who may scrape /metrics, for how long an answer is believed, and how often a page is worked out."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import CollectorRegistry

from sluice_operator.cluster.client import Api, Body
from sluice_operator.cluster.errors import ApiError
from sluice_operator.scraping import (
    BELIEVED_SECONDS,
    FRESH_SECONDS,
    OUTAGE_SECONDS,
    REVIEWS_AT_ONCE,
    Pages,
    ScrapeAccess,
)

USER = {"username": "system:serviceaccount:monitoring:prometheus", "groups": ["system:serviceaccounts"], "uid": "u"}
TOKEN_REVIEW, ACCESS_REVIEW = (
    "/apis/authentication.k8s.io/v1/tokenreviews",
    "/apis/authorization.k8s.io/v1/subjectaccessreviews",
)


class ApiServer(Api):
    """Knows one user, and whether that one may."""

    def __init__(self, *, authenticated: bool = True, allowed: bool = True, fails: bool = False) -> None:
        self.statuses = {
            TOKEN_REVIEW: {"authenticated": authenticated, "user": USER if authenticated else {}},
            ACCESS_REVIEW: {"allowed": allowed},
        }
        self.fails = fails
        self.asked: list[tuple[str, Body]] = []
        self.patience = 0.0

    async def request(
        self, method: str, path: str, *, body: Any = None, patience: Any = lambda: 30.0, **_: Any
    ) -> Body:
        self.asked.append((path, body["spec"]))
        self.patience = patience()
        if self.fails:
            raise ApiError(0, "Unreachable", "nobody there")
        return {"status": self.statuses[path]}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def scrape(token: str | None = "a.b.c") -> web.Request:
    return make_mocked_request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"} if token else {})


async def status(access: ScrapeAccess, token: str | None = "a.b.c") -> int:
    try:
        await access.check(scrape(token))
    except web.HTTPException as refused:
        return refused.status
    return 200


@pytest.mark.parametrize(
    ("server", "token", "expected"),
    [
        pytest.param(ApiServer(), "a.b.c", 200, id="may"),
        pytest.param(ApiServer(), None, 401, id="no token"),
        pytest.param(ApiServer(), "nothing", 401, id="no token of the API server's"),
        pytest.param(ApiServer(authenticated=False), "a.b.c", 403, id="a token that does not hold"),
        pytest.param(ApiServer(allowed=False), "a.b.c", 403, id="somebody who may not"),
        pytest.param(ApiServer(fails=True), "a.b.c", 503, id="nobody to ask"),
    ],
)
async def test_scrape_needs_a_token_that_may_get_metrics(server: ApiServer, token: str | None, expected: int) -> None:
    assert await status(ScrapeAccess(server), token) == expected


async def test_scrape_access_is_reviewed_for_the_path_and_the_tokens_user() -> None:
    server = ApiServer()
    await ScrapeAccess(server).check(scrape())
    (_, review), (_, access) = server.asked
    assert review == {"token": "a.b.c"}, "the API server's own audience: a pod's token for reports does not do"
    assert access["user"] == USER["username"]
    assert access["groups"] == USER["groups"]
    assert access["nonResourceAttributes"] == {"path": "/metrics", "verb": "get"}


@pytest.mark.parametrize("allowed", [True, False])
async def test_scrape_access_is_believed_for_a_minute(allowed: bool) -> None:
    server, clock = ApiServer(allowed=allowed), Clock()
    access = ScrapeAccess(server, clock)
    first = await status(access)
    clock.now += BELIEVED_SECONDS - 1
    assert await status(access) == first
    assert len(server.asked) == 2
    server.statuses[ACCESS_REVIEW] = {"allowed": not allowed}
    clock.now += 1
    assert await status(access) != first


@pytest.mark.parametrize(
    ("allowed", "last_reviewed", "expected"),
    [
        pytest.param(True, OUTAGE_SECONDS, 200, id="who might is let in"),
        pytest.param(True, OUTAGE_SECONDS + 1, 503, id="but not for ever"),
        pytest.param(False, OUTAGE_SECONDS, 503, id="who might not is not"),
    ],
)
async def test_scrape_access_outlasts_an_outage_of_the_api_server(
    allowed: bool, last_reviewed: float, expected: int
) -> None:
    """They would end when they are needed. Seen elsewhere: openshift/enhancements#832."""
    server, clock = ApiServer(allowed=allowed), Clock()
    access = ScrapeAccess(server, clock)
    await status(access)
    server.fails = True
    clock.now += last_reviewed
    assert await status(access) == expected
    assert server.patience < 10, "Prometheus waits no longer"
    server.fails = False
    assert await status(access) == (200 if allowed else 403)


async def test_scrape_token_guesses_cost_the_api_server_little() -> None:
    server = ApiServer(authenticated=False)
    access = ScrapeAccess(server, Clock())
    answers = [await status(access, f"a.b.{number}") for number in range(REVIEWS_AT_ONCE + 10)]
    assert answers == [403] * REVIEWS_AT_ONCE + [429] * 10
    assert len(server.asked) == REVIEWS_AT_ONCE


class Counting:
    """A collector that says how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def describe(self) -> list[GaugeMetricFamily]:
        return []

    def collect(self) -> list[GaugeMetricFamily]:
        self.times += 1
        return [GaugeMetricFamily("times", "So often.", value=self.times)]


def test_metrics_page_is_computed_once_a_second_in_each_format() -> None:
    registry, counting, clock = CollectorRegistry(), Counting(), Clock()
    registry.register(counting)
    pages = Pages(registry, clock)
    openmetrics = "application/openmetrics-text; version=1.0.0"
    first = pages.page("text/plain")
    assert [pages.page("text/plain") for _ in range(100)] == [first] * 100
    assert b"times 1.0" in first[1]
    assert b"# EOF" in pages.page(openmetrics)[1]
    assert counting.times == 2
    clock.now += FRESH_SECONDS
    assert b"times 3.0" in pages.page("text/plain")[1]
