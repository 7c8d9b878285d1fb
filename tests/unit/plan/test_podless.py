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
from sluice_operator.plan.pool.scale_up import plan_scale_up
from sluice_operator.plan.preflight import PODS_WITHIN
from tests.unit.plan.asking import bound, made, planned, removed
from tests.unit.plan.worlds import NOW, Town, allocated, parse


def says(town: Town, name: str, *slots: SlotStatus) -> None:
    """An engine's status."""
    engine = town.world.engines[engine_key("team", name)]
    town.version += 1
    version = {"resource_version": str(town.version)}
    town.put(
        engine.model_copy(
            update={
                "status": engine.status.model_copy(update={"slots": slots}),
                "metadata": engine.metadata.model_copy(update=version),
            }
        )
    )


def starting(town: Town, seconds: float, pod: str = "") -> None:
    """A replica of chat that has started so long ago, according to the status; it has that pod, or none yet."""
    town.engine("chat", 1)
    says(town, "chat", SlotStatus(index=0, state=SlotState.STARTING, pod=pod, since=NOW - timedelta(seconds=seconds)))


def claimed(town: Town, name: str, seconds: float, namespace: str = "team") -> StageJobView:
    """A job's claim on n1 of so long ago, without its pod."""
    job = town.job(name, namespace=namespace)
    return town.stage_job(job, claim=town.claim("n1"), created=NOW - timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("rule", "lacks", "expected"),
    [
        ("a claim's pod is about to be made", lambda town: claimed(town, "a", 4), ([], ["c-0"])),
        ("it is not", lambda town: claimed(town, "a", 5), (["b"], [])),
        ("and it will never be: its Job is suspended by another",
         lambda town: town.put(replace(claimed(town, "a", 30), suspended=True, resource_version=999)), ([], ["c-0"])),
        ("it is there", lambda town: town.trainer_pod(claimed(town, "a", 30)), ([], ["c-0"])),
        ("a claim is in another namespace", lambda town: claimed(town, "a", 30, "other"), ([], ["c-0"])),
        ("a replica's pod is not made", lambda town: starting(town, 5), (["b"], [])),
        ("a replica's pod is there, and fits no node", lambda town: starting(town, 30, "chat-0-x"), ([], ["c-0"])),
    ],
)  # fmt: skip
def test_pods_that_ask_starve_nobody_of_their_namespace(
    rule: str, lacks: Callable[[Town], Any], expected: tuple[list[str], list[str]]
) -> None:
    town = parse("pool: 1 1 gpus | x: needs 1, on n2 | b: needs 2, scales | c: needs 2, scales")
    bound(town, "b", "")
    lacks(town)
    if "there, and fits" in rule:
        town.slot(town.world.engines[engine_key("team", "chat")], 0)
    assert (removed(town), made(town)) == expected, rule


def test_nor_do_those_of_another_pool() -> None:
    """A quota is the namespace's, whatever the pool."""
    town = parse("pool: 1 gpus | b: needs 2, scales")
    town.pool("old", nodeSelector={"gpu": "old"})
    town.node(1, labels={"gpu": "old"})
    job = town.job("a", resources={"pool": "old"})
    town.stage_job(job, claim=town.claim("n2"), created=NOW - PODS_WITHIN)
    pod = bound(town, "b", "")
    assert removed(town) == ["b"]
    pool = find_pool(town.world, "old")  # which is the one that looks again when the pod is due
    assert pool is not None
    stock = take_stock(town.world, pool)
    assert plan_scale_up(town.world, stock, (), NOW - timedelta(seconds=1)).again_at == NOW
    assert plan_scale_up(town.world, stock, (), NOW).remove == (pod,)


def test_it_looks_again_when_a_pod_is_due() -> None:
    town = parse("pool: 1 gpus | b: needs 2, scales")
    claimed(town, "a", 1)
    assert planned(town).again_at == NOW + PODS_WITHIN - timedelta(seconds=1)


def test_who_does_not_ask_meanwhile_says_so() -> None:
    town = parse("pool: 1 gpus | b: needs 1, scales")
    starting(town, 30)
    assert (
        "It asks for no nodes while chat/0 has no pod, as a quota may count both, and borrows"
        in allocated(town).waits[job_key("team", "b")].message
    )


def test_a_replica_whose_pod_never_comes_stops_nobody_of_another_namespace() -> None:
    town = parse("pool: 1 gpus | b: needs 1, in other, scales")
    starting(town, 4)
    assert made(town) == []
    assert planned(town).again_at == NOW + timedelta(seconds=1)
    assert made(town, NOW + timedelta(seconds=1)) == ["b-0"]


def test_nor_does_one_whose_pod_fits_no_node() -> None:
    town = parse("pool: 1 gpus | b: needs 1, scales")
    starting(town, 4, "chat-0-x")
    town.slot(town.world.engines[engine_key("team", "chat")], 0)
    assert made(town) == []
    bound(town, "b", "n1")
    assert removed(town) == ["b"]
    assert removed(town, NOW + timedelta(seconds=1)) == []  # or it would be made and removed without end
