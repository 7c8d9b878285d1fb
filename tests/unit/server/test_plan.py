"""What the agent does next: one row a rule. A world is written as `word: names | word: names`."""

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
    adapters = [[*word.split("/"), "1"] for word in fields.get("wanted", [])]
    keys = {name: Key(name, int(generation)) for name, generation, *_ in adapters}
    findings: dict[Key, Fetched | Failed] = {
        keys[name]: Fetched(version) for name, version in (word.split("=") for word in fields.get("fetched", []))
    }
    for word in fields.get("failed", []):
        name, _, retry = word.partition("@")
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
    # What the middleware has to say about names that lead nowhere is there already.
    desired = world.state.desired.model_copy(update={"unavailable": desired_state(world).unavailable})
    return replace(world, state=world.state.model_copy(update={"desired": desired}))


def _sleep(words: list[str]) -> SleepState:
    """`sleep: lent sleeping` is a slot whose GPUs are lent and whose vLLM sleeps; `own` gives it its GPUs back."""
    return SleepState(
        can_sleep=True,
        must_sleep=True if "lent" in words else False if "own" in words else None,
        held="held" in words,
        refused="middleware" in words,
        vllm_sleeps="sleeping" in words,
        passed_wake_check="passed" in words,
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
        ("what is new is fetched", "wanted: a", "fetch a"),
        ("one at a time", "wanted: a b | busy: a--1", "nothing"),
        ("what was fetched is loaded", "wanted: a b | fetched: a=a--1 | cached: a--1", "load a--1"),
        ("what was loaded is checked", "wanted: a | fetched: a=a--1 | loaded: a--1 | cached: a--1", "check a--1"),
        (
            "what was checked gets its name",
            "wanted: a | fetched: a=a--1 | loaded: a--1 | checked: a--1 | cached: a--1",
            "route a=a--1",
        ),
        (
            "all is well",
            "wanted: a | fetched: a=a--1 | loaded: a--1 | checked: a--1 | cached: a--1 | names: a=a--1",
            "nothing",
        ),
        (
            "a new version is brought while the old one keeps the name",
            "wanted: a/2 | loaded: a--1 | checked: a--1 | cached: a--1 | names: a=a--1",
            "fetch a",
        ),
        (
            "the name moves before the old version goes",
            "wanted: a/2 | fetched: a=a--2 | loaded: a--1 a--2 | checked: a--1 a--2 | names: a=a--1",
            "route a=a--2",
        ),
        (
            "the old version goes when nothing is in flight on it",
            "wanted: a/2 | fetched: a=a--2 | loaded: a--1 a--2 | checked: a--1 a--2 | names: a=a--2",
            "unload a--1",
        ),
        (
            "and not before",
            "wanted: a/2 | fetched: a=a--2 | loaded: a--1 a--2 | checked: a--1 a--2 | names: a=a--2 | flying: a--1",
            "nothing",
        ),
        ("its bytes go last", "loaded: | cached: a--1", "remove a--1"),
        ("bytes of what is loaded stay", "loaded: a--1 | flying: a--1 | cached: a--1", "nothing"),
        ("what is being fetched is not cleared away", "wanted: a | busy: a--1 | cached: .new-1", "nothing"),
        ("a deleted adapter loses its name first", "loaded: a--1 | checked: a--1 | names: a=a--1", "route"),
        ("a failed one waits", "wanted: a | failed: a@1001", "nothing"),
        ("and is tried again", "wanted: a | failed: a@999", "fetch a"),
        ("after what was never tried", "wanted: a b | failed: a@999", "fetch b"),
        (
            "there is no place for a third",
            "wanted: a b c | maxAdapters: 2 | fetched: b=b--1 | loaded: b--1",
            "check b--1",
        ),
        ("one that can't be loaded takes none", "wanted: a b c | maxAdapters: 2 | failed: a b", "fetch c"),
        (
            "one of which an older version answers does",
            "wanted: a/2 b | maxAdapters: 1 | failed: a | loaded: a--1 | checked: a--1 | names: a=a--1",
            "nothing",
        ),
        (
            "who answers keeps its place when an older one can be loaded again",
            "wanted: a b | maxAdapters: 1 | fetched: a=a--1 b=b--1 | loaded: b--1 | checked: b--1 | names: b=b--1"
            " | cached: a--1",
            "remove a--1",
        ),
        ("a drain goes to the middleware at once", "wanted: a | drain: wanted", "route drain"),
        ("and back", "drain: middleware", "route"),
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
        ("then it sleeps", "sleep: lent middleware | loaded: a--1", "sleep"),
        ("requests whose time is over are ended", "sleep: lent middleware | flying: chat", "sleep and abort"),
        ("what is being loaded comes first", "sleep: lent middleware | busy: a--1", "nothing"),
        ("asleep, it loads nothing", "wanted: a | sleep: lent middleware sleeping", "nothing"),
        ("it sleeps on while nobody says whose the GPUs are", "wanted: a | sleep: middleware sleeping", "nothing"),
        ("it wakes when they are its own", "sleep: own middleware sleeping", "wake"),
        ("one that woke before its agent restarted has proven nothing", "sleep: own middleware", "wake"),
        ("it answers again once it has", "sleep: own middleware passed", "route"),
        ("then it loads what is new", "wanted: a | sleep: own", "fetch a"),
        ("a vLLM that restarts during a loan waits", "wanted: a | sleep: lent held", "nothing"),
        ("and waits while nobody says whose the GPUs are", "wanted: a | sleep: held", "nothing"),
        ("and starts when they are its own", "wanted: a | sleep: own held", "start"),
        ("the start gate has no aliases to change", "sleep: lent held | drain: wanted", "nothing"),
        (
            "after a restart of the agent a live name stays where it is",
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
def test_pauses(reason: Reason, pauses: list[float]) -> None:
    assert [pause_after(reason, failures) for failures in range(1, len(pauses) + 1)] == pauses


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        ("an empty engine is ready", "", True),
        ("not before the base model has answered", "unchecked: base", False),
        ("not while something is untried", "wanted: a b | failed: a", False),
        ("one that failed does not hold the engine up", "wanted: a | failed: a", True),
        ("whose place another one takes, which is loaded first", "wanted: a b | maxAdapters: 1 | failed: a", False),
        (
            "one without a place neither",
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
            "its place is another's while it fails",
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
def test_reports(rule: str, world: str, expected: str) -> None:
    told = adapter_reports(parse(world))[-1]
    words = [f"{told.name}/{told.generation}", told.state, *([told.version] if told.version else [])]
    assert " ".join([*words, *([f"{told.reason}: {told.message}"] if told.reason else [])]).startswith(expected)
