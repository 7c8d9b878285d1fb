"""A watch goes on after whatever the API server sends; and kopf is inside as handlers/kopf_watch.py takes it to be."""

import asyncio
import dataclasses
import inspect
import tomllib
from collections.abc import AsyncIterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf
import pytest
from kopf._cogs.clients import errors, fetching, watching
from kopf._core.engines import peering
from kopf._core.reactor import queueing

from sluice_operator.handlers import kopf_watch
from sluice_operator.handlers.kopf_watch import Watches

RESOURCE = SimpleNamespace(plural="jobs")
LISTED = watching.Bookmark.LISTED


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kopf_watch, "FIRST_PAUSE", 0.0)


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
async def test_watch_lists_again_after_a_failure(failure: Exception) -> None:
    listed: list[str] = []
    taken: list[tuple[str, Any]] = []
    watches = Watches(lambda plural, event: taken.append((plural, event)), listed.append)
    watch = watches.enduring(scripted([LISTED, A, failure], [LISTED, B]))
    assert [event async for event in watch(resource=RESOURCE)] == [LISTED, LISTED], "events do not reach kopf"
    assert taken == [("jobs", A), ("jobs", B)]
    assert listed == ["jobs", "jobs"], "each new list of kopf's asks for one of ours"


async def test_watch_does_not_swallow_our_own_errors() -> None:
    watch = Watches(nowhere, nowhere).enduring(scripted([ZeroDivisionError()]))
    with pytest.raises(ZeroDivisionError):
        [event async for event in watch(resource=RESOURCE)]


async def test_watch_that_only_retries_is_silent() -> None:
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


def test_kopf_is_pinned_to_the_version_that_is_adapted() -> None:
    """After an upgrade of kopf, read handlers/kopf_watch.py again."""
    root = Path(__file__).parents[3]
    pins = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["operator"]
    assert [pin for pin in pins if pin.startswith("kopf")] == [f"kopf=={kopf_watch.VERSION}"]
    for lock in ("operator/requirements.lock", "dev/requirements.lock"):
        assert f"\nkopf=={kopf_watch.VERSION} " in (root / lock).read_text(), lock
    assert version("kopf") == kopf_watch.VERSION


async def test_another_version_of_kopf_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kopf_watch, "version", {"kopf": "1.45.3"}.get)
    with pytest.raises(RuntimeError, match=r"kopf 1\.45\.3 is installed"):
        await Watches(nowhere, nowhere).start("test", asyncio.Event())


def test_kopfs_watch_has_the_signature_that_is_adapted() -> None:
    found = inspect.signature(kopf_watch.KOPFS_WATCH).parameters.values()
    assert {parameter.name for parameter in found} == {
        "settings", "resource", "namespace", "operator_paused", "_iterations",
    }  # fmt: skip
    assert {parameter.kind for parameter in found} == {inspect.Parameter.KEYWORD_ONLY}
    assert inspect.isasyncgenfunction(kopf_watch.KOPFS_WATCH)


async def test_kopfs_watcher_takes_its_events_from_the_function_that_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """kopf's own loop over a watch, with ours in the place of its own: only the store gets events."""
    taken: list[tuple[str, Any]] = []
    handled: list[Any] = []
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
    watches = Watches(lambda plural, event: taken.append((plural, event)), nowhere)
    monkeypatch.setattr(watching, "infinite_watch", watches.enduring(scripted([LISTED, A, bookmark])))

    async def processor(*, raw_event: Any, **_: Any) -> None:
        handled.append(raw_event)

    settings: Any = kopf_watch.kopf_settings()
    resource: Any = RESOURCE
    await queueing.watcher(namespace=None, settings=settings, resource=resource, processor=processor)
    assert taken == [("jobs", A)]
    assert not handled


@pytest.mark.parametrize(
    ("code", "failure"), [(500, watching.WatchingError), (504, watching.WatchingError), (410, None)]
)
async def test_kopfs_watch_marks_a_list_and_raises_what_is_caught(
    monkeypatch: pytest.MonkeyPatch, code: int, failure: type[Exception] | None
) -> None:
    """One list of one object, and a stream that ends with an ERROR event."""

    async def fetch_objs(**_: Any) -> AsyncIterator[Any]:
        yield [{"metadata": {"name": "a"}}], "1"

    async def watch_objs(**_: Any) -> AsyncIterator[Any]:
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "2"}}}
        yield {"type": "ERROR", "object": {"code": code}}

    monkeypatch.setattr(fetching, "fetch_objs", fetch_objs)
    monkeypatch.setattr(watching, "watch_objs", watch_objs)
    seen: list[Any] = []
    options = {"settings": kopf_watch.kopf_settings(), "namespace": None, "_iterations": 1}
    with pytest.raises(failure) if failure else nullcontext():
        async for event in kopf_watch.KOPFS_WATCH(resource=RESOURCE, **options):
            seen.append(event)  # noqa: PERF401 - what came before the failure is kept
    listed, mark, bookmark = seen
    assert listed == {"type": None, "object": {"metadata": {"name": "a"}}}
    assert mark is LISTED
    assert bookmark["type"] == "BOOKMARK"


def test_kopf_accepts_the_arguments_of_its_start_and_end() -> None:
    passed = {"registry", "settings", "identity", "standalone", "clusterwide", "stop_flag"}
    assert passed <= inspect.signature(kopf.spawn_tasks).parameters.keys()
    assert "ignored" in inspect.signature(kopf.run_tasks).parameters
    assert vars(peering.Identity)["__supertype__"] is str, "a plain name is passed for an Identity"
    assert issubclass(errors.APIError, Exception)
    assert issubclass(errors.APIServerError, errors.APIError)


def test_kopf_settings_exist_in_kopf() -> None:
    """A dataclass takes any attribute: one that kopf has renamed would be set, and do nothing."""
    settings = kopf_watch.kopf_settings()
    for section in (settings, *vars(settings).values()):
        known = {field.name for field in dataclasses.fields(section)}
        assert vars(section).keys() <= known, type(section).__name__
