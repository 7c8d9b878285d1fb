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
from sluice_operator.facts.liveness import live_claims_of, overlapped_by
from sluice_operator.facts.nodes import find_pool
from sluice_operator.facts.retries import Limits
from sluice_operator.facts.slots import left_by
from sluice_operator.observe.views import Key, StageJobView
from sluice_operator.observe.world import job_key
from sluice_operator.plan.engine.decide import plan_engine
from sluice_operator.plan.inventory import take_stock
from sluice_operator.plan.job.decide import plan_job
from sluice_operator.plan.pool.allocate import allocate
from sluice_operator.plan.pool.refusals import refusal
from sluice_operator.plan.pool.victims import why_it_stays
from sluice_operator.status.job import job_status
from sluice_operator.status.trace import trace
from tests.unit.plan.dra import DRIVER, SHARED, SLEEPS, DraTown, chat, guests
from tests.unit.plan.worlds import NOW, allocated, planned_status


def alone(town: DraTown) -> None:
    town.serving("chat", "n1")


def with_a_guest(town: DraTown) -> None:
    town.serving("chat", "n1")
    town.visits(town.job("g", scheduling=SHARED), "n1", chat(0))


def with_a_small_guest(town: DraTown) -> None:
    town.serving("chat", "n1", leaves=60)
    town.visits(town.job("g", scheduling=SHARED), "n1", chat(0))


def two_of_which_one_is_busy(town: DraTown) -> None:
    engine = town.serving("chat", "n1", "n2")
    for index in range(2):
        (pod,) = town.world.engine_pods["team", "chat", index].values()
        town.report(pod, in_flight=7 - index)
    assert engine.spec.replicas == 2


def two_on_one_node_of_which_one_is_busy(town: DraTown) -> None:
    town.offers("n1", 2, generation=2)
    town.serving("chat", "n1", "n1")
    for index in range(2):
        (pod,) = town.world.engine_pods["team", "chat", index].values()
        town.report(pod, in_flight=7 - index)


def one_of_another_namespace(town: DraTown) -> None:
    town.serving("dear", "n1", namespace="others")
    one_without_a_pod(town)


def one_that_is_lent(town: DraTown) -> None:
    town.serving("chat", "n1")
    town.trains(town.job("b"), "n1", chat(0), own=0)


def one_that_starts(town: DraTown) -> None:
    town.slot(town.engine("chat", 1, serving={"gpuMemoryUtilization": "0.70"}), 0, "n1", ready=False)


def one_without_a_pod(town: DraTown) -> None:
    town.engine("chat", 1, serving={"gpuMemoryUtilization": "0.70"})


def on_a_node_that_takes_no_pods(town: DraTown) -> None:
    town.serving("chat", "n1")
    town.put(replace(town.nodes[0], cordoned=True, resource_version=10**6))


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
def test_a_guest_goes_where_a_replica_leaves_it_room(scene: Callable[[DraTown], None], expected: str) -> None:
    town = DraTown(1)
    town.node(1)
    scene(town)
    town.job("a", scheduling=SHARED)
    assert guests(town) == expected


def test_a_guest_holds_no_gpu_and_has_none_of_its_own() -> None:
    town = DraTown(2)
    town.serving("chat", "n1")
    town.job("a", scheduling=SHARED)
    (claim,) = allocated(town).claims.values()
    assert (claim.gpus_on("n1"), claim.all_gpus, claim.own_devices, claim.borrowed) == (0, 1, 0, ())
    assert (claim.resource, claim.share) == (DRIVER, Share(mode=SharingMode.DRA, percent=30))


def test_a_guest_counts_in_its_namespaces_quota() -> None:
    town = DraTown(2, quotas=[{"maxGPUs": 1}])
    town.serving("chat", "n1", leaves=90)
    for name in "ab":
        town.job(name, scheduling=SHARED)
    assert guests(town) == "a beside chat/0; b waits NamespaceQuota"


@pytest.mark.parametrize(
    ("rule", "leaves", "others", "reason", "says"),
    [
        ("no engine at all", None, "team", Reason.NO_ENGINE_BESIDE,
         "spec.scheduling.policy: Shared trains beside a replica of an engine in GPUPool default, and namespace team "
         "has no engine there. Use Queue or Preempt, or run it in the namespace of one."),
        ("an engine of another namespace", 30, "others", Reason.NO_ENGINE_BESIDE, "namespace team has no engine there"),
        ("vLLM takes nearly all", 10, "team", Reason.SHARE_TOO_LARGE,
         "spec.scheduling.share: 30% is asked for, engine chat leaves 10% of a GPU's memory: its "
         "serving.gpuMemoryUtilization is 0.90. Ask for at most 10%, or lower it."),
    ],
)  # fmt: skip
def test_a_job_that_no_engine_could_have_as_a_guest_is_refused(
    rule: str, leaves: int | None, others: str, reason: Reason, says: str
) -> None:
    town = DraTown(1)
    if leaves is not None:
        town.serving("chat", "n1", leaves=leaves, namespace=others)
    told = refusal(town.world, town.job("a", scheduling=SHARED))
    assert told is not None, rule
    assert told.reason is reason
    assert says in told.message
    assert guests(town) == ""


def test_who_waits_is_told_how_much_is_left_and_whose_guest_ends() -> None:
    town = DraTown(1)
    with_a_guest(town)
    town.job("a", scheduling=SHARED)
    assert allocated(town).waits[job_key("team", "a")].message == (
        "Waiting for 30% of a GPU in pool default since 2026-11-22 11:56 UTC. chat/0 leaves the most, 0%: vLLM takes "
        "70% (serving.gpuMemoryUtilization), jobs beside it 30%. Next: g ends and gives back what it holds."
    )


@pytest.mark.parametrize(
    ("utilization", "left"), [("0.90", 10), ("0.55", 45), ("0.905", 9), ("1", 0), ("2", 0), ("1e9999999", 0)]
)
def test_what_is_left_is_rounded_down_and_exact(utilization: str, left: int) -> None:
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


def test_a_guest_in_front_keeps_nobody_from_free_gpus() -> None:
    town = DraTown(2)
    with_a_guest(town)
    town.job("a", scheduling={**SHARED, "priority": 9})
    town.job("b", scheduling={"policy": "Queue"})
    assert guests(town) == "a waits WaitingForShare; b takes free"


def test_a_job_in_front_that_wants_gpus_keeps_no_guest_out() -> None:
    town = DraTown(1)
    alone(town)
    town.job("a", scheduling={"policy": "Queue", "priority": 9})
    town.job("b", scheduling=SHARED)
    assert guests(town) == "a waits WaitingForGPUs; b beside chat/0"


def test_no_guest_overtakes_a_larger_one() -> None:
    town = DraTown(1)
    town.serving("chat", "n1", leaves=50)
    town.visits(town.job("g", scheduling=SHARED), "n1", chat(0))
    town.job("a", scheduling={**SHARED, "share": "40%", "priority": 9})
    town.job("b", scheduling={**SHARED, "share": "10%"})
    assert guests(town) == "a waits WaitingForShare; b waits BehindInQueue"
    assert "a is in front" in allocated(town).waits[job_key("team", "b")].message


def test_nobody_borrows_what_a_guest_in_front_waits_for() -> None:
    """It lacks memory on the node for now; once that is there, the replica must not be lent."""
    town = DraTown()
    town.node(1, 4 << 30)
    town.serving("chat", "n1")
    town.job("b")
    assert guests(town) == "b takes chat/0"
    town.job("a", scheduling={**SHARED, "priority": 9}, resources={"memory": "7Gi"})
    assert guests(town) == "b takes chat/0", "it is refused, and not in the queue"
    town.job("c", scheduling={**SHARED, "priority": 9}, resources={"memory": "3584Mi"})
    assert guests(town) == "b waits BehindInQueue; c waits Unschedulable"


def test_a_guest_keeps_no_replica_that_leaves_it_too_little() -> None:
    town = DraTown()
    town.node(1, 4 << 30)
    town.serving("chat", "n1", leaves=10)
    town.engine("roomy", 1, serving={"gpuMemoryUtilization": "0.50"}, preemption=SLEEPS)
    town.job("b")
    town.job("c", scheduling={**SHARED, "priority": 9})
    assert guests(town) == "b takes chat/0; c waits WaitingForShare"


def test_a_guest_takes_no_replica_that_one_in_front_will_borrow_in_a_moment() -> None:
    """Found in review: who waited for the end of a pause waited for the guest then."""
    town = DraTown(1)
    engine = town.serving("chat", "n1", preemption={**SLEEPS, "coolDownSeconds": 60})
    slot = next(iter(town.world.slots.values()))
    town.version += 1
    town.put(replace(slot, resource_version=town.version, restarted_at=NOW))
    town.job("p", scheduling={"policy": "Preempt", "priority": 5})
    town.job("g", scheduling=SHARED)
    assert engine.metadata.name == "chat"
    assert guests(town) == "g waits BehindInQueue; p waits EngineCoolsDown"


def test_guests_of_one_decision_see_each_other() -> None:
    town = DraTown(1)
    town.serving("chat", "n1", leaves=70)
    for name in "abc":
        town.job(name, scheduling=SHARED)
    assert guests(town) == "a beside chat/0; b beside chat/0; c waits WaitingForShare"


def test_a_replica_with_guests_is_not_lent() -> None:
    town = DraTown(1)
    with_a_guest(town)
    town.job("b")
    assert guests(town) == "b waits EngineHasGuests"


def test_of_one_decision_a_replica_is_lent_or_has_a_guest() -> None:
    for first, expected in (
        ("a", "a beside chat/0; b waits EngineHasGuests"),
        ("b", "a waits WaitingForShare; b takes chat/0"),
    ):
        town = DraTown(1)
        alone(town)
        town.job("a", scheduling={**SHARED, "priority": 9 if first == "a" else 0})
        town.job("b", scheduling={"policy": "Preempt", "priority": 9 if first == "b" else 0})
        assert guests(town) == expected


class Looked(dict[Key, InferenceEngine]):
    """Engines that count how often somebody goes through all of them."""

    times = 0

    def values(self) -> Any:
        self.times += 1
        return super().values()


def test_engines_are_gone_through_once_for_all_guests() -> None:
    """A pool has hundreds of engines, and its queue thousands of guests: 3.5 s, when each looked for itself."""
    times = []
    for count in (2, 20):
        town = DraTown(1)
        alone(town)
        for number in range(count):
            town.job(f"a{number}", scheduling=SHARED)
        world = replace(town.world, engines=Looked(town.world.engines))
        pool = find_pool(world, "default")
        assert pool is not None
        assert len(allocate(world, pool, NOW).claims) == 1
        assert isinstance(world.engines, Looked)
        times.append(world.engines.times)
    assert times[0] == times[1]


# Two claims that are in each other's way: a leader that was paused, and woke up


def overlap(town: DraTown, mine: StageJobView) -> str:
    (live,) = (found for job in town.world.jobs.values() for found in live_claims_of(town.world, job)
               if found.stage_job.uid == mine.uid)  # fmt: skip
    other = overlapped_by(town.world, live)
    return other.job.metadata.name if other else ""


def test_of_guests_that_are_too_many_the_later_gives_way() -> None:
    town = DraTown(1)
    alone(town)
    first = town.visits(town.job("a", scheduling=SHARED), "n1", chat(0), term=2)
    second = town.visits(town.job("b", scheduling=SHARED), "n1", chat(0), bound=False)
    assert (overlap(town, first), overlap(town, second)) == ("", "a")


def test_guests_for_whom_there_is_room_are_in_nobodys_way() -> None:
    town = DraTown(1)
    town.serving("chat", "n1", leaves=60)
    town.visits(town.job("a", scheduling=SHARED), "n1", chat(0), term=2)
    assert overlap(town, town.visits(town.job("b", scheduling=SHARED), "n1", chat(0), bound=False)) == ""


@pytest.mark.parametrize("guest_first", [True, False])
def test_a_guest_and_a_borrower_of_one_replica_are_in_each_others_way(guest_first: bool) -> None:
    town = DraTown(2)
    alone(town)
    a, b = town.job("a", scheduling=SHARED), town.job("b")
    visit: Callable[[], StageJobView] = lambda: town.visits(a, "n1", chat(0), bound=guest_first)  # noqa: E731
    loan = town.trains(b, "n1", chat(0), own=0) if not guest_first else None
    guest = visit()
    if loan is None:
        claim = town.claim("n1", chat(0)).model_copy(update={"resource": DRIVER, "own_devices": 0})
        loan = town.stage_job(b, claim=claim)
    assert (overlap(town, guest), overlap(town, loan)) == (("", "a") if guest_first else ("b", ""))


def test_a_guest_stays_on_a_node_of_which_more_is_spoken_for_than_there_is() -> None:
    town = DraTown(1)
    alone(town)
    town.trains(town.job("b", 2), "n1")
    assert overlap(town, town.visits(town.job("a", scheduling=SHARED), "n1", chat(0), bound=False)) == ""


# What else there is to know of a guest


def test_no_guest_is_displaced_for_gpus() -> None:
    town = DraTown(1)
    alone(town)
    yields = {**SHARED, "interruption": {"policy": "ToHigherPriority", "minRunSeconds": 0}}
    job = town.job("g", scheduling=yields)
    town.visits(job, "n1", chat(0))
    town.job("a", scheduling={"policy": "Queue", "priority": 9})
    assert guests(town) == "a waits WaitingForGPUs"
    (live,) = live_claims_of(town.world, job)
    assert isinstance(live, LiveClaim)
    assert "chat/0" in why_it_stays(town.world, live, job)


def test_a_guest_stops_no_replica() -> None:
    town = DraTown(1)
    with_a_guest(town)
    (engine,) = town.world.engines.values()
    decision = plan_engine(town.world, engine, NOW)
    assert (decision.stop, decision.placeholders.make) == ((), ())
    assert planned_status(town.world, engine, NOW).lent == 0


def test_people_are_told_beside_whom_it_trains() -> None:
    town = DraTown(1)
    job = town.job("g", scheduling=SHARED)
    town.serving("chat", "n1")
    town.visits(job, "n1", chat(0))
    status = job_status(town.world, job, plan_job(town.world, job, NOW, Limits()), NOW)
    assert status.allocation is not None
    assert (status.allocation.beside, status.allocation.nodes) == ("chat/0", ("n1",))
    lines = "\n".join(trace(town.world, job, NOW))
    assert "holds 30% of a GPU on n1, beside chat/0" in lines
    assert "1 for chat/0 (jobs beside it use 30%)" in lines


def test_the_stock_knows_what_guests_use() -> None:
    town = DraTown(1)
    with_a_guest(town)
    pool = find_pool(town.world, "default")
    assert pool is not None
    assert take_stock(town.world, pool).placed[chat(0)].shared == 30
