"""Jobs beside a replica whose GPUs DRA serves: whose guest a job is, and when it is nobody's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sluice_api.claim import Share
from sluice_api.gpupool import SharingMode
from sluice_api.inferenceengine import InferenceEngine
from sluice_api.reasons import Reason
from sluice_operator.facts.claims import LiveClaim
from sluice_operator.facts.live_claims import live_claims_of
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.overlap import overlapped_by
from sluice_operator.facts.slots import left_by
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import job_key
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.pool.allocate import allocate_fenced
from sluice_operator.plan.pool.preemption import preemption_obstacle
from sluice_operator.plan.pool.refusals import refusal
from sluice_operator.settings import Limits
from sluice_operator.status.job import job_status
from sluice_operator.status.trace import trace
from tests.unit.plan.dra import DRIVER, SHARED, SLEEPS, DraWorldBuilder, chat, guests
from tests.unit.plan.worlds import NOW, allocated, planned_status


def alone(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")


def with_a_guest(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")
    builder.visits(builder.job("g", scheduling=SHARED), "n1", chat(0))


def with_a_small_guest(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1", leaves=60)
    builder.visits(builder.job("g", scheduling=SHARED), "n1", chat(0))


def two_of_which_one_is_busy(builder: DraWorldBuilder) -> None:
    engine = builder.serving("chat", "n1", "n2")
    for index in range(2):
        (pod,) = builder.world.engine_pods["team", "chat", index].values()
        builder.report(pod, in_flight=7 - index)
    assert engine.spec.replicas == 2


def two_on_one_node_of_which_one_is_busy(builder: DraWorldBuilder) -> None:
    builder.offers("n1", 2, generation=2)
    builder.serving("chat", "n1", "n1")
    for index in range(2):
        (pod,) = builder.world.engine_pods["team", "chat", index].values()
        builder.report(pod, in_flight=7 - index)


def one_of_another_namespace(builder: DraWorldBuilder) -> None:
    builder.serving("dear", "n1", namespace="others")
    one_without_a_pod(builder)


def one_that_is_lent(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")
    builder.trains(builder.job("b"), "n1", chat(0), own=0)


def one_that_starts(builder: DraWorldBuilder) -> None:
    builder.slot(builder.engine("chat", 1, serving={"gpuMemoryUtilization": "0.70"}), 0, "n1", ready=False)


def one_without_a_pod(builder: DraWorldBuilder) -> None:
    builder.engine("chat", 1, serving={"gpuMemoryUtilization": "0.70"})


def on_a_node_that_takes_no_pods(builder: DraWorldBuilder) -> None:
    builder.serving("chat", "n1")
    builder.put(replace(builder.nodes[0], cordoned=True, resource_version=10**6))


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        (alone, "a beside chat/0"),
        (with_a_guest, "a waits WaitingForShare"),
        (with_a_small_guest, "a beside chat/0"),
        (two_of_which_one_is_busy, "a beside chat/1"),
        (two_on_one_node_of_which_one_is_busy, "a beside chat/1"),
        (one_of_another_namespace, "a waits WaitingForShare"),
        (one_that_is_lent, "a waits WaitingForShare"),
        (one_that_starts, "a beside chat/0"),
        (one_without_a_pod, "a waits WaitingForShare"),
        (on_a_node_that_takes_no_pods, "a waits NoNodes"),
    ],
)
def test_guest_is_placed_beside_a_replica_with_room(scene: Callable[[DraWorldBuilder], None], expected: str) -> None:
    builder = DraWorldBuilder(1)
    builder.node(1)
    scene(builder)
    builder.job("a", scheduling=SHARED)
    assert guests(builder) == expected


def test_guest_claims_a_share_and_no_gpu() -> None:
    builder = DraWorldBuilder(2)
    builder.serving("chat", "n1")
    builder.job("a", scheduling=SHARED)
    (claim,) = allocated(builder).claims.values()
    assert (claim.gpus_on("n1"), claim.all_gpus, claim.own_devices, claim.borrowed) == (0, 1, 0, ())
    assert (claim.resource, claim.share) == (DRIVER, Share(mode=SharingMode.DRA, percent=30))


def test_guest_counts_in_the_namespace_quota() -> None:
    builder = DraWorldBuilder(2, quotas=[{"maxGPUs": 1}])
    builder.serving("chat", "n1", leaves=90)
    for name in "ab":
        builder.job(name, scheduling=SHARED)
    assert guests(builder) == "a beside chat/0; b waits NamespaceQuota"


@pytest.mark.parametrize(
    ("rule", "leaves", "others", "reason", "says"),
    [
        ("no engine at all", None, "team", Reason.NO_ENGINE_TO_SHARE_WITH,
         "spec.scheduling.policy: Shared trains beside a replica of an engine in GPUPool default, and namespace team "
         "has no engine there. Use Queue or Preempt, or run it in the namespace of one."),
        ("an engine of another namespace", 30, "others", Reason.NO_ENGINE_TO_SHARE_WITH, "has no engine there"),
        ("vLLM takes nearly all", 10, "team", Reason.SHARE_TOO_LARGE,
         "spec.scheduling.share: 30% is asked for, engine chat leaves 10% of a GPU's memory: its "
         "serving.gpuMemoryUtilization is 0.90. Ask for at most 10%, or lower it."),
    ],
)  # fmt: skip
def test_guest_without_a_possible_engine_is_refused(
    rule: str, leaves: int | None, others: str, reason: Reason, says: str
) -> None:
    builder = DraWorldBuilder(1)
    if leaves is not None:
        builder.serving("chat", "n1", leaves=leaves, namespace=others)
    told = refusal(builder.world, builder.job("a", scheduling=SHARED))
    assert told is not None, rule
    assert told.reason is reason
    assert says in told.message
    assert guests(builder) == ""


def test_waiting_for_share_message_says_how_much_is_left() -> None:
    builder = DraWorldBuilder(1)
    with_a_guest(builder)
    builder.job("a", scheduling=SHARED)
    assert allocated(builder).waits[job_key("team", "a")].message == (
        "Waiting for 30% of a GPU in pool default since 2026-11-22 11:56 UTC. chat/0 leaves the most, 0%: vLLM takes "
        "70% (serving.gpuMemoryUtilization), jobs beside it 30%. Next: g ends and gives back what it holds."
    )


@pytest.mark.parametrize(
    ("utilization", "left"), [("0.90", 10), ("0.55", 45), ("0.905", 9), ("1", 0), ("2", 0), ("1e9999999", 0)]
)
def test_share_left_by_gpu_memory_utilization_is_rounded_down(utilization: str, left: int) -> None:
    engine = InferenceEngine.parse(
        {
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "InferenceEngine",
            "metadata": {"name": "chat", "namespace": "team"},
            "spec": {"model": {"uri": "pvc://m/m"}, "serving": {"gpuMemoryUtilization": utilization}},
        }
    )
    assert left_by(engine) == left


# The order


def test_guest_in_front_reserves_no_free_gpu() -> None:
    builder = DraWorldBuilder(2)
    with_a_guest(builder)
    builder.job("a", scheduling={**SHARED, "priority": 9})
    builder.job("b", scheduling={"policy": "Queue"})
    assert guests(builder) == "a waits WaitingForShare; b takes free"


def test_job_in_front_that_needs_gpus_blocks_no_guest() -> None:
    builder = DraWorldBuilder(1)
    alone(builder)
    builder.job("a", scheduling={"policy": "Queue", "priority": 9})
    builder.job("b", scheduling=SHARED)
    assert guests(builder) == "a waits WaitingForGPUs; b beside chat/0"


def test_guest_does_not_overtake_a_larger_guest() -> None:
    builder = DraWorldBuilder(1)
    builder.serving("chat", "n1", leaves=50)
    builder.visits(builder.job("g", scheduling=SHARED), "n1", chat(0))
    builder.job("a", scheduling={**SHARED, "share": "40%", "priority": 9})
    builder.job("b", scheduling={**SHARED, "share": "10%"})
    assert guests(builder) == "a waits WaitingForShare; b waits BehindInQueue"
    assert "a is in front" in allocated(builder).waits[job_key("team", "b")].message


def test_replica_that_a_guest_in_front_waits_for_is_not_lent() -> None:
    """The guest lacks memory on the node for now. Once that is there, the replica must not be lent."""
    builder = DraWorldBuilder()
    builder.node(1, 4 << 30)
    builder.serving("chat", "n1")
    builder.job("b")
    assert guests(builder) == "b takes chat/0"
    builder.job("a", scheduling={**SHARED, "priority": 9}, resources={"memory": "7Gi"})
    assert guests(builder) == "b takes chat/0", "it is refused, and not in the queue"
    builder.job("c", scheduling={**SHARED, "priority": 9}, resources={"memory": "3584Mi"})
    assert guests(builder) == "b waits BehindInQueue; c waits Unschedulable"


def test_guest_reserves_no_replica_that_leaves_too_little() -> None:
    builder = DraWorldBuilder()
    builder.node(1, 4 << 30)
    builder.serving("chat", "n1", leaves=10)
    builder.engine("roomy", 1, serving={"gpuMemoryUtilization": "0.50"}, preemption=SLEEPS)
    builder.job("b")
    builder.job("c", scheduling={**SHARED, "priority": 9})
    assert guests(builder) == "b takes chat/0; c waits WaitingForShare"


def test_guest_takes_no_replica_that_a_job_in_front_will_borrow() -> None:
    """Found in review: a job that waited for the end of a cool-down then waited for the guest."""
    builder = DraWorldBuilder(1)
    engine = builder.serving("chat", "n1", preemption={**SLEEPS, "coolDownSeconds": 60})
    slot = next(iter(builder.world.slots.values()))
    builder.version += 1
    builder.put(replace(slot, resource_version=builder.version, restarted_at=NOW))
    builder.job("p", scheduling={"policy": "Preempt", "priority": 5})
    builder.job("g", scheduling=SHARED)
    assert engine.metadata.name == "chat"
    assert guests(builder) == "g waits BehindInQueue; p waits EngineCoolsDown"


def test_guests_of_one_decision_count_each_other() -> None:
    builder = DraWorldBuilder(1)
    builder.serving("chat", "n1", leaves=70)
    for name in "abc":
        builder.job(name, scheduling=SHARED)
    assert guests(builder) == "a beside chat/0; b beside chat/0; c waits WaitingForShare"


def test_a_replica_with_guests_is_not_lent() -> None:
    builder = DraWorldBuilder(1)
    with_a_guest(builder)
    builder.job("b")
    assert guests(builder) == "b waits EngineHasGuests"


def test_replica_is_lent_or_has_a_guest_in_one_decision() -> None:
    for first, expected in (
        ("a", "a beside chat/0; b waits EngineHasGuests"),
        ("b", "a waits WaitingForShare; b takes chat/0"),
    ):
        builder = DraWorldBuilder(1)
        alone(builder)
        builder.job("a", scheduling={**SHARED, "priority": 9 if first == "a" else 0})
        builder.job("b", scheduling={"policy": "Preempt", "priority": 9 if first == "b" else 0})
        assert guests(builder) == expected


class Looked(dict[Key, InferenceEngine]):
    """Engines that count how often somebody goes through all of them."""

    times = 0

    def values(self) -> Any:
        self.times += 1
        return super().values()


def test_engines_are_scanned_once_for_all_guests() -> None:
    """A pool has hundreds of engines, and its queue thousands of guests. It took 3.5 s when each scanned them all."""
    times = []
    for count in (2, 20):
        builder = DraWorldBuilder(1)
        alone(builder)
        for number in range(count):
            builder.job(f"a{number}", scheduling=SHARED)
        world = replace(builder.world, engines=Looked(builder.world.engines))
        pool = find_pool(world, "default")
        assert pool is not None
        assert len(allocate_fenced(world, pool, NOW).claims) == 1
        assert isinstance(world.engines, Looked)
        times.append(world.engines.times)
    assert times[0] == times[1]


# Two claims that are in each other's way: a leader that was paused, and woke up


def overlap(builder: DraWorldBuilder, mine: StageJobView) -> str:
    (live,) = (found for job in builder.world.jobs.values() for found in live_claims_of(builder.world, job)
               if found.stage_job.uid == mine.uid)  # fmt: skip
    other = overlapped_by(builder.world, live)
    return other.job.metadata.name if other else ""


def test_later_guest_gives_way_if_there_is_no_room_for_both() -> None:
    builder = DraWorldBuilder(1)
    alone(builder)
    first = builder.visits(builder.job("a", scheduling=SHARED), "n1", chat(0), term=2)
    second = builder.visits(builder.job("b", scheduling=SHARED), "n1", chat(0), bound=False)
    assert (overlap(builder, first), overlap(builder, second)) == ("", "a")


def test_guests_with_room_for_both_do_not_overlap() -> None:
    builder = DraWorldBuilder(1)
    builder.serving("chat", "n1", leaves=60)
    builder.visits(builder.job("a", scheduling=SHARED), "n1", chat(0), term=2)
    assert overlap(builder, builder.visits(builder.job("b", scheduling=SHARED), "n1", chat(0), bound=False)) == ""


@pytest.mark.parametrize("guest_first", [True, False])
def test_guest_and_borrower_of_one_replica_overlap(guest_first: bool) -> None:
    builder = DraWorldBuilder(2)
    alone(builder)
    a, b = builder.job("a", scheduling=SHARED), builder.job("b")
    visit: Callable[[], StageJobView] = lambda: builder.visits(a, "n1", chat(0), bound=guest_first)  # noqa: E731
    loan = builder.trains(b, "n1", chat(0), own=0) if not guest_first else None
    guest = visit()
    if loan is None:
        claim = builder.claim("n1", chat(0)).model_copy(update={"resource": DRIVER, "own_devices": 0})
        loan = builder.stage_job(b, claim=claim)
    assert (overlap(builder, guest), overlap(builder, loan)) == (("", "a") if guest_first else ("b", ""))


def test_guest_stays_on_an_overcommitted_node() -> None:
    builder = DraWorldBuilder(1)
    alone(builder)
    builder.trains(builder.job("b", 2), "n1")
    assert overlap(builder, builder.visits(builder.job("a", scheduling=SHARED), "n1", chat(0), bound=False)) == ""


# What else there is to know of a guest


def test_guest_is_not_preempted_for_gpus() -> None:
    builder = DraWorldBuilder(1)
    alone(builder)
    yields = {**SHARED, "interruption": {"policy": "ToHigherPriority", "minRunSeconds": 0}}
    job = builder.job("g", scheduling=yields)
    builder.visits(job, "n1", chat(0))
    builder.job("a", scheduling={"policy": "Queue", "priority": 9})
    assert guests(builder) == "a waits WaitingForGPUs"
    (live,) = live_claims_of(builder.world, job)
    assert isinstance(live, LiveClaim)
    stays = preemption_obstacle(builder.world, live, job, NOW)
    assert stays
    assert "chat/0" in stays.message


def test_a_guest_stops_no_replica() -> None:
    builder = DraWorldBuilder(1)
    with_a_guest(builder)
    (engine,) = builder.world.engines.values()
    decision = plan_engine(builder.world, engine, NOW)
    assert (decision.stop, decision.placeholders.make) == ((), ())
    assert planned_status(builder.world, engine, NOW).lent == 0


def test_status_and_trace_name_the_replica_beside_a_guest() -> None:
    builder = DraWorldBuilder(1)
    job = builder.job("g", scheduling=SHARED)
    builder.serving("chat", "n1")
    builder.visits(job, "n1", chat(0))
    status = job_status(builder.world, job, plan_job(builder.world, job, NOW, Limits()), NOW)
    assert status.allocation is not None
    assert (status.allocation.beside, status.allocation.nodes) == ("chat/0", ("n1",))
    lines = "\n".join(trace(builder.world, job, NOW, Limits()))
    assert "holds 30% of a GPU on n1, beside chat/0" in lines
    assert "1 for chat/0 (jobs beside it use 30%)" in lines


def test_stock_counts_the_share_of_guests() -> None:
    builder = DraWorldBuilder(1)
    with_a_guest(builder)
    pool = find_pool(builder.world, "default")
    assert pool is not None
    assert take_stock(builder.world, pool).placed[chat(0)].shared == 30
