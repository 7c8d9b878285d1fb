"""Who gets GPUs, from whom, and why the others wait: the scheduler, one sentence a row."""

from dataclasses import replace

import pytest

from sluice_api.claim import SlotRef
from sluice_api.reasons import Reason
from sluice_operator.observe.world import job_key, key_of
from tests.unit.plan.worlds import allocated, describe, parse


@pytest.mark.parametrize(
    ("rule", "world", "expected"),
    [
        ("free GPUs are taken before borrowed ones",
         "pool: 3 gpus | chat: 2 replicas | a: needs 1",
         "a takes n1"),
        ("the least busy replica is lent",
         "pool: 2 gpus | chat: 2 replicas, floor 1, in flight 9 0 | a: needs 1",
         "a takes chat/1"),
        ("the least busy replica is lent, whatever its index",
         "pool: 2 gpus | chat: 2 replicas, floor 1, in flight 0 9 | a: needs 1",
         "a takes chat/0"),
        ("a replica that serves nobody yet is lent first",
         "pool: 2 gpus | chat: 2 replicas, floor 1, ready 1 | a: needs 1",
         "a takes chat/1"),
        ("a floor is never crossed",
         "pool: 2 gpus | chat: 2 replicas, floor 2 | a: needs 1",
         "a waits EngineAtFloor"),
        ("a floor above the replicas means all of them",
         "pool: 1 gpus | chat: 1 replicas, floor 5 | a: needs 1",
         "a waits EngineAtFloor"),
        ("a floor of replicas that serve is kept too",
         "pool: 3 gpus | chat: 3 replicas, floor 2, ready 2 | a: needs 2",
         "a waits EngineAtFloor"),
        ("an engine that never lends is left alone",
         "pool: 2 gpus | chat: 2 replicas, never | a: needs 1",
         "a waits EngineNeverLends"),
        ("an engine lends in its own namespace only",
         "pool: 2 gpus | chat: 2 replicas | a: needs 1, in lab",
         "a waits EngineLendsElsewhere"),
        ("an engine that lends anywhere lends to other namespaces",
         "pool: 2 gpus | chat: 2 replicas, anywhere | a: needs 1, in lab",
         "a takes chat/1"),
        ("an engine of higher priority is left alone",
         "pool: 2 gpus | chat: 2 replicas, priority 5 | a: needs 1",
         "a waits EnginePriorityHigher"),
        ("the engine of lower priority lends first",
         "pool: 2 gpus | dear: 1 replicas, priority 2 | cheap: 1 replicas, priority 1 | a: needs 1, priority 3",
         "a takes cheap/0"),
        ("what may be lent to one who waits is out of reach for those behind",
         "pool: 3 gpus | chat: 3 replicas, floor 1 | a: needs 3 | b: needs 1",
         "a waits EngineAtFloor; b waits BehindInQueue"),
        ("who queues borrows nothing",
         "pool: 2 gpus | chat: 2 replicas | a: needs 1, queue",
         "a waits WaitingForGPUs"),
        ("as many replicas as needed and no more",
         "pool: 4 gpus | chat: 4 replicas | a: needs 2",
         "a takes chat/3 chat/2"),
        ("a large replica alone is lent rather than with a small one",
         "pool: 3 gpus | small: 1 replicas | large: 1 replicas, gpus 2 | a: needs 2",
         "a takes large/0"),
        ("one node where that suffices",
         "pool: 2 2 gpus | chat: 4 replicas | a: needs 2",
         "a takes chat/1 chat/0"),
        ("free GPUs and borrowed ones together",
         "pool: 3 gpus | chat: 2 replicas | a: needs 2",
         "a takes chat/1"),
        ("what strangers use is not free",
         "pool: 2 gpus | strangers: 1 on n1 | chat: 1 replicas, floor 1 | a: needs 1",
         "a waits EngineAtFloor"),
        ("the higher priority first, then the older",
         "pool: 1 gpus | a: needs 1, queue | b: needs 1, queue, priority 5 | c: needs 1, queue",
         "a waits WaitingForGPUs; b takes n1; c waits BehindInQueue"),
        ("nobody overtakes one who waits",
         "pool: 2 gpus | c: needs 1, on n1 | a: needs 2, queue | b: needs 1, queue",
         "a waits WaitingForGPUs; b waits BehindInQueue"),
        ("on a node that is too small for the one in front, others go ahead",
         "pool: 2 1 gpus | c: needs 2, on n1 | a: needs 2, queue | b: needs 1, queue",
         "a waits WaitingForGPUs; b takes n2"),
        ("but not on one where it could be once others are gone",
         "pool: 2 2 gpus | c: needs 2, on n1 | d: needs 1, on n2 | a: needs 2, queue | b: needs 1, queue",
         "a waits WaitingForGPUs; b waits BehindInQueue"),
        ("nor where one pod of a group in front could be",
         "pool: 1 1 gpus | c: needs 1, on n1 | a: needs 1, queue, pods 2 | b: needs 1, queue",
         "a waits WaitingForGPUs; b waits BehindInQueue"),
        ("nor where another could be that waits between them",
         "pool: 2 1 1 gpus | c: needs 2, on n1 | d: needs 1, on n2 | a: needs 2, queue | e: needs 1, queue, pods 2 "
         "| b: needs 1, queue",
         "a waits WaitingForGPUs; b waits BehindInQueue; e waits WaitingForGPUs"),
        ("what is free on a node that is too small for the one in front goes with a replica of it",
         "pool: 3 2 gpus | c: needs 3, on n1 | chat: 1 replicas | a: needs 3, queue | b: needs 2",
         "a waits WaitingForGPUs; b takes chat/0"),
        ("one that is refused is not in the queue: no node is large enough for it",
         "pool: 1 gpus | a: needs 2, queue | b: needs 1, queue",
         "b takes n1"),
        ("who can only use what the one in front never can, goes",
         "pool: 2 gpus | chat: 2 replicas, floor 1 | a: needs 1, in lab | b: needs 1",
         "a waits EngineLendsElsewhere; b takes chat/1"),
        ("two jobs get two different replicas",
         "pool: 2 gpus | chat: 2 replicas | a: needs 1 | b: needs 1",
         "a takes chat/1; b takes chat/0"),
        ("the second waits for the first when only one replica is lent",
         "pool: 2 gpus | chat: 2 replicas, floor 1 | a: needs 1, takes chat/1 on n1 | b: needs 1",
         "b waits EngineAtFloor"),
        ("a claim counts from its first moment",
         "pool: 1 gpus | a: needs 1, on n1 | b: needs 1, queue",
         "b waits WaitingForGPUs"),
        ("training that yields gives way to a higher priority",
         "pool: 1 gpus | a: needs 1, yields, on n1 | b: needs 1, queue, priority 5",
         "b takes n1 from a"),
        ("training does not give way unless it says so",
         "pool: 1 gpus | a: needs 1, on n1 | b: needs 1, queue, priority 5",
         "b waits WaitingForGPUs"),
        ("training gives way to no equal",
         "pool: 1 gpus | a: needs 1, yields, priority 5, on n1 | b: needs 1, queue, priority 5",
         "b waits WaitingForGPUs"),
        ("a replica is lent before training is interrupted",
         "pool: 2 gpus | chat: 1 replicas | a: needs 1, yields, on n1 | b: needs 1, priority 5",
         "b takes chat/0"),
        ("what is free is taken before training is interrupted",
         "pool: 2 gpus | a: needs 1, yields, on n1 | b: needs 1, priority 5",
         "b takes n1"),
        ("a replica is lent on",
         "pool: 2 gpus | chat: 2 replicas, floor 1 | a: needs 1, yields, takes chat/1 on n1 | b: needs 1, priority 5",
         "b takes chat/1 from a"),
        ("a replica is not lent on when the engine has come to be below its floor",
         "pool: 1 gpus | chat: 1 replicas, floor 1 | a: needs 1, takes chat/0 on n1, yields | b: needs 1, priority 1",
         "b waits WaitingForGPUs"),
        ("a replica is not lent on to one who queues",
         "pool: 2 gpus | chat: 2 replicas, floor 1 | a: needs 1, yields, takes chat/1 on n1 "
         "| b: needs 1, queue, priority 5",
         "b waits WaitingForGPUs"),
        ("nor to a namespace to which its engine does not lend",
         "pool: 2 gpus | chat: 2 replicas, floor 1 | a: needs 1, yields, takes chat/1 on n1 "
         "| b: needs 1, in lab, priority 5",
         "b waits EngineLendsElsewhere"),
        ("no more replicas are lent on than needed",
         "pool: 4 gpus | chat: 3 replicas, floor 1 | a: needs 3, yields, takes chat/1 chat/2 on n1 "
         "| b: needs 2, priority 5",
         "b takes chat/1 from a"),
        ("a replica that comes back is its engine's, and not free for the next",
         "pool: 3 gpus | chat: 2 replicas, floor 1 | a: needs 2, yields, takes chat/1 on n1 "
         "| b: needs 1, queue, priority 5 | c: needs 1, queue, priority 4",
         "b takes n1 from a; c waits WaitingForGPUs"),
        ("the lowest priority gives way first",
         "pool: 2 gpus | a: needs 1, yields, priority 1, on n1 | c: needs 1, yields, on n1 "
         "| b: needs 1, queue, priority 5",
         "b takes n1 from c"),
        ("then the newest",
         "pool: 2 gpus | a: needs 1, yields, on n1 | c: needs 1, yields, on n1 | b: needs 1, queue, priority 5",
         "b takes n1 from c"),
        ("a replica that a larger one makes needless is not lent",
         "pool: 3 gpus | small: 1 replicas | big: 1 replicas, gpus 2, in flight 1 | a: needs 2",
         "a takes big/0"),
        ("nobody gives way who could be spared",
         "pool: 4 gpus | a: needs 1, yields, on n1 | c: needs 3, yields, priority 1, on n1 "
         "| b: needs 3, queue, priority 5",
         "b takes n1 from c"),
        ("several give way if one does not suffice",
         "pool: 2 gpus | a: needs 1, yields, on n1 | c: needs 1, yields, on n1 | b: needs 2, queue, priority 5",
         "b takes n1 from c a"),
        ("training and a replica make room together",
         "pool: 2 gpus | chat: 1 replicas | a: needs 1, yields, on n1 | b: needs 2, priority 5",
         "b takes chat/0 from a"),
        ("the node where fewest give way",
         "pool: 2 2 gpus | a: needs 1, yields, on n1 | c: needs 1, yields, on n1 | d: needs 2, yields, on n2 "
         "| b: needs 2, queue, priority 5",
         "b takes n2 from d"),
        ("nobody gives way twice",
         "pool: 1 gpus | a: needs 1, yields, on n1 | b: needs 1, queue, priority 5 | c: needs 1, queue, priority 4",
         "b takes n1 from a; c waits WaitingForGPUs"),
        ("nobody gives way to one who is not in front",
         "pool: 2 1 gpus | d: needs 2, on n1 | a: needs 1, yields, on n2 | b: needs 2, queue, priority 9 "
         "| c: needs 1, queue, priority 5",
         "b waits WaitingForGPUs; c waits BehindInQueue"),
        ("a replica that has no GPU yet keeps its place",
         "pool: 1 gpus | chat: 1 replicas, never, ready 0 | a: needs 1, queue",
         "a waits WaitingForGPUs"),
    ],
)  # fmt: skip
def test_allocation(rule: str, world: str, expected: str) -> None:
    assert describe(allocated(parse(world))) == expected, rule


def test_waiting_message_names_the_holder_and_the_remedy() -> None:
    builder = parse("pool: 1 gpus | a: needs 1, on n1 | b: needs 1, queue")
    wait = allocated(builder).waits[job_key("team", "b")]
    assert "Waiting for 1 GPU in pool default" in wait.message
    assert "a ends" in wait.message
    assert "Preempt" not in wait.message, "nobody is there of whom it could borrow"


def test_cordoned_node_gets_no_claim() -> None:
    builder = parse("pool: 1 gpus | a: needs 1")
    builder.put(replace(builder.nodes[0], cordoned=True, resource_version=999))
    assert describe(allocated(builder)) == "a waits NoNodes"


def test_replica_is_not_lent_on_a_node_short_of_memory() -> None:
    builder = parse("pool: 2 gpus | chat: 2 replicas")
    builder.stranger("n1", 0, memory=62 << 30)
    builder.job("a", resources={"memory": "8Gi"})
    assert describe(allocated(builder)) == "a waits Unschedulable"
    message = allocated(builder).waits[job_key("team", "a")].message
    assert "n1 lacks memory: needs 8Gi, 1Gi of 64Gi is left" in message


@pytest.mark.parametrize(("memory", "expected"), [("20Gi", "takes chat/0"), ("30Gi", "waits BehindInQueue")])
def test_reservation_keeps_memory_for_the_job_in_front(memory: str, expected: str) -> None:
    """Found in review: the job in front got its GPU at last, but the job that had gone ahead left it no memory."""
    builder = parse("pool: 2 gpus | x: needs 1, on n1 | chat: 1 replicas")
    builder.job("f", scheduling={"policy": "Queue", "priority": 9}, resources={"memory": "40Gi"})
    builder.job("b", resources={"memory": memory})
    assert describe(allocated(builder)) == f"b {expected}; f waits WaitingForGPUs"


def test_reservation_keeps_no_memory_on_a_node_that_is_too_small() -> None:
    builder = parse("pool: 2 1 gpus | x: needs 2, on n1")
    builder.job("f", 2, scheduling={"policy": "Queue", "priority": 9}, resources={"memory": "60Gi"})
    builder.job("b", resources={"memory": "10Gi"})
    assert describe(allocated(builder)) == "b takes n2; f waits WaitingForGPUs"


def test_gpus_of_an_overcommitted_node_are_lent_once() -> None:
    """Seen in a million random operations: a slot was claimed before its pod was bound, and others took its GPU."""
    builder = parse("pool: 2 gpus | chat: 2 replicas")
    early = builder.stage_job(
        builder.job("early"), claim=builder.claim("n1", SlotRef(namespace="team", engine="chat", index=2))
    )
    builder.trainer_pod(early)
    builder.job("a", gpus=2)
    assert describe(allocated(builder)) == "a waits WaitingForGPUs"


def test_replica_is_not_lent_where_a_claim_waits_for_a_gpu() -> None:
    """Seen in the soak: a job borrowed one replica too many, and its other GPU was one that an older claim waited for.

    Its claim gave way to the older one at once, and was made again.
    """
    builder = parse("pool: 3 gpus | chat: 3 replicas")
    builder.stage_job(builder.job("early"), claim=builder.claim("n1"))
    job = builder.job("a", gpus=2)
    wait = allocated(builder).waits[key_of(job)]
    assert wait.reason is Reason.WAITING_FOR_GPUS
    assert "early has 1 GPU on n1. Next: early ends" in wait.message


def test_spare_gpu_of_a_lent_slot_is_not_free() -> None:
    """Seen as soon as the stories had engines of two GPUs: a job on the spare GPU kept the slot from coming back."""
    builder = parse("pool: 2 gpus | chat: 2 replicas, gpus 2 | a: needs 1, takes chat/0 on n1 | b: needs 1, queue")
    assert describe(allocated(builder)) == "b waits WaitingForGPUs"


def test_lent_slot_that_started_elsewhere_is_not_lent_again() -> None:
    """Seen in the soak: a slot was to start on n2 and was lent from there, and its pod came to n1."""
    builder = parse("pool: 1 1 gpus | chat: 1 replicas")
    early = builder.stage_job(
        builder.job("early"), claim=builder.claim("n2", SlotRef(namespace="team", engine="chat", index=0))
    )
    builder.trainer_pod(early)
    builder.job("a")
    assert describe(allocated(builder)) == "a waits WaitingForGPUs"


def test_slot_that_stops_anyway_needs_no_second_loan() -> None:
    """Seen in the soak: a second slot was lent to make up for one that stops for another borrower."""
    builder = parse("pool: 2 1 gpus | chat: 2 replicas")
    early = builder.stage_job(
        builder.job("early"), claim=builder.claim("n2", SlotRef(namespace="team", engine="chat", index=1))
    )
    builder.trainer_pod(early)
    builder.stage_job(builder.job("second"), claim=builder.claim("n1"))
    builder.job("a")
    assert describe(allocated(builder)) == "a takes chat/0"
