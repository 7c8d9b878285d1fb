"""A watch goes on after whatever the API server sends."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from kopf._cogs.clients import errors, watching

from sluice_operator.handlers import watcher
from sluice_operator.handlers.watcher import Watches

RESOURCE = SimpleNamespace(plural="jobs")
LISTED = watching.Bookmark.LISTED


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "FIRST_PAUSE", 0.0)


A, B = {"type": "ADDED", "object": "a"}, {"type": None, "object": "b"}


def nowhere(*_: Any) -> None:
    """What an event does in a test that is not about events."""


def scripted(*rounds: list[Any]) -> Any:
    """A watch that does what it is told in each round: yield, or raise."""
    left = list(rounds)

    async def watch(**_: Any) -> AsyncIterator[Any]:
        for step in left.pop(0):
            if isinstance(step, Exception):
                raise step
            yield step

    return watch


@pytest.mark.parametrize(
    "failure",
    [
        watching.WatchingError("Error in the watch-stream: {'code': 500}"),
        errors.APIServerError(None, status=503, headers={}),
        errors.APIForbiddenError(None, status=403, headers={}),
        aiohttp.ServerDisconnectedError(),
        TimeoutError(),
        ValueError("no JSON"),
    ],
)
async def test_it_lists_again_after_a_failure(failure: Exception) -> None:
    listed: list[str] = []
    taken: list[tuple[str, Any]] = []
    watches = Watches(lambda plural, event: taken.append((plural, event)), listed.append)
    watch = watches.enduring(scripted([LISTED, A, failure], [LISTED, B]))
    assert [event async for event in watch(resource=RESOURCE)] == [LISTED, LISTED], "events do not reach kopf"
    assert taken == [("jobs", A), ("jobs", B)]
    assert listed == ["jobs", "jobs"], "each new list of kopf's asks for one of ours"


async def test_a_failure_of_ours_is_not_swallowed() -> None:
    watch = Watches(nowhere, nowhere).enduring(scripted([ZeroDivisionError()]))
    with pytest.raises(ZeroDivisionError):
        [event async for event in watch(resource=RESOURCE)]


async def test_a_watch_that_is_only_tried_again_and_again_is_silent() -> None:
    """An API server that can't be reached gives no sign, however often it is asked."""
    now = 0.0
    watches = Watches(nowhere, nowhere, lambda: now)

    async def served_the_sixth_time(**_: Any) -> AsyncIterator[Any]:
        nonlocal now
        if now < 500:
            now += 100
            raise aiohttp.ClientConnectionError
        assert watches.silence() == 500
        yield A

    async for _ in watches.enduring(served_the_sixth_time)(resource=RESOURCE):
        pass
    assert watches.silence() == 0


async def test_silence_is_measured_by_the_quietest_watch() -> None:
    now = 0.0
    watches = Watches(nowhere, nowhere, lambda: now)
    assert watches.silence() == 0
    async for _ in watches.enduring(scripted([A]))(resource=RESOURCE):
        pass
    now = 100.0
    async for _ in watches.enduring(scripted([A]))(resource=SimpleNamespace(plural="pods")):
        pass
    now = 130.0
    assert watches.silence() == 130


def test_kopf_still_has_the_function_that_we_replace_and_raises_what_we_catch() -> None:
    """After an upgrade of kopf, look at handlers/watcher.py again."""
    import inspect

    from kopf._core.reactor import queueing

    assert "watching.infinite_watch(" in inspect.getsource(queueing.watcher)
    assert "raise WatchingError" in inspect.getsource(watching.continuous_watch)
