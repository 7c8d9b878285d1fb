"""What a person reads who asks why a job waits, or how far it is."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dev.cache import REPOSITORY
from sluice_api.claim import SlotRef
from sluice_operator.observe.world import job_key
from sluice_operator.settings import Limits
from sluice_operator.status.trace import trace
from tests.unit.plan.dra import DraWorldBuilder
from tests.unit.plan.test_sleeping import SleepingLoan
from tests.unit.plan.worlds import NOW, WorldBuilder, allocated, change, parse


def told(builder: WorldBuilder, name: str) -> str:
    return "\n".join(trace(builder.world, builder.world.jobs[job_key("team", name)], NOW, Limits()))


def section(builder: WorldBuilder, name: str, title: str) -> list[str]:
    """The lines of one section."""
    lines = told(builder, name).splitlines()
    begin = lines.index(f"{title}:") + 1
    end = next((i for i, line in enumerate(lines[begin:], begin) if not line.startswith("  ")), len(lines))
    return [line.strip() for line in lines[begin:end]]


def test_trace_of_a_waiting_job_shows_queue_nodes_and_engines() -> None:
    builder = parse(
        "pool: 2 gpus | chat: 2 replicas, floor 1 | dear: 0 replicas, never"
        " | a: needs 1, takes chat/0 on n1 | b: needs 1, priority 5 | c: needs 1"
    )
    assert told(builder, "c") == (
        "team/c: 1 GPU of pool default, policy Preempt, priority 0\n"
        "  waits: BehindInQueue: Waiting for 1 GPU in pool default since 2026-11-22 11:56 UTC. b is in front. chat can "
        "lend no more: 1 of 2 replicas are left, its floor is 1. Next: raise scheduling.priority to 6, and lower "
        "preemption.minReplicas of chat to 0, or raise scheduling.priority to 6, and add 1 GPU to the pool.\n"
        "queue:\n"
        "    1. team/b, priority 5: EngineAtFloor\n"
        "  * 2. team/c, priority 0: BehindInQueue\n"
        "could start:\n"
        "  1. BehindInQueue: b is in front. Next: raise scheduling.priority to 6.\n"
        "  1. EngineAtFloor: chat can lend no more: 1 of 2 replicas are left, its floor is 1. Next: lower "
        "preemption.minReplicas of chat to 0.\n"
        "  2. BehindInQueue: b is in front. Next: raise scheduling.priority to 6.\n"
        "  2. WaitingForGPUs: None is free of 2 GPUs, 1 is needed on one node. Next: add 1 GPU to the pool.\n"
        "nodes:\n"
        "  n1: 0 of 2 free, 1 claimed by team/a, 1 for chat/1\n"
        "training:\n"
        "  team/a: 1 GPU on n1; a does not give way: its scheduling.interruption.policy is Never.\n"
        "engines:\n"
        "  team/chat: 1 of 2 replicas, floor 1; no: EngineAtFloor: chat can lend no more: 1 of 2 replicas are left, "
        "its floor is 1.\n"
        "  team/dear: 0 of 0 replicas, floor 0; no: EngineNeverLends: dear does not lend (preemption.policy: Never)."
    )


def test_scheduling_guide_shows_the_trace_as_printed() -> None:
    """The block of docs/scheduling.md, whose long lines are wrapped."""
    town = parse(
        "pool: 2 gpus | chat: 2 replicas, floor 1 | dear: 0 replicas, never"
        " | a: needs 1, takes chat/0 on n1 | b: needs 1, priority 5 | c: needs 1"
    )
    page = (REPOSITORY / "docs" / "scheduling.md").read_text()
    _, _, block = page.partition("python3 -m sluice_operator.explain team/b\n")
    assert block.partition("```")[0].split() == told(town, "b").split()


def test_trace_shows_gpus_held_and_gpus_given() -> None:
    builder = parse("pool: 3 gpus | chat: 2 replicas, floor 1 | a: needs 1, takes chat/0 on n1 | b: needs 1")
    assert "holds 1 GPU on n1, borrowed from chat/0" in told(builder, "a")
    assert "is given 1 GPU on n1, borrowed from no engine" in told(builder, "b")


def test_trace_of_a_refused_job_shows_the_reason_only() -> None:
    builder = parse("pool: 1 gpus | a: needs 2")
    assert told(builder, "a").splitlines()[1:] == [
        "  refused: ExceedsEveryNode: spec.resources.gpus: 2 are asked for, the largest node of pool default has 1. "
        "Ask for at most 1, or add a larger node."
    ]


def test_trace_says_which_training_gives_way() -> None:
    builder = parse(
        "pool: 3 gpus | a: needs 1, yields, on n1 | c: needs 1, yields, priority 7, on n1 | d: needs 1, on n1 "
        "| b: needs 1, queue, priority 5"
    )
    assert told(builder, "b").splitlines()[1] == "  is given 1 GPU on n1, borrowed from no engine, in place of team/a"
    assert "\n".join(told(builder, "b").splitlines()[6:10]) == (
        "training:\n"
        "  team/a: 1 GPU on n1; It gives way now, to this job.\n"
        "  team/c: 1 GPU on n1; c does not give way: its priority 7 is not below 5.\n"
        "  team/d: 1 GPU on n1; d does not give way: its scheduling.interruption.policy is Never."
    )


@pytest.mark.parametrize(
    ("rule", "world", "says", "could_start"),
    [
        ("what is free comes first",
         "pool: 2 gpus | a: needs 1, yields, on n1 | b: needs 1, queue, priority 5",
         "It is spared: there is room without its place.", ""),
        ("not for one that is behind",
         "pool: 1 gpus | a: needs 1, yields, on n1 | c: needs 1, queue, priority 9, scales | b: needs 1, priority 5",
         "It would give way now.", "1. BehindInQueue: c is in front."),
        ("not while it asks for nodes",
         "pool: 1 gpus | a: needs 1, yields, on n1 | b: needs 1, queue, priority 5, scales",
         "It would give way now.", "1. ScalingUp: It asks for nodes and borrows nothing until 2026-11-22 12:06:00 UTC"),
        ("not if that is not enough",
         "pool: 2 gpus | strangers: 1 on n1 | a: needs 1, yields, on n1 | b: needs 2, queue, priority 5",
         "It would give way now.", "1. WaitingForGPUs: None is free of 2 GPUs, 2 are needed on one node."),
    ],
)  # fmt: skip
def test_trace_says_why_training_does_not_give_way(rule: str, world: str, says: str, could_start: str) -> None:
    assert section(parse(world), "b", "training") == [f"team/a: 1 GPU on n1; {says}"], rule
    if could_start:
        assert section(parse(world), "b", "could start")[0].startswith(could_start), rule


def interrupted(**terms: Any) -> WorldBuilder:
    """On a node of one GPU `low` trains, and gives way on these terms; `high` waits."""
    builder = WorldBuilder()
    builder.node(1)
    low = builder.job("low", scheduling={"interruption": {"policy": "ToHigherPriority", **terms}})
    builder.trainer_pod(builder.stage_job(low, claim=builder.claim("n1")), "n1", bound_at=NOW - timedelta(seconds=60))
    builder.job("high", scheduling={"policy": "Queue", "priority": 5})
    return builder


def test_trace_says_when_min_run_seconds_end() -> None:
    builder = interrupted(minRunSeconds=300)
    assert section(builder, "high", "training") == [
        "team/low: 1 GPU on n1; low gives way at 12:04:00 UTC, or ends before."
    ]


def test_trace_shows_a_preemption_from_both_sides() -> None:
    builder = interrupted(minRunSeconds=0)
    (claim,) = allocated(builder).claims.values()
    pod = builder.trainer_pod(builder.stage_job(builder.world.jobs[job_key("team", "high")], claim=claim))
    assert section(builder, "high", "claim") == [
        "attempt 1, draining: Binding: The training pod goes to n1.",
        "in place of team/low: trains until this claim is proven and bound",
    ]
    assert section(builder, "low", "claim")[1:] == ["gives way to team/high, which has its claim already"]
    builder.job("higher", scheduling={"policy": "Queue", "priority": 9})
    assert section(builder, "higher", "training")[0] == ("team/low: 1 GPU on n1; team/high takes its place already.")
    builder.version += 1
    builder.put(replace(pod, resource_version=builder.version, gates=(), nominated_node="n1", bound_at=NOW))
    assert section(builder, "high", "claim")[1] == "in place of team/low: is told to stop"
    assert section(builder, "low", "claim")[0].startswith("attempt 1, holding: Preempted: Job team/high, of priority 5")
    change(builder, builder.world.pods[pod.key], node="n1")
    assert section(builder, "high", "claim")[1] == "in place of team/low: goes on, as a GPU came free"


def test_trace_of_a_draining_claim_names_its_slot() -> None:
    builder = parse("pool: 1 gpus | chat: 1 replicas, in flight 3 | a: needs 1")
    claim = builder.claim("n1", SlotRef(namespace="team", engine="chat", index=0))
    stage_job = builder.stage_job(builder.world.jobs[job_key("team", "a")], claim=claim, created=NOW)
    assert (
        section(builder, "a", "claim")[0]
        == "attempt 1, proving: Claimed: 1 GPU on n1 is set aside; its pod is about to be made."
    )
    builder.trainer_pod(stage_job)
    assert section(builder, "a", "claim") == [
        "attempt 1, draining: Draining: chat/0 finishes the requests in flight.",
        "chat/0: still serves or drains",
    ]


def test_trace_of_a_claim_says_whether_its_slot_sleeps() -> None:
    loan = SleepingLoan()
    loan.drain()
    loan.engine_says(loan.status(1))
    assert section(loan.builder, "a", "claim")[1] == "chat/1: goes to sleep"
    loan.sleep()
    assert section(loan.builder, "a", "claim")[1] == "chat/1: sleeps"


def test_trace_may_lend_counts_lendable_replicas_only() -> None:
    builder = DraWorldBuilder(4)
    engine = builder.serving("chat", "n1", "n1", "n1")
    builder.visits(
        builder.job("guest", scheduling={"policy": "Shared"}), "n1", SlotRef(namespace="team", engine="chat", index=0)
    )
    (starts,) = builder.world.engine_pods["team", "chat", 1].values()
    builder.version += 1
    builder.put(replace(starts, resource_version=builder.version, ready=False))
    builder.job("a", 4)
    assert engine.spec.replicas == 3
    assert section(builder, "a", "engines") == ["team/chat: 3 of 3 replicas, floor 0; may lend 1"]


def test_trace_names_scale_up_pods() -> None:
    builder = parse("pool: 1 gpus | x: needs 1, on n1 | a: needs 1, scales")
    job = builder.world.jobs[job_key("team", "a")]
    pod = builder.scale_up_pod(job)
    assert section(builder, "a", "asks for nodes") == [f"{pod.key.name}: has none"]
