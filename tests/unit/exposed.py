"""What the processes of Sluice expose to Prometheus."""

from collections.abc import Mapping
from functools import cache

from prometheus_client import REGISTRY as TRAINER_REGISTRY
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from sluice_api.reports import TrainingReport
from sluice_operator import metrics
from sluice_operator.exposition import WorldCollector
from sluice_operator.observe.parse import parse
from sluice_operator.observe.world import key_of, pool_key
from sluice_server.agent import metrics as agent_metrics
from sluice_trainer import metrics as trainer_metrics
from tests.unit.progress.worlds import STAGE_JOB, TRAINER, Work, engine, job, store

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


@cache
def by_process() -> Mapping[str, Mapping[str, set[str]]]:
    """The labels of every series of the operator, the trainer and the agent."""
    for module in (metrics, trainer_metrics, agent_metrics):
        for metric in vars(module).values():
            if isinstance(metric, MetricWrapperBase) and metric._labelnames:
                metric.labels(*("x" for _ in metric._labelnames))
    agent_metrics.IN_FLIGHT.count = 0
    return {
        "operator": _series(metrics.REGISTRY, _of_the_world()),
        "trainer": _series(TRAINER_REGISTRY),
        "agent": _series(agent_metrics.REGISTRY),
    }


def exposed() -> dict[str, set[str]]:
    """The labels of every series of an operator and a trainer."""
    return {name: labels for process in ("operator", "trainer") for name, labels in by_process()[process].items()}


def _of_the_world() -> CollectorRegistry:
    """A leader that has something to show in every family."""
    lends = engine(status={"slots": [{"index": 0, "state": "Lent", "lentTo": "team/tone"}]})
    unreadable = parse("FineTuneJob", {"metadata": {"name": "x", "namespace": "team", "resourceVersion": "9"}})
    queue = {"position": "1", "since": "2026-01-01T00:00:00Z"}
    waits = job("waits", "waits-uid", status={"summary": "WaitingForGPUs", "queue": queue})
    work = Work(failed=[key_of(job())], asked={pool_key("default"): 1})
    world = store(job(), waits, STAGE_JOB, TRAINER, lends, unreadable)
    registry = CollectorRegistry()
    registry.register(WorldCollector(world, lambda: True, lambda: {"job-uid": REPORT}, work))
    return registry


def _series(*registries: CollectorRegistry) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for registry in registries:
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found
