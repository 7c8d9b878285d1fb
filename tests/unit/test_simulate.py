"""The simulator plays the planner's own decisions: what it draws is what Sluice would do."""

from pathlib import Path

import pytest

from dev.cache import REPOSITORY
from dev.simulate.draw import draw
from dev.simulate.figures import figures
from dev.simulate.run import Policy, play
from dev.simulate.trace import Trace, read
from tests.unit.pages import traces

DAY = """
name: a-day
days: 1
nodes: [{count: 1, gpus: 4}]
engines:
  - {name: chat, floor: 1, replicas: [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3]}
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


def test_a_comparison_is_drawn(trace: Trace, tmp_path: Path) -> None:
    png, page = draw(trace.name, [play(trace, policy) for policy in Policy], tmp_path)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "replicas served" in page.read_text()
