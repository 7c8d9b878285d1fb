"""Somebody has no pod: a quota may count those that ask for nodes too."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.inferenceengine import SlotState, SlotStatus
from sluice_operator.facts.nodes import find_pool
from sluice_operator.observe.views import StageJobView
from sluice_operator.observe.world import engine_key, job_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.missing_pods import PODS_WITHIN
from sluice_operator.plan.pool.scale_up import plan_scale_up
from tests.unit.plan.node_requests import bound, made, planned, removed
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, parse


def says(builder: WorldBuilder, name: str, *slots: SlotStatus) -> None:
    """An engine's status."""
    engine = builder.world.engines[engine_key("team", name)]
    builder.version += 1
    version = {"resource_version": str(builder.version)}
    builder.put(
        engine.model_copy(
            update={
                "status": engine.status.model_copy(update={"slots": slots}),
                "metadata": engine.metadata.model_copy(update=version),
            }
        )
    )


def starting(builder: WorldBuilder, seconds: float, pod: str = "") -> None:
    """A replica of chat that has started so long ago, according to the status; it has that pod, or none yet."""
    builder.engine("chat", 1)
    says(
        builder, "chat", SlotStatus(index=0, state=SlotState.STARTING, pod=pod, since=NOW - timedelta(seconds=seconds))
    )


def claimed(builder: WorldBuilder, name: str, seconds: float, namespace: str = "team") -> StageJobView:
    """A job's claim on n1 of so long ago, without its pod."""
    job = builder.job(name, namespace=namespace)
    return builder.stage_job(job, claim=builder.claim("n1"), created=NOW - timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("rule", "lacks", "expected"),
    [
        ("a claim's pod is about to be made", lambda builder: claimed(builder, "a", 4), ([], ["c-0"])),
        ("it is not", lambda builder: claimed(builder, "a", 5), (["b"], [])),
        ("and it will never be: its Job is suspended by another",
         lambda b: b.put(replace(claimed(b, "a", 30), suspended=True, resource_version=999)), ([], ["c-0"])),
        ("it is there", lambda builder: builder.trainer_pod(claimed(builder, "a", 30)), ([], ["c-0"])),
        ("a claim is in another namespace", lambda builder: claimed(builder, "a", 30, "other"), ([], ["c-0"])),
        ("a replica's pod is not made", lambda builder: starting(builder, 5), (["b"], [])),
        ("a replica's pod is there, and fits no node", lambda b: starting(b, 30, "chat-0-x"), ([], ["c-0"])),
    ],
)  # fmt: skip
def test_scale_up_pods_yield_to_a_missing_pod_of_their_namespace(
    rule: str, lacks: Callable[[WorldBuilder], Any], expected: tuple[list[str], list[str]]
) -> None:
    builder = parse("pool: 1 1 gpus | x: needs 1, on n2 | b: needs 2, scales | c: needs 2, scales")
    bound(builder, "b", "")
    lacks(builder)
    if "there, and fits" in rule:
        builder.slot(builder.world.engines[engine_key("team", "chat")], 0)
    assert (removed(builder), made(builder)) == expected, rule


def test_scale_up_pods_yield_to_a_missing_pod_of_another_pool() -> None:
    """A ResourceQuota is the namespace's, whatever the pool."""
    builder = parse("pool: 1 gpus | b: needs 2, scales")
    builder.pool("old", nodeSelector={"gpu": "old"})
    builder.node(1, labels={"gpu": "old"})
    job = builder.job("a", resources={"pool": "old"})
    builder.stage_job(job, claim=builder.claim("n2"), created=NOW - PODS_WITHIN)
    pod = bound(builder, "b", "")
    assert removed(builder) == ["b"]
    pool = find_pool(builder.world, "old")  # which is the one that looks again when the pod is due
    assert pool is not None
    stock = take_stock(builder.world, pool)
    assert plan_scale_up(builder.world, stock, (), NOW - timedelta(seconds=1)).again_at == NOW
    assert plan_scale_up(builder.world, stock, (), NOW).remove == (pod,)


def test_pool_looks_again_when_a_pod_is_overdue() -> None:
    builder = parse("pool: 1 gpus | b: needs 2, scales")
    claimed(builder, "a", 1)
    assert planned(builder).again_at == NOW + PODS_WITHIN - timedelta(seconds=1)


def test_message_says_why_no_scale_up_pod_is_made() -> None:
    builder = parse("pool: 1 gpus | b: needs 1, scales")
    starting(builder, 30)
    assert (
        "It asks for no nodes while chat/0 has no pod, as a quota may count both, and borrows"
        in allocated(builder).waits[job_key("team", "b")].message
    )


def test_missing_replica_pod_blocks_no_other_namespace() -> None:
    builder = parse("pool: 1 gpus | b: needs 1, in other, scales")
    starting(builder, 4)
    assert made(builder) == []
    assert planned(builder).again_at == NOW + timedelta(seconds=1)
    assert made(builder, NOW + timedelta(seconds=1)) == ["b-0"]


def test_replica_pod_that_fits_no_node_blocks_no_scale_up_pod() -> None:
    builder = parse("pool: 1 gpus | b: needs 1, scales")
    starting(builder, 4, "chat-0-x")
    builder.slot(builder.world.engines[engine_key("team", "chat")], 0)
    assert made(builder) == []
    bound(builder, "b", "n1")
    assert removed(builder) == ["b"]
    assert removed(builder, NOW + timedelta(seconds=1)) == []  # or it would be made and removed without end
