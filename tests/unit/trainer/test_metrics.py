"""/metrics of the Train stage: each series has the value that it is said to have, and is documented."""

import re

import pytest
from prometheus_client import REGISTRY

from sluice_api.reports import Activity
from sluice_trainer import metrics
from sluice_trainer.report import SilentReporter
from tests.unit.trainer.jobs import REPOSITORY, quiet_reporter


@pytest.mark.parametrize(
    ("figure", "series"),
    [
        ("step", "sluice_trainer_steps"),
        ("total_steps", "sluice_trainer_target_steps"),
        ("epoch", "sluice_trainer_epoch"),
        ("loss", "sluice_trainer_loss_nats"),
        ("evaluation_loss", "sluice_trainer_evaluation_loss_nats"),
        ("learning_rate", "sluice_trainer_learning_rate"),
        ("gradient_norm", "sluice_trainer_gradient_norm"),
        ("tokens_per_second", "sluice_trainer_tokens_per_second"),
        ("seconds_left", "sluice_trainer_seconds_left"),
        ("gpu_memory_bytes", "sluice_trainer_gpu_memory_bytes"),
        ("memory_bytes", "sluice_trainer_memory_bytes"),
    ],
)
def test_metrics_gauge_keeps_its_value_while_none_is_known(figure: str, series: str) -> None:
    for value, shown in ((1.5, 1.5), (2.5, 2.5), (None, 2.5)):
        metrics.set_gauges(**{figure: value})
        assert REGISTRY.get_sample_value(series) == shown


def test_metrics_activity_is_the_reporters() -> None:
    def shown() -> set[str]:
        return {each for each in Activity if REGISTRY.get_sample_value("sluice_trainer_activity", {"activity": each})}

    reporter = quiet_reporter()
    metrics.follow_activity(reporter)
    assert shown() == {"Starting"}
    reporter.update(activity=Activity.EVALUATING)
    assert shown() == {"Evaluating"}
    reporter.close()
    metrics.follow_activity(SilentReporter(1, None))
    assert shown() == {"Starting"}


def test_metrics_are_documented_and_no_other() -> None:
    listed = set(re.findall(r"`(sluice_trainer_\w+)`", (REPOSITORY / "docs/training.md").read_text()))
    counters = {"sluice_trainer_tokens", "sluice_trainer_failed_saves"}
    there = {family.name for family in REGISTRY.collect() if family.name.startswith("sluice_trainer_")}
    assert listed == {f"{name}_total" if name in counters else name for name in there}
