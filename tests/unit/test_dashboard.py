"""Every query of the dashboards names series that exist, with labels that they have."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY as TRAINER_REGISTRY
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from sluice_api.reports import TrainingReport
from sluice_operator import metrics
from sluice_operator.exposition import WorldCollector
from sluice_trainer import metrics as trainer_metrics
from tests.unit.progress.worlds import whole

DASHBOARDS = sorted((Path(__file__).parents[2] / "charts/sluice/dashboards").glob("*.json"))
REPORT = TrainingReport.model_validate(
    {
        "attempt": 1,
        "sequence": 1,
        "activity": "Training",
        "loss": 1.0,
        "evaluationLoss": 1.0,
        "tokensPerSecond": 1.0,
        "gpuMemoryBytes": 1,
        "memoryBytes": 1,
        "learningRate": 1.0,
        "gradientNorm": 1.0,
        "secondsLeft": 1,
    }
)
FUNCTIONS = {"sum", "max", "rate", "increase", "histogram_quantile", "vector", "label_values", "by", "or"}


@dataclass(frozen=True)
class Query:
    """One expression, or one variable's query."""

    place: str
    text: str

    def __str__(self) -> str:
        return self.place


def queries(dashboard: dict[str, Any]) -> Iterator[Query]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield Query(f"{panel['title']} {target['refId']}", target["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield Query(f"${variable['name']}", variable["query"]["query"])


ALL = [query for path in DASHBOARDS for query in queries(json.loads(path.read_text()))]


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """The labels of every series that an operator and a trainer expose."""
    for module in (metrics, trainer_metrics):
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase) and metric._labelnames:
                metric.labels(*("x" for _ in metric._labelnames))
    world = CollectorRegistry()
    world.register(WorldCollector(whole(), lambda: True, lambda: {"job-uid": REPORT}))
    found: dict[str, set[str]] = {}
    for registry in (metrics.REGISTRY, world, TRAINER_REGISTRY):
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def words(text: str) -> set[str]:
    """Names outside of strings, ranges and numbers."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", text)
    return set(re.findall(r"[a-zA-Z_][a-zA-Z0-9_]*", bare))


def test_there_is_a_dashboard() -> None:
    assert len(ALL) >= 20


@pytest.mark.parametrize("query", ALL, ids=str)
def test_a_query_names_series_that_exist(query: Query, series: dict[str, set[str]]) -> None:
    names = {word for word in words(query.text) if word.startswith("sluice_")}
    assert names, "it asks for nothing of ours"
    assert names <= series.keys()
    labels = set().union(*(series[name] for name in names))
    assert words(query.text) - names - FUNCTIONS <= labels


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_a_legend_names_labels_that_its_query_keeps(path: Path, series: dict[str, set[str]]) -> None:
    for panel in json.loads(path.read_text())["panels"]:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            names = words(target["expr"]) & series.keys()
            grouped = re.search(r"by \(([^)]*)\)", target["expr"])
            kept = set(re.split(r",\s*", grouped[1])) if grouped else set().union(*(series[name] for name in names))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, panel["title"]


def test_every_series_of_the_operator_is_shown_or_known_to_be_left_out(series: dict[str, set[str]]) -> None:
    shown = set().union(*(words(query.text) for query in ALL))
    families = {
        re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in series if name.startswith("sluice_")
    }
    unseen = {name for name in families if not any(word.startswith(name) for word in shown)}
    assert unseen == {
        "sluice_training_epoch",
        "sluice_training_learning_rate",
        "sluice_training_gradient_norm",
        "sluice_training_memory_bytes",
        "sluice_training_seconds_left",
        "sluice_trainer_failed_saves",
        "sluice_trainer_tokens",
        "sluice_trainer_activity",
        "sluice_trainer_epoch",
        "sluice_trainer_steps",
        "sluice_trainer_target_steps",
        "sluice_trainer_loss_nats",
        "sluice_trainer_evaluation_loss_nats",
        "sluice_trainer_learning_rate",
        "sluice_trainer_gradient_norm",
        "sluice_trainer_tokens_per_second",
        "sluice_trainer_seconds_left",
        "sluice_trainer_gpu_memory_bytes",
        "sluice_trainer_memory_bytes",
    }
