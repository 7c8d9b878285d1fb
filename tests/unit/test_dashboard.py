"""Every query of the dashboards names series that exist, with labels that they have."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cache import REPOSITORY
from tests.unit.chart.helm import manifests
from tests.unit.exposed import by_process, exposed

DASHBOARDS = sorted((REPOSITORY / "charts/sluice/dashboards").glob("*.json"))
GOLDEN = REPOSITORY / "tests" / "golden"
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
    return exposed()


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
        "sluice_longest_wait_seconds",
        "sluice_certificate_expiration_timestamp_seconds",
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


BUILT = (GOLDEN / "trainer-job-lora.yaml", GOLDEN / "slot-deployment-cuda.yaml")


def test_every_panel_has_a_source_that_is_scraped() -> None:
    """The chart has a monitor for each process whose series a panel shows."""
    scraped = {"operator": bool(_monitors("ServiceMonitor")), **_pods_scraped()}
    for query in ALL:
        names = {word for word in words(query.text) if word.startswith("sluice_")}
        sources = {process for name in names for process, found in by_process().items() if name in found}
        assert sources, query
        assert all(scraped[process] for process in sources), query


@pytest.mark.parametrize("built", BUILT, ids=lambda path: path.stem)
def test_each_port_with_metrics_is_scraped_of_the_pods_that_are_built(built: Path) -> None:
    template = yaml.safe_load(built.read_text())["spec"]["template"]
    containers = [*template["spec"]["containers"], *template["spec"].get("initContainers", ())]
    ports = {port["name"] for container in containers for port in container.get("ports", ())}
    found = [m["spec"] for m in _monitors("PodMonitor") if _selects(m, template["metadata"]["labels"])]
    scraped = {endpoint["port"] for spec in found for endpoint in spec["podMetricsEndpoints"]}
    assert scraped == ports & {"metrics", "agent", "http"}
    assert {label for spec in found for label in spec["podTargetLabels"]} <= template["metadata"]["labels"].keys()


def test_monitors_look_where_custom_resources_are_served() -> None:
    assert [m["spec"]["namespaceSelector"] for m in _monitors("PodMonitor")] == [{"any": True}] * 2
    limited = manifests("--set", "metrics.podMonitor.create=true,watchNamespaces={team-a}")
    selectors = [m["spec"]["namespaceSelector"] for m in limited if m["kind"] == "PodMonitor"]
    assert selectors == [{"matchNames": ["team-a"]}] * 2


def test_the_documented_autoscaler_has_a_path_to_its_metric() -> None:
    """The adapter's rule in the scheduling reference finds the agent's series by the labels that Prometheus gives."""
    page = (REPOSITORY / "docs" / "scheduling-reference.md").read_text()
    blocks = [one for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) for one in yaml.safe_load_all(block)]
    (rule,) = next(block["rules"] for block in blocks if isinstance(block, dict) and "rules" in block)
    name, _, selected = rule["seriesQuery"].partition("{")
    assert name in by_process()["agent"]
    assert set(re.findall(r"(\w+)!=", selected)) == {"namespace", "pod"} == rule["resources"]["overrides"].keys()
    asked = [
        m["pods"]["metric"]["name"]
        for b in blocks
        if b.get("kind") == "HorizontalPodAutoscaler"
        for m in b["spec"]["metrics"]
    ]
    assert asked == [name]


def _monitors(kind: str) -> list[dict[str, Any]]:
    return [
        m
        for m in manifests("--set", "metrics.serviceMonitor.create=true,metrics.podMonitor.create=true")
        if m["kind"] == kind
    ]


def _selects(monitor: dict[str, Any], labels: dict[str, str]) -> bool:
    selected: dict[str, str] = monitor["spec"]["selector"]["matchLabels"]
    return selected.items() <= labels.items()


def _pods_scraped() -> dict[str, bool]:
    ports = {endpoint["port"] for m in _monitors("PodMonitor") for endpoint in m["spec"]["podMetricsEndpoints"]}
    return {"trainer": "metrics" in ports, "agent": "agent" in ports}
