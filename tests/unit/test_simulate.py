"""The simulator plays the planner's own decisions: what it draws is what Sluice would do."""

import base64
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from pydantic import ValidationError

from dev.cache import REPOSITORY
from dev.simulate.draw import draw, picture
from dev.simulate.figures import figures
from dev.simulate.run import START, Policy, play
from dev.simulate.trace import Trace, read
from tests.unit.pages import traces

DAY = """
name: a-day
days: 1
nodes: [{count: 1, gpus: 4}]
engines:
  - name: chat
    preemption: {policy: ScaleDown, minReplicas: 1}
    replicas: [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
jobs:
  - {arrivesMinutes: 10, trainsMinutes: 60, gpus: 2}
  - {arrivesMinutes: 20, trainsMinutes: 60, interruption: {policy: ToHigherPriority, minRunSeconds: 0}}
  - {arrivesMinutes: 40, trainsMinutes: 30, gpus: 2, priority: 5}
"""


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    file = tmp_path / "day.yaml"
    file.write_text(DAY)
    return read(file)


def test_one_cluster_shared_in_three_ways(trace: Trace) -> None:
    found = {policy: figures(play(trace, policy)) for policy in Policy}
    assert found[Policy.HALVES].served < 0.7, "two GPUs for three replicas"
    assert found[Policy.QUEUE].served > 0.99
    assert found[Policy.QUEUE].done == 0, "the first waits for two GPUs, one is free, and nobody overtakes it"
    assert found[Policy.SLUICE].done == 3
    assert found[Policy.SLUICE].served < found[Policy.QUEUE].served
    assert 0 < found[Policy.SLUICE].lent_gpu_hours < 4


@pytest.mark.parametrize("policy", Policy)
def test_no_more_gpus_are_in_use_than_there_are(trace: Trace, policy: Policy) -> None:
    for sample in play(trace, policy).samples:
        assert sample.training + sample.serving <= 4


def test_the_same_trace_gives_the_same_story(trace: Trace) -> None:
    assert play(trace, Policy.SLUICE) == play(trace, Policy.SLUICE)


def test_the_trace_of_the_page_can_be_played() -> None:
    (trace,) = traces(REPOSITORY / "docs/simulator.md")
    assert figures(play(Trace.model_validate(trace), Policy.SLUICE)).done == 3


AREAS = {"GPUs that serve": "serving", "GPUs that train": "training", "of these, lent by engines": "lent"}
LINES = {"replicas wanted": "wanted", "jobs that wait": "waiting"}


def lending(preemption: dict[str, Any], jobs: list[dict[str, Any]], evening: int = 3, **trace: Any) -> Trace:
    """Four GPUs and an engine of three replicas, of another number from noon on, that lends all but one."""
    engine = {
        "name": "chat",
        "preemption": {"policy": "ScaleDown", **preemption},
        "replicas": [3] * 12 + [evening] * 12,
    }
    nodes = [{"count": 1, "gpus": 4}]
    return Trace.model_validate({"name": "a", "days": 1, "nodes": nodes, "engines": [engine], "jobs": jobs, **trace})


AT_ONE = {"arrivesMinutes": 60, "trainsMinutes": 60, "gpus": 2}


def lent_at_hours(trace: Trace) -> list[float]:
    played = play(trace, Policy.SLUICE)
    return [(sample.at - START) / timedelta(hours=1) for sample in played.samples if sample.lent]


@pytest.mark.parametrize(
    ("window", "first", "last"),
    [
        (None, 1, 2),
        ({"start": "10:00", "end": "16:00"}, 10, 11),
        ({"start": "10:00", "end": "16:00", "timeZone": "Europe/Berlin"}, 9, 10),
        ({"days": ["Monday"], "start": "22:00", "end": "06:00"}, 22, 23),
    ],
)
def test_engines_lend_in_their_windows_only(window: dict[str, Any] | None, first: int, last: int) -> None:
    """The job waits from one o'clock until it may borrow, and trains for an hour."""
    hours = lent_at_hours(lending({"borrowWindows": [window] if window else []}, [AT_ONE]))
    assert hours, "something is lent"
    assert (min(hours), max(hours)) == (first, last)


def test_nothing_is_lent_on_days_without_a_window() -> None:
    tuesday = {"days": ["Tuesday"], "start": "02:00", "end": "23:00"}
    assert lent_at_hours(lending({"borrowWindows": [tuesday]}, [AT_ONE])) == []


@pytest.mark.parametrize(("reclaim", "interruptions"), [("Never", 0), ("OnDemand", 1)])
def test_engines_take_back_what_they_need_when_more_replicas_are_asked_for(reclaim: str, interruptions: int) -> None:
    terms = {"reclaim": reclaim, "coolDownSeconds": 600}
    played = play(lending(terms, [AT_ONE | {"trainsMinutes": 1200}], evening=4), Policy.SLUICE)
    assert played.jobs["job-0"].interruptions == interruptions
    noon, evening = START + timedelta(hours=12), START + timedelta(hours=18)
    serving = max(sample.serving for sample in played.samples if noon <= sample.at < evening)
    assert serving == (4 if interruptions else 2)


@pytest.mark.parametrize(("cool_down", "pause"), [(0, 0), (7200, 120)])
def test_engines_pause_between_loans(cool_down: int, pause: int) -> None:
    """The second job comes when the first has ended and the replica is back."""
    second = AT_ONE | {"arrivesMinutes": 125}
    played = play(lending({"coolDownSeconds": cool_down}, [AT_ONE, second]), Policy.SLUICE)
    record = played.jobs["job-1"]
    assert record.started
    returned = START + timedelta(minutes=121)
    assert record.started == max(record.arrived, returned + timedelta(minutes=pause))


@pytest.mark.parametrize(("pool", "first"), [({}, "job-2"), ({"ageingSeconds": 300}, "job-1")])
def test_waiting_raises_a_job_if_the_pool_says_so(pool: dict[str, Any], first: str) -> None:
    """The first job has the GPUs for an hour; the others wait, the younger one with the higher priority."""
    jobs = [AT_ONE, AT_ONE | {"arrivesMinutes": 65}, AT_ONE | {"arrivesMinutes": 80, "priority": 1}]
    played = play(lending({}, jobs, pool=pool), Policy.SLUICE)
    started = {name: record.started or played.ends for name, record in played.jobs.items() if name != "job-0"}
    assert min(started, key=lambda name: started[name]) == first


def test_ageing_is_looked_at_once_in_its_time_however_many_jobs_wait() -> None:
    """Each arrival, too, is a moment after which ageing may change a decision."""
    nobody_borrows = {"ageingSeconds": 600, "quotas": [{"maxBorrowedGPUs": 0}]}
    jobs = [AT_ONE | {"arrivesMinutes": 61 + number} for number in range(9)]
    played = play(lending({}, jobs, pool=nobody_borrows), Policy.SLUICE)
    arrivals, hours, looks = 9, 24, 24 * 6
    assert looks < len(played.samples) <= looks + arrivals + hours


@pytest.mark.parametrize(
    ("rule", "preemption", "more", "job", "trains"),
    [
        ("within the namespace", {}, {}, {}, True),
        ("to no other", {}, {}, {"namespace": "lab"}, False),
        ("to any", {"lendTo": "Anywhere"}, {}, {"namespace": "lab"}, True),
        ("to none of lower priority", {"priority": 5}, {}, {}, False),
        ("no more than the quota", {}, {"pool": {"quotas": [{"maxBorrowedGPUs": 0}]}}, {}, False),
        (
            "to those selected",
            {"lendTo": "Selected", "lendToNamespaces": {"matchLabels": {"tier": "a"}}},
            {"namespaces": {"lab": {"tier": "a"}}},
            {"namespace": "lab"},
            True,
        ),
    ],
)
def test_engines_and_pools_have_their_own_terms(
    rule: str, preemption: dict[str, Any], more: dict[str, Any], job: dict[str, Any], trains: bool
) -> None:
    played = play(lending(preemption, [AT_ONE | job], **more), Policy.SLUICE)
    assert bool(played.jobs["job-0"].started) == trains, rule


@pytest.mark.parametrize(
    ("preemption", "pool", "told"),
    [
        ({"reclaim": "OnDemand", "reclaimAbove": 4}, {}, "reclaimAbove: requests are not played"),
        ({"drainTimeoutSeconds": 5}, {}, "drainTimeoutSeconds: requests are not played"),
        ({"policy": "Sleep"}, {}, "policy: engines that sleep are not played; write ScaleDown"),
        ({"sleepLevel": 2}, {}, "sleepLevel: engines that sleep are not played"),
        ({"lendTo": "Selected"}, {}, "lendToNamespaces: belongs to lendTo: Selected"),
        ({"borrowWindows": [{"start": "08:00", "end": "08:00"}]}, {}, r"borrowWindows\[0\].end: write another end"),
        (
            {"borrowWindows": [{"start": "08:00", "end": "09:00", "timeZone": "Mars/Olympus"}]},
            {},
            r"borrowWindows\[0\].timeZone: there is no time zone Mars/Olympus",
        ),
        ({"floor": 1}, {}, "floor"),
        ({}, {"nodeSelector": {"a": "b"}}, "nodeSelector: all nodes of a trace are the pool's"),
        ({}, {"resourceName": "amd.com/gpu"}, "resourceName"),
        ({}, {"sharing": {"mode": "DRA"}}, "sharing: every GPU of a trace is one pod's"),
        ({}, {"pricePerGpuHour": "2"}, "pricePerGpuHour: prices are not counted"),
    ],
)
def test_what_would_change_nothing_is_refused(preemption: dict[str, Any], pool: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        lending(preemption, [AT_ONE], pool=pool)


def test_engines_have_names_of_their_own(trace: Trace) -> None:
    twice = trace.model_dump(by_alias=True) | {"engines": [trace.engines[0], trace.engines[0]]}
    with pytest.raises(ValidationError, match="give each engine a name of its own"):
        Trace.model_validate(twice)


def test_a_comparison_is_drawn(trace: Trace, tmp_path: Path) -> None:
    png, page = draw(trace.name, [play(trace, policy) for policy in Policy], tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert base64.b64encode(png.read_bytes()).decode() in page.read_text()
    for column in ("GPUs in use", "replicas served", "lent GPU h", "wait p95"):
        assert column in page.read_text()


def test_every_panel_shows_who_has_the_gpus_and_who_waits(trace: Trace) -> None:
    plays = [play(trace, policy) for policy in Policy]
    drawn = picture(plays)
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == [*AREAS, *LINES]
    for panel, played in zip(drawn.axes, plays, strict=True):
        assert panel.get_title(loc="left") == played.policy
        for label, field in AREAS.items():
            spans = pairwise(played.samples)
            expected = sum(getattr(held, field) * ((then.at - held.at) / timedelta(hours=1)) for held, then in spans)
            assert gpu_hours(panel, label) == pytest.approx(expected), f"{played.policy}: {label}"
        shown = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in panel.lines}
        for label, field in LINES.items():
            assert shown[label] == [getattr(sample, field) for sample in played.samples]
    assert gpu_hours(drawn.axes[-1], "of these, lent by engines") > 0


def gpu_hours(panel: Axes, label: str) -> float:
    """The size of an area of that label, by the shoelace formula."""
    (area,) = [found for found in panel.collections if found.get_label() == label]
    x, y = np.asarray(area.get_paths()[0].vertices).T
    return float(abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2)
