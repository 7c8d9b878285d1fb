"""The list of plans, and the words in which a plan names a moment."""

import re

import pytest

from dev.faults.asked import Asked
from tests.integration.faults.choice import FEW, chosen_plans
from tests.integration.faults.journeys import JOURNEYS
from tests.integration.faults.outcome import write_name
from tests.integration.faults.plans import Kind, Record, all_plans

JOBS = "/apis/batch/v1/namespaces/a/jobs"
ENGINES = "/apis/sluice.dev/v1alpha1/namespaces/a/inferenceengines"


def test_fault_plan_ids_are_unique() -> None:
    plans = all_plans()
    assert len(plans) >= 600
    assert len({plan.id for plan in plans}) == len(plans)
    assert {plan.kind for plan in plans} == set(Kind)


@pytest.mark.parametrize("journey", JOURNEYS)
def test_fault_plans_kill_the_operator_around_every_write(journey: str) -> None:
    writes = {(name, n) for name, times in Record.read(journey).writes.items() for n in range(1, times + 1)}
    for kind in (Kind.KILL_BEFORE, Kind.KILL_AFTER):
        assert {(p.at, p.number) for p in all_plans() if (p.journey, p.kind) == (journey, kind)} == writes


def test_chosen_fault_plans_are_the_same_each_time() -> None:
    assert chosen_plans("") == chosen_plans("")
    assert chosen_plans("50") == chosen_plans("50")
    assert len(chosen_plans("50")) == 50
    assert [(plan.journey, plan.kind) for plan in chosen_plans("")] == [*FEW]


def test_fault_plan_is_found_by_its_id() -> None:
    one = all_plans()[700]
    assert chosen_plans(one.id) == [one]
    assert not re.search(r"[\s,]", one.id)


@pytest.mark.parametrize(
    ("method", "path", "query", "name"),
    [
        ("POST", JOBS, {}, "create jobs"),
        ("DELETE", f"{JOBS}/tone-1f2e3d4c-train-2", {}, "delete jobs tone-train-2"),
        ("PATCH", "/api/v1/namespaces/a/pods/tone-1f2e-train-1-0-x7k2p/status", {}, "patch pods.status tone-train-1"),
        ("PATCH", f"{ENGINES}/chat/status", {"force": "true"}, "apply inferenceengines.status chat"),
        ("PATCH", "/apis/apps/v1/namespaces/a/deployments/chat-1", {}, "patch deployments chat-N"),
        ("DELETE", "/api/v1/namespaces/a/pods/chat-0-placeholder", {}, "delete pods chat-N-placeholder"),
        ("GET", "/api/v1/namespaces", {}, "list namespaces"),
        ("GET", "/api/v1/namespaces/a", {}, "get namespaces a"),
        ("GET", "/api/v1/pods", {"watch": "true"}, "watch pods"),
    ],
)
def test_write_name_is_the_same_in_every_run(method: str, path: str, query: dict[str, str], name: str) -> None:
    assert write_name(Asked.of(method, path, query)) == name
