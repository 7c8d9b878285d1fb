"""PodDisruptionBudgets are honoured when replicas are lent, though no eviction asks them."""

import pytest

from sluice_api.claim import SlotRef
from sluice_operator.observe.parse import parse
from sluice_operator.observe.views import BudgetView
from sluice_operator.observe.world import job_key
from tests.unit.plan.worlds import allocated, describe
from tests.unit.plan.worlds import parse as world


@pytest.mark.parametrize(
    ("rule", "allowed", "jobs", "expected"),
    [
        ("as many as it lets go may be lent", 1, 1, "a takes chat/2"),
        ("none when it lets none go", 0, 1, "a waits EngineProtected"),
        ("it bounds what is lent at once", 1, 2, "a takes chat/2; b waits EngineProtected"),
        ("and what one job borrows", 2, 2, "a takes chat/2; b takes chat/1"),
    ],
)
def test_disruption_budget_bounds_loans(rule: str, allowed: int, jobs: int, expected: str) -> None:
    builder = world("pool: 3 gpus | chat: 3 replicas")
    builder.budget("chat", allowed)
    for name in ("a", "b")[:jobs]:
        builder.job(name)
    assert describe(allocated(builder)) == expected, rule


def test_disruption_budget_ignores_a_replica_that_is_not_ready() -> None:
    builder = world("pool: 2 gpus | chat: 2 replicas, ready 1 | a: needs 1")
    builder.budget("chat", 0)
    assert describe(allocated(builder)) == "a takes chat/1"


def test_disruption_budget_of_other_pods_is_ignored() -> None:
    builder = world("pool: 2 gpus | chat: 2 replicas | a: needs 1")
    builder.budget("other", 0)
    builder.budget("chat", 0, namespace="elsewhere")
    assert describe(allocated(builder)) == "a takes chat/1"


def test_disruption_budget_counts_a_claimed_replica_as_gone() -> None:
    builder = world("pool: 3 gpus | chat: 3 replicas")
    builder.budget("chat", 1)
    builder.stage_job(builder.job("a"), claim=builder.claim("n1", SlotRef(namespace="team", engine="chat", index=2)))
    builder.job("b")
    allocation = allocated(builder)
    assert describe(allocation) == "b waits EngineProtected"
    assert "lets none of the replicas of chat go now" in allocation.waits[job_key("team", "b")].message


@pytest.mark.parametrize(
    ("case", "spec", "status", "generation", "expected"),
    [
        (
            "counted",
            {"selector": {"matchLabels": {"a": "b"}}},
            {"disruptionsAllowed": 2, "observedGeneration": 3},
            3,
            2,
        ),
        ("not counted yet", {"selector": {}}, {"disruptionsAllowed": 2, "observedGeneration": 2}, 3, 0),
        ("new", {"selector": {}}, {}, 1, 0),
        ("about no pod", {}, {"disruptionsAllowed": 0, "observedGeneration": 1}, 1, 0),
    ],
)
def test_disruption_budget_is_parsed(case: str, spec: object, status: object, generation: int, expected: int) -> None:
    metadata = {
        "name": "chat",
        "namespace": "team",
        "uid": "1",
        "resourceVersion": "1",
        "creationTimestamp": "2026-11-22T12:00:00Z",
        "generation": generation,
    }
    budget = parse("PodDisruptionBudget", {"metadata": metadata, "spec": spec, "status": status})
    assert isinstance(budget, BudgetView)
    assert budget.allowed == expected, case
    assert (budget.pods is None) == (case == "about no pod")


@pytest.mark.parametrize(
    ("rule", "selector", "allowed", "chat", "other"),
    [
        (
            "more values than a field of ours may have",
            {"matchExpressions": [{"key": "app", "operator": "In", "values": ["chat", *map(str, range(40))]}]},
            2,
            True,
            False,
        ),
        (
            "an operator that Sluice does not know",
            {"matchExpressions": [{"key": "a", "operator": "Gt"}]},
            0,
            True,
            True,
        ),
        ("a field that Sluice does not know", {"matchFields": []}, 0, True, True),
    ],
)
def test_disruption_budget_with_unknown_selector_protects_namespace(
    rule: str, selector: object, allowed: int, chat: bool, other: bool
) -> None:
    metadata = {"name": "b", "namespace": "team", "uid": "1", "resourceVersion": "1", "generation": 1} | {
        "creationTimestamp": "2026-11-22T12:00:00Z"
    }
    status = {"disruptionsAllowed": 2, "observedGeneration": 1}
    budget = parse("PodDisruptionBudget", {"metadata": metadata, "spec": {"selector": selector}, "status": status})
    assert isinstance(budget, BudgetView)
    assert budget.pods is not None
    assert (budget.allowed, budget.pods.selects({"app": "chat"}), budget.pods.selects({"app": "other"})) == (
        allowed,
        chat,
        other,
    ), rule
