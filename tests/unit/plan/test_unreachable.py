"""A node that does not answer and that nobody deletes: who waits for it says so, since when, and what ends it."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.reasons import Reason
from sluice_api.stages import Stage
from sluice_operator.facts.retries import after as follows
from sluice_operator.observe.views import NodeView
from sluice_operator.observe.world import Heartbeat
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.settings import Limits
from tests.unit.plan.test_claim_cycle import Loan, training
from tests.unit.plan.test_retry import attempt
from tests.unit.plan.worlds import NOW, PREPARED, WorldBuilder, planned_status

SINCE = NOW - timedelta(hours=2)
SAYS = "Node n1 has not been ready since 2026-11-22 10:00 UTC"
REMEDIES = (
    "kubectl delete node n1",
    "kubectl taint node n1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute",
)


def goes_away(builder: WorldBuilder) -> None:
    node: NodeView = builder.nodes[0]
    builder.version += 1
    builder.put(replace(node, ready=False, not_ready_since=SINCE, resource_version=builder.version))


@pytest.mark.parametrize(
    ("case", "pod", "after", "reason", "given_up"),
    [
        ("its pod is being deleted", {"deleting": True}, 1, Reason.NODE_NOT_READY, None),
        ("its trainer is silent", {}, 130, Reason.NODE_NOT_READY, None),
        ("its trainer has been silent for too long", {}, 190, Reason.NODE_LOST, Reason.NODE_LOST),
        ("its trainer reports all the same", {}, 1, Reason.TRAINING, None),
        ("its pod never started", {"running": False}, 1, Reason.NODE_NOT_READY, None),
        ("its pod did not start in time", {"running": False}, 700, Reason.NODE_LOST, Reason.NODE_LOST),
        ("it has ended before", {"ended": True, "running": False}, 1, Reason.TRAINING, None),
    ],
)
def test_node_not_ready_is_named_by_the_job(
    case: str, pod: dict[str, Any], after: int, reason: Reason, given_up: Reason | None
) -> None:
    loan = Loan()
    trainer = training(loan)
    loan.put(trainer, bound_at=NOW, **pod)
    loan.builder.store.findings.heartbeat(loan.stage_job.uid, Heartbeat(1, NOW, 1.0))
    goes_away(loan.builder)
    decision = loan.plan_job(after=after)
    assert decision.reason is reason, case
    assert (SAYS in decision.message) is (reason is not Reason.TRAINING), decision.message
    recorded = decision.record.of(Stage.TRAIN) if decision.record else ()
    assert [outcome.reason for outcome in recorded] == ([given_up] if given_up else [])
    assert given_up is None or not follows(given_up).counts


def test_node_not_ready_is_named_while_the_ended_pod_stays() -> None:
    """M10: "Its last training pod is still going; the next attempt follows.", for ever."""
    loan = Loan()
    pod = training(loan)
    loan.put(pod, deleting=True)
    loan.put(loan.stage_job, deleting=True)
    assert loan.plan_job(after=1).reason is Reason.REQUEUED
    goes_away(loan.builder)
    decision, ready = loan.plan_job(after=1), loan.status(after=1).conditions[0]
    assert decision.reason is Reason.NODE_NOT_READY
    for message in (decision.message, ready.message):
        assert SAYS in message
        assert all(remedy in message for remedy in REMEDIES), message
    loan.put(pod, deleting=True, ended=True)
    assert SAYS not in loan.status(after=1).conditions[0].message


def test_node_not_ready_is_named_by_the_engine() -> None:
    loan = Loan()
    training(loan)
    goes_away(loan.builder)
    lent = loan.status(after=1).conditions[1]
    assert (lent.reason, SAYS in lent.message) == (Reason.LENDING, True)
    alone = WorldBuilder()
    alone.node(1)
    engine = alone.engine("chat", 1)
    alone.slot(engine, 0, "n1", ready=False)
    goes_away(alone)
    assert SAYS in planned_status(alone.world, engine, NOW).conditions[0].message


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.EXPORT])
def test_node_not_ready_is_named_by_a_cpu_stage(stage: Stage) -> None:
    builder = WorldBuilder()
    builder.node(1)
    job = builder.job("a", outcomes=())
    if stage is Stage.EXPORT:
        job = builder.job("a", outcomes=(PREPARED, attempt(1, Reason.DONE)))
    builder.trainer_pod(builder.stage_job(job, stage, created=NOW), "n1", deleting=True)
    goes_away(builder)
    decision = plan_job(builder.world, job, NOW + timedelta(seconds=1), Limits())
    assert (decision.reason, SAYS in decision.message) == (Reason.NODE_NOT_READY, True)
