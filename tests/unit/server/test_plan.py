"""What the agent does next: one row for each rule. A world is written as `field: values | field: values`."""

from dataclasses import replace

import pytest

from sluice_api.reasons import Reason
from sluice_server.agent.plan import (
    Check,
    CheckBase,
    Failed,
    Fetch,
    Fetched,
    Load,
    Remove,
    Route,
    Step,
    Unload,
    World,
    adapter_reports,
    desired_state,
    next_step,
    pause_after,
    settled,
)
from sluice_server.agent.resources import Key, WantedAdapter
from sluice_server.agent.sleep import Sleep, SleepState, Start, Wake
from sluice_server.control import DesiredState, ObservedState

NOW = 1000.0


def parse(text: str) -> World:
    """`wanted: a b/2` are adapters, b in its 2nd generation; `names: a=a--1` is what the middleware has."""
    fields = {part.split(":")[0].strip(): part.split(":")[1].split() for part in text.split("|") if part.strip()}
    names = dict(pair.split("=") for pair in fields.get("names", []))
    adapters = [[*value.split("/"), "1"] for value in fields.get("wanted", [])]
    keys = {name: Key(name, int(generation)) for name, generation, *_ in adapters}
    findings: dict[Key, Fetched | Failed] = {
        keys[name]: Fetched(version) for name, version in (value.split("=") for value in fields.get("fetched", []))
    }
    for value in fields.get("failed", []):
        name, _, retry = value.partition("@")
        findings[keys[name]] = Failed(Reason.RANK_TOO_LARGE, f"{name} is too wide.", float(retry or NOW + 60))
    world = World(
        adapters=tuple(
            WantedAdapter(name, keys[name], f"2026-01-0{day + 1}", "pvc://adapters/x", None)
            for day, name in enumerate(keys)
        ),
        max_adapters=int(fields.get("maxAdapters", ["9"])[0]),
        state=ObservedState(
            boot="1",
            desired=DesiredState(
                aliases=names,
                draining="middleware" in fields.get("drain", []),
                asleep="middleware" in fields.get("sleep", []),
            ),
            terminating=False,
            in_flight=len(fields.get("flying", [])),
            held="held" in fields.get("sleep", []),
            in_flight_by_version=dict.fromkeys(fields.get("flying", []), 1),
            quiet_seconds=0,
            draining_seconds=0,
        ),
        loaded=frozenset(fields.get("loaded", [])),
        checked=frozenset(fields.get("checked", [])),
        cached=frozenset(fields.get("cached", [])),
        findings=findings,
        busy_with=fields.get("busy", [None])[0],
        base_checked="base" not in fields.get("unchecked", []),
        draining="wanted" in fields.get("drain", []),
        now=NOW,
        sleep=_sleep(fields["sleep"]) if "sleep" in fields else SleepState(),
    )
    if world.state.desired.asleep:
        return world
    # The middleware has the reasons of unavailable aliases already.
    desired = world.state.desired.model_copy(update={"unavailable": desired_state(world).unavailable})
    return replace(world, state=world.state.model_copy(update={"desired": desired}))


def _sleep(values: list[str]) -> SleepState:
    """`sleep: lent sleeping` is a slot whose GPUs are lent and whose vLLM sleeps; `own` gives it its GPUs back."""
    return SleepState(
        can_sleep=True,
        must_sleep=True if "lent" in values else False if "own" in values else None,
        held="held" in values,
        requests_refused="middleware" in values,
        vllm_sleeps="sleeping" in values,
        passed_wake_check="passed" in values,
    )


def describe(step: Step | None) -> str:
    match step:
        case None:
            return "nothing"
        case Route(desired):
            names = [f"{name}={version}" for name, version in desired.aliases.items()]
            signs = [*(["drain"] if desired.draining else []), *(["asleep"] if desired.asleep else [])]
            return " ".join(["route", *names, *signs])
        case Unload(version) | Remove(version):
            return f"{type(step).__name__.lower()} {version}"
        case CheckBase():
            return "check the base"
        case Fetch(adapter):
            return f"fetch {adapter.name}"
        case Start() | Sleep() | Wake():
            return type(step).__name__.lower() + (" and abort" if isinstance(step, Sleep) and step.abort else "")
        case Load(_, version) | Check(_, version):
            return f"{type(step).__name__.lower()} {version}"


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        ("nothing wanted, nothing to do", "", "nothing"),
        ("the base model answers before anything else is tried", "wanted: a | unchecked: base", "check the base"),
        (
            "the base model is checked again before an adapter is",
            "wanted: a | fetched: a=a--1 | loaded: a--1 | cached: a--1 | unchecked: base",
            "check the base",
        ),
        ("a version is unloaded while another one is loaded", "loaded: b--1 | busy: a--1", "unload b--1"),
        ("a new adapter is fetched", "wanted: a", "fetch a"),
        ("one_at_a_time", "wanted: a b | busy: a--1", "nothing"),
        ("a fetched version is loaded", "wanted: a b | fetched: a=a--1 | cached: a--1", "load a--1"),
        ("a loaded version is checked", "wanted: a | fetched: a=a--1 | loaded: a--1 | cached: a--1", "check a--1"),
        (
            "a checked version gets its alias",
            "wanted: a | fetched: a=a--1 | loaded: a--1 | checked: a--1 | cached: a--1",
            "route a=a--1",
        ),
        (
            "all is well",
            "wanted: a | fetched: a=a--1 | loaded: a--1 | checked: a--1 | cached: a--1 | names: a=a--1",
            "nothing",
        ),
        (
            "a new version is fetched while the old one keeps the alias",
            "wanted: a/2 | loaded: a--1 | checked: a--1 | cached: a--1 | names: a=a--1",
            "fetch a",
        ),
        (
            "the alias moves before the old version is unloaded",
            "wanted: a/2 | fetched: a=a--2 | loaded: a--1 a--2 | checked: a--1 a--2 | names: a=a--1",
            "route a=a--2",
        ),
        (
            "the old version is unloaded when nothing is in flight on it",
            "wanted: a/2 | fetched: a=a--2 | loaded: a--1 a--2 | checked: a--1 a--2 | names: a=a--2",
            "unload a--1",
        ),
        (
            "a version is not unloaded while a request is in flight on it",
            "wanted: a/2 | fetched: a=a--2 | loaded: a--1 a--2 | checked: a--1 a--2 | names: a=a--2 | flying: a--1",
            "nothing",
        ),
        ("a version leaves the cache last", "loaded: | cached: a--1", "remove a--1"),
        ("a loaded version stays in the cache", "loaded: a--1 | flying: a--1 | cached: a--1", "nothing"),
        ("a staging folder is not removed during a fetch", "wanted: a | busy: a--1 | cached: .new-1", "nothing"),
        ("a deleted adapter loses its alias first", "loaded: a--1 | checked: a--1 | names: a=a--1", "route"),
        ("a failed adapter waits until retry_at", "wanted: a | failed: a@1001", "nothing"),
        ("a failed adapter is fetched again at retry_at", "wanted: a | failed: a@999", "fetch a"),
        ("a new adapter is fetched before a failed one", "wanted: a b | failed: a@999", "fetch b"),
        (
            "there is no place for a third",
            "wanted: a b c | maxAdapters: 2 | fetched: b=b--1 | loaded: b--1",
            "check b--1",
        ),
        ("maxAdapters does not count a failed one", "wanted: a b c | maxAdapters: 2 | failed: a b", "fetch c"),
        (
            "maxAdapters counts a failed one whose old version is live",
            "wanted: a/2 b | maxAdapters: 1 | failed: a | loaded: a--1 | checked: a--1 | names: a=a--1",
            "nothing",
        ),
        (
            "maxAdapters prefers a live adapter to an older one",
            "wanted: a b | maxAdapters: 1 | fetched: a=a--1 b=b--1 | loaded: b--1 | checked: b--1 | names: b=b--1"
            " | cached: a--1",
            "remove a--1",
        ),
        ("a drain goes to the middleware at once", "wanted: a | drain: wanted", "route drain"),
        ("the end of a drain goes to the middleware at once", "drain: middleware", "route"),
        (
            "a restarted vLLM is loaded from what is on disk",
            "wanted: a | fetched: a=a--1 | cached: a--1",
            "load a--1",
        ),
        (
            "a slot that is to sleep refuses requests first",
            "sleep: lent | names: a=a--1 | loaded: a--1",
            "route asleep",
        ),
        ("a slot that refuses requests sleeps", "sleep: lent middleware | loaded: a--1", "sleep"),
        (
            "requests left after the drain are aborted",
            "sleep: lent middleware | flying: chat",
            "sleep and abort",
        ),
        ("finish_work_before_sleep: a load in progress ends first", "sleep: lent middleware | busy: a--1", "nothing"),
        ("asleep, it loads nothing", "wanted: a | sleep: lent middleware sleeping", "nothing"),
        (
            "it sleeps on while the status is undecided",
            "wanted: a | sleep: middleware sleeping",
            "nothing",
        ),
        ("it wakes when they are its own", "sleep: own middleware sleeping", "wake"),
        ("a vLLM that woke before its agent restarted has to pass the wake check", "sleep: own middleware", "wake"),
        ("it is served again once it has passed", "sleep: own middleware passed", "route"),
        ("a slot that has woken fetches new adapters", "wanted: a | sleep: own", "fetch a"),
        ("the start gate holds a vLLM that restarts during a loan", "wanted: a | sleep: lent held", "nothing"),
        (
            "the start gate stays shut while the status is undecided",
            "wanted: a | sleep: held",
            "nothing",
        ),
        ("the start gate opens when the GPUs are its own", "wanted: a | sleep: own held", "start"),
        ("the start gate has no aliases to change", "sleep: lent held | drain: wanted", "nothing"),
        (
            "after a restart of the agent an alias stays where it is",
            "wanted: a | loaded: a--1 | checked: a--1 | names: a=a--1 | cached: a--1",
            "fetch a",
        ),
    ],
)
def test_next_step(rule: str, world: str, expected: str) -> None:
    assert describe(next_step(parse(world))) == expected


@pytest.mark.parametrize(
    ("reason", "pauses"),
    [
        (Reason.LOAD_FAILED, [60, 120, 240, 480, 960, 1920, 3600, 3600]),
        (Reason.ADAPTER_WITHOUT_EFFECT, [60, 120]),
        (Reason.ADAPTER_NOT_FOUND, [10, 10]),
        (Reason.ADAPTER_INVALID, [60, 60]),
    ],
)
def test_pause_after(reason: Reason, pauses: list[float]) -> None:
    assert [pause_after(reason, failures) for failures in range(1, len(pauses) + 1)] == pauses


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        ("an empty engine is ready", "", True),
        ("not before the base model has answered", "unchecked: base", False),
        ("not while an adapter is untried", "wanted: a b | failed: a", False),
        ("a failed adapter does not keep the slot from being ready", "wanted: a | failed: a", True),
        (
            "an adapter admitted for a failed one is loaded first",
            "wanted: a b | maxAdapters: 1 | failed: a",
            False,
        ),
        (
            "an adapter over maxAdapters does not either",
            "wanted: a b | maxAdapters: 1 | fetched: a=a--1 | loaded: a--1 | checked: a--1 | names: a=a--1",
            True,
        ),
        (
            "loaded without its name is not there yet",
            "wanted: a | fetched: a=a--1 | loaded: a--1 | checked: a--1",
            False,
        ),
        (
            "loaded under its name is",
            "wanted: a | fetched: a=a--1 | loaded: a--1 | checked: a--1 | names: a=a--1",
            True,
        ),
    ],
)
def test_settled(rule: str, world: str, expected: bool) -> None:
    assert settled(parse(world)) is expected


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        ("untried", "wanted: a", "a/1 Loading"),
        ("fetched", "wanted: a | fetched: a=a--1", "a/1 Loading a--1"),
        (
            "live",
            "wanted: a | fetched: a=a--1 | loaded: a--1 | checked: a--1 | names: a=a--1",
            "a/1 Loaded a--1",
        ),
        ("failed", "wanted: a | failed: a", "a/1 Failed RankTooLarge: a is too wide."),
        (
            "failed while the old version answers",
            "wanted: a/2 | failed: a | loaded: a--1 | checked: a--1 | names: a=a--1",
            "a/2 Failed RankTooLarge: a is too wide. a--1 still answers.",
        ),
        (
            "no place",
            "wanted: a b | maxAdapters: 1",
            "b/1 Failed TooManyAdapters: lora.maxAdapters is 1, and a came first",
        ),
        (
            "another one is admitted while it fails",
            "wanted: b a | maxAdapters: 1 | failed: a",
            "a/1 Failed RankTooLarge: a is",
        ),
        (
            "no adapters at all",
            "wanted: a | maxAdapters: 0",
            "a/1 Failed EngineTakesNoAdapters: The engine has no spec.lora",
        ),
    ],
)
def test_adapter_reports(rule: str, world: str, expected: str) -> None:
    report = adapter_reports(parse(world))[-1]
    words = [f"{report.name}/{report.generation}", report.state, *([report.version] if report.version else [])]
    assert " ".join([*words, *([f"{report.reason}: {report.message}"] if report.reason else [])]).startswith(expected)
