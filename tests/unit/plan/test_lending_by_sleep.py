"""Which replicas can go to sleep for a job, what the engine says of it, and what counts them as lent."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sluice_api.reasons import Reason
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.slots import template_of
from sluice_operator.observe.world import job_key
from sluice_operator.plan.inventory import take_stock
from sluice_operator.settings import Limits
from sluice_operator.status.pool import pool_status
from sluice_operator.status.trace import trace
from tests.unit.plan.test_sleeping import SleepingLoan
from tests.unit.plan.worlds import NOW, YIELDS, WorldBuilder, allocated, describe, parse, planned_status


@pytest.mark.parametrize(
    ("rule", "change", "expected"),
    [
        ("a replica that serves goes to sleep", lambda builder: None, "a takes chat/0"),
        ("one that starts can't", lambda builder: _pod(builder, ready=False), "a waits EngineNotReadyToSleep"),
        ("one of an older spec can't", lambda builder: _slot(builder, template="old"), "a waits EngineNotReadyToSleep"),
        ("nor can any where a GPU is one pod's", lambda builder: builder.pool(), "a waits EngineCannotSleep"),
        ("a budget counts", lambda builder: builder.budget("chat", 0), "a waits EngineProtected"),
        ("a budget that lets one go", lambda builder: builder.budget("chat", 1), "a takes chat/0"),
        ("its pod keeps its memory", lambda builder: _node(builder, 2 << 30), "a takes chat/0"),
        ("so the trainer's comes on top", lambda builder: _node(builder, (2 << 30) - 1), "a waits Unschedulable"),
    ],
)
def test_policy_sleep_lends_a_ready_replica_if_memory_allows(
    rule: str, change: Callable[[WorldBuilder], None], expected: str
) -> None:
    builder = WorldBuilder()
    builder.dra_pool()
    builder.node(1)
    builder.slot(builder.engine("chat", 1, preemption={"policy": "Sleep", "minReplicas": 0}), 0, "n1")
    builder.job("a")
    change(builder)
    assert describe(allocated(builder)) == expected


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        (
            "the least busy replica goes to sleep, down to the floor",
            "pool: 2 gpus, dra | chat: 2 replicas, sleeps, floor 1, in flight 9 0 | a: needs 1 | b: needs 1",
            "a takes chat/1; b waits EngineAtFloor",
        ),
        (
            "one that starts is no victim, though it serves nobody",
            "pool: 2 gpus, dra | chat: 2 replicas, sleeps, ready 1 | a: needs 1",
            "a takes chat/0",
        ),
        (
            "one that only stops is not lent there: nothing would keep its GPU for it",
            "pool: 2 gpus, dra | chat: 2 replicas, ready 1 | a: needs 1",
            "a waits EngineMustSleep",
        ),
        (
            "free GPUs come first",
            "pool: 3 gpus, dra | chat: 2 replicas, sleeps | a: needs 1",
            "a takes n1",
        ),
        (
            "elsewhere it lends nothing, and its neighbour does",
            "pool: 2 gpus | chat: 1 replicas, sleeps | down: 1 replicas | a: needs 1 | b: needs 1",
            "a takes down/0; b waits EngineCannotSleep",
        ),
    ],
)
def test_policy_sleep_chooses_the_victims(rule: str, world: str, expected: str) -> None:
    assert describe(allocated(parse(world))) == expected


def _pod(builder: WorldBuilder, **changes: Any) -> None:
    (pod,) = builder.world.pods.values()
    builder.version += 1
    builder.put(replace(pod, resource_version=builder.version, **changes))


def _slot(builder: WorldBuilder, **changes: Any) -> None:
    (slot,) = builder.world.slots.values()
    builder.version += 1
    builder.put(replace(slot, resource_version=builder.version, **changes))


def _node(builder: WorldBuilder, memory: int) -> None:
    (node,) = builder.world.nodes.values()
    builder.version += 1
    builder.put(replace(node, resource_version=builder.version, allocatable={**node.allocatable, "memory": memory}))


def test_slot_being_deleted_does_not_count_for_min_replicas() -> None:
    builder = WorldBuilder()
    builder.node(2)
    engine = builder.engine("chat", 1, preemption={"policy": "ScaleDown", "minReplicas": 1})
    builder.slot(engine, 0, "n1")
    leaves = builder.slot(engine, 1, "n1")
    assert leaves
    builder.report(leaves, 9)  # the other one would be the cheaper one
    gone = next(slot for slot in builder.world.slots.values() if slot.index == 1)
    builder.version += 1
    builder.put(replace(gone, resource_version=builder.version, deleting=True))
    builder.job("a")
    assert describe(allocated(builder)) == "a takes chat/1"


def test_engine_cannot_sleep_is_said_in_the_engine_status() -> None:
    builder = WorldBuilder()
    builder.node(1)
    engine = builder.engine("chat", 1, preemption={"policy": "Sleep", "minReplicas": 0})
    builder.slot(engine, 0, "n1")
    builder.job("a")
    said = planned_status(builder.world, engine, NOW).conditions[1]
    why = (
        "spec.preemption.policy is Sleep, but GPUPool default has spec.sharing.mode: None, so its GPUs would stay with "
        "the sleeping pod. Set policy: ScaleDown, or use a pool of sharing.mode: DRA."
    )
    assert (said.type, said.status, said.reason, said.message) == ("Lent", "False", Reason.ENGINE_CANNOT_SLEEP, why)
    (wait,) = allocated(builder).waits.values()
    assert why in wait.message


def test_sleeping_slot_counts_as_lent_in_pool_status_and_trace() -> None:
    loan = SleepingLoan()
    loan.train()
    pool = find_pool(loan.builder.world, "default")
    assert pool
    status = pool_status(loan.builder.world, take_stock(loan.builder.world, pool), 0, NOW)
    assert (status.lent, status.training, status.inference, status.free) == (1, 1, 1, 0)
    loan.builder.job("b")
    said = "\n".join(trace(loan.builder.world, loan.builder.world.jobs[job_key("team", "b")], NOW, Limits()))
    assert "team/chat: 1 of 2 replicas, 1 asleep, floor 1" in said


def test_borrower_of_a_sleeping_slot_is_not_preempted() -> None:
    """Both trainers would have the GPUs at once, until the first had saved its state."""
    loan = SleepingLoan(scheduling={"policy": "Preempt", "interruption": YIELDS})
    loan.train()
    loan.builder.job("b", scheduling={"policy": "Preempt", "priority": 9, "interruption": {"graceSeconds": 0}})
    assert "b takes" not in describe(allocated(loan.builder, NOW + timedelta(hours=1)))


def test_message_promises_no_preemption_on_a_sleeping_slot() -> None:
    terms = {**YIELDS, "minRunSeconds": 7200}
    loan = SleepingLoan(scheduling={"policy": "Preempt", "interruption": terms})
    loan.train()
    loan.builder.job("b", scheduling={"policy": "Preempt", "priority": 9, "interruption": {"graceSeconds": 0}})
    (wait,) = allocated(loan.builder).waits.values()
    assert "gives way" not in wait.message
    said = "\n".join(trace(loan.builder.world, loan.builder.world.jobs[job_key("team", "b")], NOW, Limits()))
    assert "team/a: 1 GPU on n1; a does not give way: it trains on replicas that sleep." in said


@pytest.mark.parametrize(
    ("rule", "terms", "same"),
    [
        ("another floor changes no pod", {"minReplicas": 0}, True),
        (
            "nor do other hours, loads and pauses",
            {"coolDownSeconds": 5, "reclaim": "OnDemand", "reclaimAbove": 3},
            True,
        ),
        ("nor who borrows", {"lendTo": "Anywhere", "priority": 7}, True),
        ("another level does", {"sleepLevel": 2}, False),
        ("another policy does", {"policy": "ScaleDown"}, False),
        ("the drain does, as ever", {"drainTimeoutSeconds": 5}, False),
    ],
)
def test_pod_template_depends_on_policy_sleep_level_and_drain(rule: str, terms: dict[str, Any], same: bool) -> None:
    builder, sleep = WorldBuilder(), {"policy": "Sleep", "sleepLevel": 1}
    before = builder.engine("chat", 1, preemption=sleep)
    after = builder.engine("chat", 1, preemption={**sleep, **terms})
    assert (template_of(before) == template_of(after)) is same


def test_sleep_level_without_policy_sleep_changes_no_pod() -> None:
    builder = WorldBuilder()
    one, two = (builder.engine("chat", 1, preemption={"policy": "ScaleDown", "sleepLevel": level}) for level in (1, 2))
    never = builder.engine("chat", 1)
    assert template_of(one) == template_of(two) == template_of(never)


def test_templates_that_adapters_may_bring_change_the_pod_only_if_they_are_chosen() -> None:
    builder = WorldBuilder()
    absent, default, known = (
        template_of(builder.engine("chat", 1, lora={"maxRank": 8, **chosen}))
        for chosen in ({}, {"chatTemplates": "Any"}, {"chatTemplates": "Known"})
    )
    assert absent == default != known
