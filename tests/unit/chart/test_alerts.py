"""Each alert of the chart, played by promtool: what makes it fire, when, and what it says then."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev.cache import REPOSITORY
from dev.promtool import promtool
from sluice_api.reasons import Reason
from tests.unit.chart.helm import CHART, one
from tests.unit.exposed import exposed

FILE = CHART / "files" / "alerts.yaml"
(GROUP,) = yaml.safe_load(FILE.read_text())["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}
RUNBOOKS = REPOSITORY / "docs" / "runbooks.md"
LONG = "x600"
"""Ten hours of minutes."""


@dataclass(frozen=True)
class Story:
    """Series, a value a minute, under which one alert fires or does not."""

    alert: str
    title: str
    series: dict[str, str]
    at: str
    labels: dict[str, str] | None
    """Of the alert that fires at that time; None: none does."""
    summary: str = ""

    def __str__(self) -> str:
        return f"{self.alert}: {self.title}"


LEADER = 'sluice_leader{pod="%s"}'
POOL = 'sluice_pool_undecided_seconds{pool="a100",instance="%s"}'
FAILING = 'sluice_failing_objects{kind="FineTuneJob"}'
CERTIFICATE = 'sluice_certificate_expiration_timestamp_seconds{instance="a"}'
DAY = 24 * 3600
UNREADABLE = 'sluice_unreadable_objects{kind="Job"}'
SET_ASIDE = 'sluice_objects_set_aside{kind="FineTuneJob"}'
IDLE = 'sluice_idle_loans{engine_namespace="team",engine_name="chat"}'
CHAT = {"engine_namespace": "team", "engine_name": "chat"}
WAITING = 'sluice_longest_wait_seconds{job_namespace="team"}'
STORIES = [
    Story("SluiceHasNoLeader", "one of two leads", {LEADER % "a": f"0{LONG}", LEADER % "b": f"1{LONG}"}, "1h", None),
    Story(
        "SluiceHasNoLeader",
        "none leads",
        {LEADER % "a": f"0{LONG}"},
        "3m",
        {},
        "No replica of the Sluice operator leads.",
    ),
    Story("SluiceHasNoLeader", "nothing is scraped", {}, "3m", {}, "No replica of the Sluice operator leads."),
    Story("SluiceHasNoLeader", "the lead changes hands", {LEADER % "a": "1x3 0x1 1x9"}, "5m", None),
    Story("SluiceCertificateEnds", "without TLS", {CERTIFICATE: f"0{LONG}"}, "1h", None),
    Story("SluiceCertificateEnds", "renewed at once", {CERTIFICATE: f"{14 * DAY}x5 {90 * DAY}x9"}, "5m", None),
    Story("SluiceCertificateEnds", "renewed in time", {CERTIFICATE: f"{16 * DAY}{LONG}"}, "1h", None),
    Story(
        *("SluiceCertificateEnds", "nobody has renewed it", {CERTIFICATE: f"{14 * DAY}{LONG}"}, "1h", {}),
        "The operator's certificate ends in 13d 23h 0m 0s, and nobody has renewed it.",
    ),
    Story("SluicePoolUndecided", "decided each time", {POOL % "a": f"0{LONG}"}, "1h", None),
    Story("SluicePoolUndecided", "a long decision after another", {POOL % "a": "0 50x20"}, "9m", None),
    Story("SluiceReconcileFails", "for a moment", {FAILING: "0 1x3 0x9"}, "4m", None),
    Story("SluiceObjectUnreadable", "for a moment", {UNREADABLE: "0 1x3 0x9"}, "4m", None),
    Story("SluiceObjectSetAside", "for a moment", {SET_ASIDE: "0 1x3 0x9"}, "4m", None),
    Story("SluiceLoanOverdue", "while the pod starts", {IDLE: "0 1x12 0x9"}, "13m", None),
    Story(
        *("SluicePoolUndecided", "no decision ends", {POOL % "a": "0+60x10"}, "3m"),
        *({"pool": "a100"}, "GPUPool a100 has not been decided for 3m 0s."),
    ),
    Story(
        *(
            "SluicePoolUndecided",
            "the next leader does not decide either",
            {POOL % "a": "0+60x2 _x9", POOL % "b": "_x2 180+60x9"},
        ),
        *("6m", {"pool": "a100"}, "GPUPool a100 has not been decided for 7m 0s."),
    ),
    Story("SluiceReconcileFails", "one failure", {FAILING: "0 1 0x20"}, "6m", None),
    Story(
        *("SluiceReconcileFails", "one object of thousands, tried twice a minute", {FAILING: f"1{LONG}"}, "5m"),
        *({"kind": "FineTuneJob"}, "FineTuneJob: 1 can't be brought forward."),
    ),
    Story("SluiceObjectSetAside", "none", {SET_ASIDE: f"0{LONG}"}, "15m", None),
    Story(
        *("SluiceObjectSetAside", "one object", {SET_ASIDE: f"1{LONG}"}, "5m"),
        *({"kind": "FineTuneJob"}, "FineTuneJob: 1 set aside after an exception."),
    ),
    Story("SluiceObjectUnreadable", "seen for a moment", {UNREADABLE: "1x3 _x20"}, "15m", None),
    Story(
        *("SluiceObjectUnreadable", "one object", {UNREADABLE: f"1{LONG}"}, "5m"),
        *({"kind": "Job"}, "Job: 1 can't be read."),
    ),
    Story("SluiceLoanOverdue", "its trainer runs", {IDLE: f"0{LONG}"}, "1h", None),
    Story("SluiceLoanOverdue", "its trainer starts", {IDLE: "2x10 0x20"}, "14m", None),
    Story(
        *("SluiceLoanOverdue", "nothing trains there", {IDLE: f"1{LONG}"}, "15m"),
        *(CHAT, "team/chat: 1 lent, and nothing trains there."),
    ),
    Story("SluiceJobsWaitLong", "always some job, none for long", {WAITING: "0+60x60 0+60x60 0+60x60"}, "3h", None),
    Story(
        *("SluiceJobsWaitLong", "one job", {WAITING: "0+60x200"}, "2h5m"),
        *({"job_namespace": "team"}, "A fine-tuning job in team has waited for GPUs for 2h 5m 0s."),
    ),
]


def told(story: Story) -> list[dict[str, Any]]:
    """The alert as it arrives, if it does."""
    if story.labels is None:
        return []
    rule = RULES[story.alert]
    annotations = {**rule["annotations"], "summary": story.summary}
    return [{"exp_labels": {**rule["labels"], **story.labels}, "exp_annotations": annotations}]


def test_each_alert_fires_when_it_should_and_not_otherwise(tmp_path: Path) -> None:
    tests = [
        {
            "name": str(story),
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in story.series.items()],
            "alert_rule_test": [{"alertname": story.alert, "eval_time": story.at, "exp_alerts": told(story)}],
        }
        for story in STORIES
    ]
    file = tmp_path / "stories.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(FILE)], "evaluation_interval": "1m", "tests": tests}))
    played = subprocess.run([promtool(), "test", "rules", file], capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stdout + played.stderr
    fires = {story.alert for story in STORIES if story.labels is not None}
    assert fires == {story.alert for story in STORIES if story.labels is None} == set(RULES)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_alert_names_series_and_reasons_that_exist_and_a_page(rule: dict[str, Any]) -> None:
    names = set(re.findall(r"sluice_\w+", rule["expr"]))
    series = exposed()
    assert names
    assert names <= series.keys()
    grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
    assert set(re.split(r",\s*", grouped[1]) if grouped else ()) <= set().union(*(series[name] for name in names))
    states = [state for found in re.findall(r'state=~"([^"]*)"', rule["expr"]) for state in found.split("|")]
    assert set(states) <= {reason.value for reason in Reason}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert REPOSITORY / page == RUNBOOKS
    assert anchor == rule["alert"].lower()
    assert f"## {rule['alert']}\n" in RUNBOOKS.read_text()


def test_prometheus_rule_is_the_alerts_file_with_runbooks_set() -> None:
    values = ("--set", "metrics.prometheusRule.create=true,metrics.prometheusRule.runbooks=https://runbooks.example/")
    spec = one("PrometheusRule", "sluice", *values)["spec"]
    text = FILE.read_text().replace("docs/runbooks.md", "https://runbooks.example/")
    assert spec == yaml.safe_load(text)
