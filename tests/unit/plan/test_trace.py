"""What a person reads who asks why a job waits."""

from sluice_operator.observe.world import job_key
from sluice_operator.plan.trace import trace
from tests.unit.plan.worlds import NOW, Town, parse


def told(town: Town, name: str) -> str:
    return "\n".join(trace(town.world, town.world.jobs[job_key("team", name)], NOW))


def test_a_job_that_waits_sees_the_queue_the_nodes_and_the_engines() -> None:
    town = parse(
        "pool: 2 gpus | chat: 2 replicas, floor 1 | dear: 0 replicas, never"
        " | a: needs 1, takes chat/0 on n1 | b: needs 1, priority 5 | c: needs 1"
    )
    assert told(town, "c") == (
        "team/c: 1 GPU of pool default, policy Preempt, priority 0\n"
        "  waits: EngineAtFloor: Waiting for 1 GPU in pool default since 11:56 UTC. chat can lend no more: 1 of 2 "
        "replicas are left, its floor is 1. b is in front. Next: a ends and gives back what it holds, or lower "
        "preemption.minReplicas, or raise the engine's replicas.\n"
        "queue:\n"
        "    1. team/b, priority 5: EngineAtFloor\n"
        "  * 2. team/c, priority 0: EngineAtFloor\n"
        "nodes:\n"
        "  n1: 0 of 2 free, 1 claimed by team/a, 1 for chat/1\n"
        "training:\n"
        "  team/a: 1 GPU on n1; no: its scheduling.interruption.policy is Never\n"
        "engines:\n"
        "  team/chat: 1 of 2 replicas, floor 1; may lend 0\n"
        "  team/dear: 0 of 0 replicas, floor 0; no: EngineNeverLends: The engines in the pool do not lend."
    )


def test_a_job_that_holds_its_gpus_and_one_that_is_given_them() -> None:
    town = parse("pool: 3 gpus | chat: 2 replicas, floor 1 | a: needs 1, takes chat/0 on n1 | b: needs 1")
    assert "holds 1 GPU on n1, borrowed from chat/0" in told(town, "a")
    assert "is given 1 GPU on n1, borrowed from no engine" in told(town, "b")


def test_a_job_that_is_refused_is_told_why_and_nothing_else() -> None:
    town = parse("pool: 1 gpus | a: needs 2")
    assert told(town, "a").splitlines()[1:] == [
        "  refused: ExceedsEveryNode: spec.resources.gpus: 2 are asked for, the largest node of pool default has 1. "
        "Ask for at most 1."
    ]


def test_training_that_gives_way_and_training_that_stays() -> None:
    town = parse(
        "pool: 3 gpus | a: needs 1, yields, on n1 | c: needs 1, yields, priority 7, on n1 | d: needs 1, on n1 "
        "| b: needs 1, queue, priority 5"
    )
    assert told(town, "b").splitlines()[1] == "  is given 1 GPU on n1, borrowed from no engine, in place of team/a"
    assert "\n".join(told(town, "b").splitlines()[6:10]) == (
        "training:\n"
        "  team/a: 1 GPU on n1; gives way now\n"
        "  team/c: 1 GPU on n1; no: its priority 7 is not below 5\n"
        "  team/d: 1 GPU on n1; no: its scheduling.interruption.policy is Never"
    )
