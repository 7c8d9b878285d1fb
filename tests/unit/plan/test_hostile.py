"""Whatever one tenant writes, everybody else's decisions are the same as without it."""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluice_operator.facts.outcomes import done
from sluice_operator.plan import readiness as deadlines
from tests.unit.plan.hostile import HOSTILE, bring, decisions
from tests.unit.plan.worlds import parse

WORLDS = (
    "pool: 2 gpus | chat: 2 replicas, floor 1, anywhere, in flight 9 0 | a: needs 1 | b: needs 1, queue",
    "pool: 2 2 gpus | chat: 2 replicas, never | a: needs 1, on n2 | b: needs 2",
    "pool: 2 gpus | a: needs 1, yields, on n1 | b: needs 1, on n1 | high: needs 1, queue, priority 5",
    "pool: 2 2 gpus | chat: 2 replicas, floor 0, anywhere | a: needs 1, takes chat/0 on n1 | b: needs 1, scales",
    "pool: 2 gpus, dra | chat: 2 replicas, floor 0, sleeps | a: needs 1 | b: needs 1, queue",
)
WORLDS_TRIED = int(os.environ.get("SLUICE_SOAK_OPERATIONS", "1000")) // 10
"""A few with all tests, or as many as `make soak` says."""


def agree(world: str, hostile: list[dict[str, Any]]) -> None:
    honest, troubled = parse(world), parse(world)
    bring(troubled, hostile)
    assert decisions(troubled) == decisions(honest)


@settings(max_examples=WORLDS_TRIED, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=st.sampled_from(WORLDS), hostile=HOSTILE)
def test_hostile_tenant_changes_no_other_decision(world: str, hostile: list[dict[str, Any]]) -> None:
    agree(world, hostile)


@pytest.mark.parametrize("world", WORLDS)
def test_hostile_job_that_raises_changes_no_other_decision(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should an extreme value raise after all, the fence holds, whatever it raises."""

    def bad(outcomes: Any, stage: Any) -> Any:
        if outcomes.published == "poison":
            raise OverflowError("date value out of range")
        return done(outcomes, stage)

    poison = {
        "kind": "FineTuneJob",
        "apiVersion": "sluice.dev/v1alpha1",
        "metadata": {
            "name": "x",
            "namespace": "evil",
            "uid": "uid-evil-x",
            "creationTimestamp": "2026-11-22T11:58:00Z",
            "annotations": {"sluice.dev/outcomes": '{"published": "poison", "attempts": []}'},
        },
        "spec": {
            "model": {"uri": "pvc://models/base"},
            "dataset": {"uri": "pvc://datasets/rows.jsonl"},
            "output": {"uri": "pvc://adapters/out"},
            "scheduling": {"priority": 1000, "queueDeadlineSeconds": 1},
        },
    }
    monkeypatch.setattr(deadlines, "done", bad)
    agree(world, [poison])
